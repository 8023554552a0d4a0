"""``keras-hybrid export``: SavedModel, LiteRT and ONNX."""

import argparse
import sys
from typing import Any

from keras_hybrid.cli.printing import print_facts
from keras_hybrid.cli.reading import (
    check_file,
    class_names,
    image_size,
    load_model,
    open_training_images,
)
from keras_hybrid.data.files import to_range

CALIBRATION_IMAGES = 200
LOW_COSINE = 0.98


def run_export(given: argparse.Namespace) -> None:
    """Export a model."""
    from keras_hybrid import export

    model = _model_to_export(given)
    options: dict[str, Any] = {
        "output": given.output,
        "labels": class_names(given.names, model, given.model),
    }
    if given.input_range is not None:
        options["input_range"] = tuple(given.input_range)
    if given.to == "litert":
        options["quantization"] = given.quantize
        options["input_dtype"] = given.input_dtype or "float32"
        size = given.batch_size or 1
        options["batch_size"] = None if size == "none" else size
        if given.representative is not None:
            size = image_size(model, given.model)
            images = _calibration_images(given.representative, size, given.data_options)
            options["representative_data"] = to_range(images, given.input_range)
    report = getattr(export, f"to_{given.to}")(model, given.out, **options)
    relative = f"{report.max_abs_difference:.3g} ({report.relative_difference:.2g} of the largest)"
    left_out = {"left out of calibration": f"{len(report.left_out)}, unlike the other images"}
    print_facts(
        {
            "path": report.path,
            "format": report.format,
            "quantization": report.quantization or "none",
            "size": f"{report.size_bytes:,} bytes",
            "inputs": _tensors(report.inputs),
            "outputs": _tensors(report.outputs),
            "largest difference": relative,
            "smallest cosine": f"{report.cosine:.6f}",
            "compared on": f"{report.samples} images",
            "operators": ", ".join(f"{name} {count}" for name, count in report.operators.items()),
            "seconds": f"{report.seconds:.1f}",
            **(left_out if report.left_out else {}),
        }
    )
    if report.quantization is not None and report.cosine < LOW_COSINE:
        reasons = {
            "float16": "its numbers do not fit into float16. Leave --quantize out.",
            "dynamic": "its weights do not fit into eight bits. --quantize float16 has sixteen.",
        }
        activations = "its activations do not fit into eight bits. --quantize dynamic leaves them "
        reason = reasons.get(report.quantization, f"{activations}in float32.")
        print(
            f"note: in {report.quantization} the model answers otherwise (smallest cosine "
            f"{report.cosine:.3f}): {reason}",
            file=sys.stderr,
        )


def _model_to_export(given: argparse.Namespace):
    if given.model.suffix or given.model.is_dir() or len(given.model.parts) > 1:
        check_file(given.model)
        return load_model(given.model)
    from keras_hybrid.applications.registry import create_model

    model = create_model(str(given.model), weights=given.weights)
    if given.weights is None:
        print(
            f"note: {given.model} is untrained; the file is fit to measure size and speed only.",
            file=sys.stderr,
        )
    return model


def _calibration_images(spec: str, size: tuple[int, int], options: list | None):
    import numpy as np

    from keras_hybrid import data

    source = open_training_images(spec, size, **dict(options or ()))
    count = min(len(source), CALIBRATION_IMAGES)
    chosen = np.linspace(0, len(source) - 1, count).round().astype(int)
    drawn = data.Subset(source, chosen.tolist())
    return data.load_arrays(drawn, size, every_class=False).images


def _tensors(tensors) -> str:
    return ", ".join(
        f"{t.name} {t.dtype} ({', '.join('n' if n is None else str(n) for n in t.shape)})"
        for t in tensors
    )
