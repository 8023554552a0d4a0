"""MobileFaceNet, by the names of two implementations.

insightface's arcface_torch: https://github.com/deepinsight/insightface (its code is MIT, its models
are for non-commercial research only), and https://github.com/foamliu/MobileFaceNet (Apache-2.0),
which alone has a third stem convolution.
"""

from keras_hybrid.convert.mapping import TorchMapping


def map_weights(mapping: TorchMapping) -> None:
    """Names of insightface's ``MobileFaceNet``, or foamliu's."""
    if mapping.has("stem2_conv"):
        _foamliu(mapping)
    else:
        _insightface(mapping)


def _unit(mapping: TorchMapping, ours: str, theirs: str) -> None:
    """Insightface's ``ConvBlock`` and ``LinearBlock``: convolution, normalisation and slopes."""
    mapping.conv(f"{ours}_conv", f"{theirs}.layers.0")
    mapping.norm(f"{ours}_norm", f"{theirs}.layers.1")
    if mapping.has(f"{ours}_prelu"):
        mapping.tensor(f"{ours}_prelu", f"{theirs}.layers.2.weight", "alpha")


def _insightface(mapping: TorchMapping) -> None:
    for i in range(2):
        _unit(mapping, f"stem{i}", f"layers.{i}")
    module, inside = 1, None
    for i in range(mapping.count("block{}_depthwise_conv")):
        # A run of blocks with a shortcut is one module; a block without is a module by itself.
        if not mapping.has(f"block{i}_add"):
            module, inside = module + 1, None
            prefix = f"layers.{module}"
        else:
            module, inside = (module + 1, 0) if inside is None else (module, inside + 1)
            prefix = f"layers.{module}.layers.{inside}"
        for j, part in enumerate(("expand", "depthwise", "project")):
            _unit(mapping, f"block{i}_{part}", f"{prefix}.layers.{j}")
    _unit(mapping, "head", "conv_sep")
    mapping.conv("global_conv", "features.layers.0.layers.0", optional=True)
    mapping.norm("global_norm", "features.layers.0.layers.1", optional=True)
    mapping.dense("embedding_projection", "features.layers.2", optional=True)
    mapping.norm("embedding_norm", "features.layers.3", optional=True)


def _foamliu(mapping: TorchMapping) -> None:
    mapping.conv("stem0_conv", "conv1.0")
    mapping.norm("stem0_norm", "conv1.1")
    mapping.conv("stem1_conv", "dw_conv.depthwise")
    mapping.norm("stem1_norm", "dw_conv.bn1")
    mapping.conv("stem2_conv", "dw_conv.pointwise")
    mapping.norm("stem2_norm", "dw_conv.bn2")
    for i in range(mapping.count("block{}_depthwise_conv")):
        names = {"expand": ("0.0", "0.1"), "depthwise": ("1.0", "1.1"), "project": ("2", "3")}
        for part, (conv, norm) in names.items():
            mapping.conv(f"block{i}_{part}_conv", f"features.{i}.conv.{conv}")
            mapping.norm(f"block{i}_{part}_norm", f"features.{i}.conv.{norm}")
    mapping.conv("head_conv", "conv2.0")
    mapping.norm("head_norm", "conv2.1")
    mapping.conv("global_conv", "gdconv.depthwise", optional=True)
    mapping.norm("global_norm", "gdconv.bn", optional=True)
    mapping.dense("embedding_projection", "conv3", optional=True)
    mapping.norm("embedding_norm", "bn", optional=True)
