"""Face Transformer: https://github.com/zhongyy/Face-Transformer (MIT)."""

import numpy as np

from keras_hybrid.convert.mapping import TorchMapping


def map_weights(mapping: TorchMapping) -> None:
    """Names of the authors' ``ViT_face`` and ``ViTs_face``."""
    map_encoder(mapping)
    map_classifier(mapping)


def map_encoder(mapping: TorchMapping, prefix: str = "") -> None:
    """Everything up to the embedding; ``prefix`` stands before every name."""
    patches = mapping.layer("patch_embedding")
    size = patches.kernel_size[0]
    overlapping = patches.kernel_size != patches.strides

    def patch_kernel(weight: np.ndarray) -> np.ndarray:
        # Plain patches are flattened (row, column, channel), sliding ones (channel, row, column).
        if overlapping:
            return weight.reshape(len(weight), -1, size, size).transpose(2, 3, 1, 0)
        return weight.reshape(len(weight), size, size, -1).transpose(1, 2, 3, 0)

    mapping.conv("patch_embedding", f"{prefix}patch_to_embedding", layout=patch_kernel)
    mapping.tensor("class_token", f"{prefix}cls_token", "token")
    mapping.tensor("position_embedding", f"{prefix}pos_embedding", "embedding")
    for i in range(mapping.count("block{}_attention")):
        attention, mlp = (f"{prefix}transformer.layers.{i}.{part}.fn" for part in (0, 1))
        mapping.norm(f"block{i}_norm1", f"{attention}.norm")
        mapping.dense(f"block{i}_attention.qkv", f"{attention}.fn.to_qkv")
        mapping.dense(f"block{i}_attention.projection", f"{attention}.fn.to_out.0")
        mapping.norm(f"block{i}_norm2", f"{mlp}.norm")
        mapping.dense(f"block{i}_mlp_dense1", f"{mlp}.fn.net.0")
        mapping.dense(f"block{i}_mlp_dense2", f"{mlp}.fn.net.3")
    mapping.norm("norm", f"{prefix}mlp_head.0")


def map_classifier(mapping: TorchMapping) -> None:
    """The classifier, which the authors' code calls loss."""
    if hasattr(mapping.layer("predictions"), "centers"):
        mapping.tensor("predictions", "loss.weight", "centers")
    else:
        mapping.dense("predictions", "loss", optional=True)
