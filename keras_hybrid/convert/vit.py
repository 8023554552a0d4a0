"""timm's ``vit_*``: https://github.com/huggingface/pytorch-image-models (Apache-2.0)."""

from keras_hybrid.convert.mapping import TorchMapping


def map_weights(mapping: TorchMapping) -> None:
    """Names of timm's ``VisionTransformer``."""
    mapping.conv("patch_embedding", "patch_embed.proj")
    mapping.tensor("class_token", "cls_token", "token")
    mapping.tensor("position_embedding", "pos_embed", "embedding")
    for i in range(mapping.count("block{}_attention")):
        mapping.norm(f"block{i}_norm1", f"blocks.{i}.norm1")
        mapping.dense(f"block{i}_attention.qkv", f"blocks.{i}.attn.qkv")
        mapping.dense(f"block{i}_attention.projection", f"blocks.{i}.attn.proj")
        mapping.norm(f"block{i}_norm2", f"blocks.{i}.norm2")
        mapping.dense(f"block{i}_mlp_dense1", f"blocks.{i}.mlp.fc1")
        mapping.dense(f"block{i}_mlp_dense2", f"blocks.{i}.mlp.fc2")
    mapping.norm("norm", "norm")
    mapping.dense("predictions", "head", optional=True)
