"""timm's ``convit_*``: https://github.com/huggingface/pytorch-image-models (Apache-2.0).

The authors' release has the same names: https://github.com/facebookresearch/convit (Apache-2.0).
"""

from keras_hybrid.applications.convit import GatedPositionalSelfAttention
from keras_hybrid.convert.mapping import TorchMapping


def map_weights(mapping: TorchMapping) -> None:
    """Names of timm's ``ConVit``."""
    mapping.tensor("class_token", "cls_token", "token")
    mapping.tensor("position_embedding", "pos_embed", "embedding")
    mapping.conv("patch_embedding", "patch_embed.proj")
    for i in range(mapping.count("block{}_attention")):
        attention, prefix = f"block{i}_attention", f"blocks.{i}"
        mapping.norm(f"block{i}_norm1", f"{prefix}.norm1")
        if isinstance(mapping.layer(attention), GatedPositionalSelfAttention):
            mapping.tensor(attention, f"{prefix}.attn.gating_param", "gate")
            mapping.dense(f"{attention}.query_key", f"{prefix}.attn.qk")
            mapping.dense(f"{attention}.value", f"{prefix}.attn.v")
            mapping.dense(f"{attention}.position", f"{prefix}.attn.pos_proj")
        else:
            mapping.dense(f"{attention}.qkv", f"{prefix}.attn.qkv")
        mapping.dense(f"{attention}.projection", f"{prefix}.attn.proj")
        mapping.norm(f"block{i}_norm2", f"{prefix}.norm2")
        mapping.dense(f"block{i}_mlp_dense1", f"{prefix}.mlp.fc1")
        mapping.dense(f"block{i}_mlp_dense2", f"{prefix}.mlp.fc2")
    mapping.norm("norm", "norm")
    mapping.dense("predictions", "head", optional=True)
