"""IResNet: insightface's arcface_torch, https://github.com/deepinsight/insightface.

The code is MIT, the published models are for non-commercial research only.
"""

import numpy as np

from keras_hybrid.convert.mapping import TorchMapping


def map_weights(mapping: TorchMapping) -> None:
    """Names of insightface's ``IResNet``."""
    _conv_norm(mapping, "stem", "conv1", "bn1", slopes="prelu")
    for stage in range(mapping.count("stage{}_block0_add")):
        for i in range(mapping.count(f"stage{stage}_block{{}}_add")):
            ours, theirs = f"stage{stage}_block{i}", f"layer{stage + 1}.{i}"
            mapping.norm(f"{ours}_norm", f"{theirs}.bn1")
            _conv_norm(
                mapping,
                f"{ours}_conv1",
                f"{theirs}.conv1",
                f"{theirs}.bn2",
                slopes=f"{theirs}.prelu",
            )
            _conv_norm(mapping, f"{ours}_conv2", f"{theirs}.conv2", f"{theirs}.bn3")
            if mapping.has(f"{ours}_shortcut_conv"):
                downsample = f"{theirs}.downsample"
                _conv_norm(mapping, f"{ours}_shortcut", f"{downsample}.0", f"{downsample}.1")
    mapping.norm("norm", "bn2")
    height, width, channels = mapping.layer("norm").output.shape[1:]

    def flattened(weight: np.ndarray) -> np.ndarray:
        # From (channel, row, column), as PyTorch flattens, to (row, column, channel).
        weight = weight.reshape(-1, channels, height, width)
        return weight.transpose(2, 3, 1, 0).reshape(-1, len(weight))

    mapping.dense("embedding_projection", "fc", optional=True, layout=flattened)
    mapping.norm("embedding_norm", "features", optional=True)


def _conv_norm(mapping: TorchMapping, ours: str, conv: str, norm: str, slopes=None) -> None:
    mapping.conv(f"{ours}_conv", conv)
    mapping.norm(f"{ours}_norm", norm)
    if slopes is not None:
        mapping.tensor(f"{ours}_prelu", f"{slopes}.weight", "alpha")
