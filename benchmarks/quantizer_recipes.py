"""Recipes of ai-edge-quantizer, beside the kinds of LiteRT files that the library writes.

They start from a float32 file of one image a call. ``float_layers`` are regular expressions for
names of operators that stay in float32; these names are made of the Keras layers' names.
"""

import contextlib
import io
import pathlib
import re
from collections.abc import Sequence

import numpy as np

RECIPES = ("dynamic_recipe", "dynamic_mixed", "int8_recipe", "int8_mixed", "int16_recipe")
CALIBRATION = 100  # images; the quantizer runs them with every tensor kept, which takes long


def quantize(
    source: pathlib.Path,
    target: pathlib.Path,
    recipe: str,
    images: np.ndarray,
    float_layers: Sequence[str] = (),
) -> None:
    """Quantize a float32 LiteRT file.

    Args:
        source: The float32 file.
        target: The file to write.
        recipe: ``"dynamic_recipe"``: int8 weights; convolutions and matrix products in int8 with
            scales found at run time, depthwise convolutions in float32, for which XNNPACK has no
            kernel of that kind. ``"int8_recipe"``, ``"int16_recipe"``: int8 weights, and
            activations in 8 or 16 bits, but for the file's input and output. ``"…_mixed"``: the
            same with ``float_layers`` left in float32.
        images: Calibration images (n, height, width, channels); dynamic recipes need none.
        float_layers: For ``"…_mixed"``.
    """
    from ai_edge_quantizer import quantizer
    from ai_edge_quantizer import recipe as recipes
    from ai_edge_quantizer.algorithm_manager import AlgorithmName
    from ai_edge_quantizer.qtyping import TFLOperationName as Operator

    made = quantizer.Quantizer(str(source))

    def leave(pattern: str, operator: Operator) -> None:
        made.update_quantization_recipe(pattern, operator, algorithm_key=AlgorithmName.NO_QUANTIZE)

    if recipe.startswith("dynamic"):
        made.load_quantization_recipe(recipes.dynamic_wi8_afp32())
        made.add_weight_only_config(".*", Operator.DEPTHWISE_CONV_2D, 8)
    else:
        is_int8 = recipe.startswith("int8")
        make_recipe = recipes.static_wi8_ai8 if is_int8 else recipes.static_wi8_ai16
        made.load_quantization_recipe(make_recipe())
        for end in (Operator.INPUT, Operator.OUTPUT):
            leave(".*", end)
    for pattern in float_layers if recipe.endswith("mixed") else ():
        leave(pattern, Operator.ALL_SUPPORTED)
    # What it prints are progress bars, by the thousand lines.
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        found = None
        if made.need_calibration:
            batches = [{"image": image[np.newaxis]} for image in images[:CALIBRATION]]
            found = made.calibrate({"serving_default": batches})
        made.quantize(found).export_model(str(target))


def quantize_one(source: pathlib.Path, target: pathlib.Path, operator: str) -> None:
    """Quantize the weights of one operator, given by its output's name, to int8.

    Raises:
        ValueError: If that changed nothing.
    """
    from ai_edge_quantizer import quantizer
    from ai_edge_quantizer.qtyping import TFLOperationName as Operator

    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        made = quantizer.Quantizer(str(source))
        # The quantizer ends each output's name with a semicolon before it compares.
        made.add_weight_only_config(f"^{re.escape(operator)};?$", Operator.ALL_SUPPORTED, 8)
        made.quantize().export_model(str(target))
    if target.stat().st_size >= source.stat().st_size:
        raise ValueError(f"operator {operator!r} of {source} was not quantized.")
