"""timm's ``coatnet_*``: https://github.com/huggingface/pytorch-image-models (Apache-2.0)."""

import numpy as np

from keras_hybrid.convert.mapping import TorchMapping


def map_weights(mapping: TorchMapping) -> None:
    """Names of timm's ``MaxxVit`` without windows."""
    mapping.conv("stem_conv1", "stem.conv1")
    mapping.norm("stem_norm", "stem.norm1")
    mapping.conv("stem_conv2", "stem.conv2")
    stage = 0
    while mapping.has(f"stage{stage}_block0_norm1"):
        for i in range(mapping.count(f"stage{stage}_block{{}}_norm1")):
            block, prefix = f"stage{stage}_block{i}", f"stages.{stage}.blocks.{i}"
            if mapping.has(f"{block}_shortcut"):
                mapping.conv(f"{block}_shortcut", f"{prefix}.shortcut.expand")
            if mapping.has(f"{block}_attention"):
                _map_attention_block(mapping, block, prefix, is_first=i == 0)
            else:
                _map_convolution_block(mapping, block, prefix)
        stage += 1
    mapping.norm("norm", "head.norm", optional=True)
    if mapping.has("hidden") or not mapping.has("predictions"):
        mapping.dense("hidden", "head.pre_logits.fc", optional=True)
    mapping.dense("predictions", "head.fc", optional=True)


def _map_convolution_block(mapping: TorchMapping, block: str, prefix: str) -> None:
    mapping.norm(f"{block}_pre_norm", f"{prefix}.pre_norm")
    mapping.conv(f"{block}_expand", f"{prefix}.conv1_1x1")
    mapping.norm(f"{block}_norm1", f"{prefix}.norm1")
    mapping.conv(f"{block}_depthwise", f"{prefix}.conv2_kxk")
    mapping.norm(f"{block}_norm2", f"{prefix}.norm2")
    mapping.conv(f"{block}_se_reduce", f"{prefix}.se.fc1")
    mapping.conv(f"{block}_se_expand", f"{prefix}.se.fc2")
    mapping.conv(f"{block}_project", f"{prefix}.conv3_1x1")


def _map_attention_block(mapping: TorchMapping, block: str, prefix: str, is_first: bool) -> None:
    attention = mapping.layer(f"{block}_attention")

    def by_kind(tensor: np.ndarray) -> np.ndarray:
        """(head, [q, k, v], width) → ([q, k, v], head, width), and the input's channels first."""
        split = tensor.reshape(attention.num_heads, 3, attention.head_dim, -1)
        return split.transpose(3, 1, 0, 2).reshape(-1, tensor.shape[0])

    # The first block halves the map between normalisation and attention.
    mapping.norm(f"{block}_norm1", f"{prefix}.norm1.norm" if is_first else f"{prefix}.norm1")
    mapping.tensor(f"{block}_attention.qkv", f"{prefix}.attn.qkv.weight", "kernel", layout=by_kind)
    mapping.tensor(f"{block}_attention.qkv", f"{prefix}.attn.qkv.bias", "bias", layout=by_kind)
    mapping.tensor(f"{block}_bias", f"{prefix}.attn.rel_pos.relative_position_bias_table", "table")
    mapping.ignore(f"{prefix}.attn.rel_pos.relative_position_index")
    mapping.dense(f"{block}_attention.projection", f"{prefix}.attn.proj")
    mapping.norm(f"{block}_norm2", f"{prefix}.norm2")
    mapping.dense(f"{block}_mlp_dense1", f"{prefix}.mlp.fc1")
    mapping.dense(f"{block}_mlp_dense2", f"{prefix}.mlp.fc2")
