"""SAN: https://github.com/hszhao/SAN (MIT), whose names the report's code shares.

Patchwise attention keeps the places of a footprint outermost, where the original has the channels:
its tensors are put in that order.
"""

import functools

import numpy as np

from keras_hybrid.applications.san import PairwiseAttention
from keras_hybrid.convert.mapping import TorchMapping, convolution


def map_weights(mapping: TorchMapping) -> None:
    """Names of the authors' ``SAN``."""
    mapping.conv("stem_conv", "conv_in")
    mapping.norm("stem_norm", "bn_in")
    stage = 0
    while mapping.has(f"stage{stage}_block0_attention"):
        if mapping.has(f"stage{stage}_conv"):
            mapping.conv(f"stage{stage}_conv", f"conv{stage}")
            mapping.norm(f"stage{stage}_norm", f"bn{stage}")
        for i in range(mapping.count(f"stage{stage}_block{{}}_attention")):
            layer, module = f"stage{stage}_block{i}", f"layer{stage}.{i}"
            mapping.norm(f"{layer}_input_norm", f"{module}.bn1")
            _map_attention(mapping, f"{layer}_attention", f"{module}.sam")
            mapping.norm(f"{layer}_output_norm", f"{module}.bn2")
            mapping.conv(f"{layer}_conv", f"{module}.conv")
        stage += 1
    mapping.dense("predictions", "fc", optional=True)


def _map_attention(mapping: TorchMapping, layer: str, module: str) -> None:
    for number, part in enumerate(("query", "key", "value"), start=1):
        mapping.conv(f"{layer}.{part}", f"{module}.conv{number}")
    attention = mapping.layer(layer)
    if isinstance(attention, PairwiseAttention):
        mapping.norm(f"{layer}.relation_norm", f"{module}.conv_w.0")
        mapping.conv(f"{layer}.reduce", f"{module}.conv_w.2")
        mapping.norm(f"{layer}.reduced_norm", f"{module}.conv_w.3")
        mapping.conv(f"{layer}.expand", f"{module}.conv_w.5")
        mapping.conv(f"{layer}.position", f"{module}.conv_p")
        return
    places = attention.kernel_size**2
    # φ(x_i) comes first and has one place.
    centre = attention.relation_dim if attention.relation == "concatenation" else 0
    relation = functools.partial(_places_first, places=places, skip=centre)
    weights = functools.partial(_places_first, places=places)
    for name, attribute in (
        ("weight", "gamma"),
        ("bias", "beta"),
        ("running_mean", "moving_mean"),
        ("running_var", "moving_variance"),
    ):
        mapping.tensor(
            f"{layer}.relation_norm", f"{module}.conv_w.0.{name}", attribute, layout=relation
        )
    mapping.tensor(
        f"{layer}.reduce",
        f"{module}.conv_w.2.weight",
        "kernel",
        layout=lambda weight: convolution(relation(weight.swapaxes(0, 1)).swapaxes(0, 1)),
    )
    mapping.norm(f"{layer}.reduced_norm", f"{module}.conv_w.3")
    mapping.tensor(
        f"{layer}.expand",
        f"{module}.conv_w.5.weight",
        "kernel",
        layout=lambda weight: convolution(weights(weight)),
    )
    mapping.tensor(f"{layer}.expand", f"{module}.conv_w.5.bias", "bias", layout=weights)


def _places_first(tensor: np.ndarray, *, places: int, skip: int = 0) -> np.ndarray:
    """(channels · places, …) → (places · channels, …), the first ``skip`` rows left alone."""
    rows = tensor[skip:]
    split = rows.reshape(-1, places, *rows.shape[1:]).swapaxes(0, 1)
    return np.concatenate([tensor[:skip], split.reshape(rows.shape)])
