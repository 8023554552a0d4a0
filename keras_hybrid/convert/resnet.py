"""ResNet-50 and SE-ResNet-50, in three dialects.

With the ImageNet stem, timm's and torchvision's names
(https://github.com/huggingface/pytorch-image-models, Apache-2.0); for a squeeze-and-excitation
network with the stride in the first 1×1 convolutions, those of timm's ``legacy_seresnet50``. With
the CIFAR stem, the names of https://github.com/kuangliu/pytorch-cifar (MIT).
"""

from keras_hybrid.convert.mapping import TorchMapping


def map_weights(mapping: TorchMapping) -> None:
    """Names of the dialect that the model's layout belongs to."""
    stride = getattr(mapping.layer("stage2_block0_conv1"), "strides", None)
    if not mapping.has("stem_pool"):
        map_residual_network(mapping, shortcut="shortcut")
        mapping.dense("predictions", "linear", optional=True)
    elif mapping.has("stage1_block0_squeeze_reduce") and stride == (2, 2):
        map_residual_network(mapping, stem="layer0.", squeeze="se_module")
        mapping.dense("predictions", "last_linear", optional=True)
    else:
        map_residual_network(mapping)
        mapping.dense("predictions", "fc", optional=True)


def map_residual_network(
    mapping: TorchMapping,
    *,
    prefix: str = "",
    stem: str = "",
    shortcut: str = "downsample",
    squeeze: str = "se",
) -> None:
    """Stem and stages; ``prefix`` stands before every name, the others name modules."""
    mapping.conv("stem_conv", f"{prefix}{stem}conv1")
    mapping.norm("stem_conv_norm", f"{prefix}{stem}bn1")
    stage = 1
    while mapping.has(f"stage{stage}_block0_conv1"):
        for i in range(mapping.count(f"stage{stage}_block{{}}_conv1")):
            layer, module = f"stage{stage}_block{i}", f"{prefix}layer{stage}.{i}"
            for j in (1, 2, 3):
                mapping.conv(f"{layer}_conv{j}", f"{module}.conv{j}")
                mapping.norm(f"{layer}_conv{j}_norm", f"{module}.bn{j}")
            if mapping.has(f"{layer}_squeeze_reduce"):
                mapping.conv(f"{layer}_squeeze_reduce", f"{module}.{squeeze}.fc1")
                mapping.conv(f"{layer}_squeeze_expand", f"{module}.{squeeze}.fc2")
            if mapping.has(f"{layer}_shortcut"):
                mapping.conv(f"{layer}_shortcut", f"{module}.{shortcut}.0")
                mapping.norm(f"{layer}_shortcut_norm", f"{module}.{shortcut}.1")
        stage += 1
