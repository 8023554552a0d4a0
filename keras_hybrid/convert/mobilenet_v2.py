"""timm's ``mobilenetv2_*``: https://github.com/huggingface/pytorch-image-models (Apache-2.0)."""

from keras_hybrid.convert.mapping import TorchMapping


def map_weights(mapping: TorchMapping) -> None:
    """Names of timm's ``EfficientNet`` as MobileNetV2."""
    _conv_norm(mapping, "stem", "conv_stem", "bn1")
    for stage in range(mapping.count("stage{}_block0_depthwise_conv")):
        for i in range(mapping.count(f"stage{stage}_block{{}}_depthwise_conv")):
            ours, theirs = f"stage{stage}_block{i}", f"blocks.{stage}.{i}"
            if mapping.has(f"{ours}_expand_conv"):
                convolutions = {"expand": "conv_pw", "depthwise": "conv_dw", "project": "conv_pwl"}
            else:
                convolutions = {"depthwise": "conv_dw", "project": "conv_pw"}
            for number, (part, conv) in enumerate(convolutions.items(), start=1):
                _conv_norm(mapping, f"{ours}_{part}", f"{theirs}.{conv}", f"{theirs}.bn{number}")
    _conv_norm(mapping, "head", "conv_head", "bn2")
    mapping.dense("predictions", "classifier", optional=True)


def _conv_norm(mapping: TorchMapping, ours: str, conv: str, norm: str) -> None:
    mapping.conv(f"{ours}_conv", conv)
    mapping.norm(f"{ours}_norm", norm)
