"""timm's ``swin_*``: https://github.com/huggingface/pytorch-image-models (Apache-2.0).

The authors' release (https://github.com/microsoft/Swin-Transformer, MIT) computes the same under
other names: its patch merging stands at the end of a stage, its classifier is ``head``.
"""

from keras_hybrid.convert.mapping import TorchMapping


def map_weights(mapping: TorchMapping) -> None:
    """Names of timm's ``SwinTransformer``."""
    mapping.conv("patch_embedding", "patch_embed.proj")
    mapping.norm("patch_norm", "patch_embed.norm")
    stage = 0
    while blocks := mapping.count(f"stage{stage}_block{{}}_attention"):
        if stage:
            mapping.norm(f"stage{stage}_merging.norm", f"layers.{stage}.downsample.norm")
            mapping.dense(f"stage{stage}_merging.reduction", f"layers.{stage}.downsample.reduction")
        for i in range(blocks):
            block, prefix = f"stage{stage}_block{i}", f"layers.{stage}.blocks.{i}"
            mapping.norm(f"{block}_norm1", f"{prefix}.norm1")
            mapping.tensor(f"{block}_bias", f"{prefix}.attn.relative_position_bias_table", "table")
            mapping.dense(f"{block}_attention.qkv", f"{prefix}.attn.qkv")
            mapping.dense(f"{block}_attention.projection", f"{prefix}.attn.proj")
            mapping.norm(f"{block}_norm2", f"{prefix}.norm2")
            mapping.dense(f"{block}_mlp_dense1", f"{prefix}.mlp.fc1")
            mapping.dense(f"{block}_mlp_dense2", f"{prefix}.mlp.fc2")
            mapping.ignore(f"{prefix}.attn.relative_position_index", f"{prefix}.attn_mask")
        stage += 1
    mapping.norm("norm", "norm")
    mapping.dense("predictions", "head.fc", optional=True)
