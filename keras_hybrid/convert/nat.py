"""NAT: https://github.com/SHI-Labs/Neighborhood-Attention-Transformer (MIT)."""

import numpy as np

from keras_hybrid.convert.mapping import TorchMapping


def map_weights(mapping: TorchMapping) -> None:
    """Names of the authors' ``NAT``."""
    mapping.conv("tokenizer_conv1", "patch_embed.proj.0")
    mapping.conv("tokenizer_conv2", "patch_embed.proj.1")
    mapping.norm("tokenizer_norm", "patch_embed.norm")
    stage = 0
    while blocks := mapping.count(f"stage{stage}_block{{}}_neighborhood_attention"):
        if stage:
            # The authors' stages end in what ours begin with.
            prefix = f"levels.{stage - 1}.downsample"
            mapping.conv(f"stage{stage}_downsampling", f"{prefix}.reduction")
            mapping.norm(f"stage{stage}_downsampling_norm", f"{prefix}.norm")
        for i in range(blocks):
            block, prefix = f"stage{stage}_block{i}", f"levels.{stage}.blocks.{i}"
            attention = f"{block}_neighborhood_attention"
            mapping.norm(f"{block}_norm1", f"{prefix}.norm1")
            mapping.tensor(attention, f"{prefix}.attn.rpb", "table", layout=_table)
            mapping.dense(f"{attention}.qkv", f"{prefix}.attn.qkv")
            mapping.dense(f"{attention}.projection", f"{prefix}.attn.proj")
            if mapping.has(f"{block}_attention_scale"):
                mapping.tensor(f"{block}_attention_scale", f"{prefix}.gamma1", "scale")
                mapping.tensor(f"{block}_mlp_scale", f"{prefix}.gamma2", "scale")
            mapping.norm(f"{block}_norm2", f"{prefix}.norm2")
            mapping.dense(f"{block}_mlp_dense1", f"{prefix}.mlp.fc1")
            mapping.dense(f"{block}_mlp_dense2", f"{prefix}.mlp.fc2")
        stage += 1
    mapping.norm("norm", "norm")
    mapping.dense("predictions", "head", optional=True)


def _table(weight: np.ndarray) -> np.ndarray:
    """(heads, row offsets, column offsets) → (offsets, heads)."""
    return weight.reshape(weight.shape[0], -1).T
