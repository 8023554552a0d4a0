"""CCT, CVT and ViT-Lite: https://github.com/SHI-Labs/Compact-Transformers (Apache-2.0)."""

from keras_hybrid.convert.mapping import TorchMapping


def map_weights(mapping: TorchMapping) -> None:
    """Names of the authors' ``CCT``, ``CVT`` and ``ViTLite``."""
    for i in range(mapping.count("tokenizer{}_conv")):
        mapping.conv(f"tokenizer{i}_conv", f"tokenizer.conv_layers.{i}.0")
    if mapping.has("patch_embedding"):
        mapping.conv("patch_embedding", "tokenizer.conv_layers.0.0")
    if mapping.has("class_token"):
        mapping.tensor("class_token", "classifier.class_emb", "token")
    mapping.tensor("position_embedding", "classifier.positional_emb", "embedding")
    for i in range(mapping.count("block{}_attention")):
        prefix = f"classifier.blocks.{i}"
        mapping.norm(f"block{i}_norm1", f"{prefix}.pre_norm")
        mapping.dense(f"block{i}_attention.qkv", f"{prefix}.self_attn.qkv")
        mapping.dense(f"block{i}_attention.projection", f"{prefix}.self_attn.proj")
        mapping.norm(f"block{i}_norm2", f"{prefix}.norm1")
        mapping.dense(f"block{i}_mlp_dense1", f"{prefix}.linear1")
        mapping.dense(f"block{i}_mlp_dense2", f"{prefix}.linear2")
    mapping.norm("norm", "classifier.norm")
    if mapping.has("sequence_pooling"):
        mapping.dense("sequence_pooling.score", "classifier.attention_pool")
    mapping.dense("predictions", "classifier.fc", optional=True)
