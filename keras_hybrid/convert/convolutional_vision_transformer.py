"""CvT: https://github.com/microsoft/CvT."""

from keras_hybrid.convert.mapping import TorchMapping


def map_embedding(mapping: TorchMapping, ours: str, theirs: str, *, norm: str) -> None:
    """Names of the authors' ``ConvEmbed``."""
    mapping.conv(f"{ours}_embedding_conv", f"{theirs}.patch_embed.proj")
    mapping.norm(f"{ours}_embedding_norm", f"{theirs}.patch_embed.{norm}")


def map_block(mapping: TorchMapping, ours: str, theirs: str) -> None:
    """Names of the authors' ``Block``."""
    mapping.norm(f"{ours}_norm1", f"{theirs}.norm1")
    for part, letter in (("query", "q"), ("key", "k"), ("value", "v")):
        convolution = f"{theirs}.attn.conv_proj_{letter}"
        mapping.conv(f"{ours}_attention.{part}.convolution", f"{convolution}.conv")
        mapping.norm(f"{ours}_attention.{part}.norm", f"{convolution}.bn")
        mapping.dense(f"{ours}_attention.{part}.linear", f"{theirs}.attn.proj_{letter}")
    mapping.dense(f"{ours}_attention.projection", f"{theirs}.attn.proj")
    mapping.norm(f"{ours}_norm2", f"{theirs}.norm2")
    mapping.dense(f"{ours}_mlp_dense1", f"{theirs}.mlp.fc1")
    mapping.dense(f"{ours}_mlp_dense2", f"{theirs}.mlp.fc2")


def map_weights(mapping: TorchMapping) -> None:
    """Names of the authors' ``ConvolutionalVisionTransformer``."""
    stages = mapping.count("stage{}_embedding_conv")
    for stage in range(stages):
        map_embedding(mapping, f"stage{stage}", f"stage{stage}", norm="norm")
        for i in range(mapping.count(f"stage{stage}_block{{}}_attention")):
            map_block(mapping, f"stage{stage}_block{i}", f"stage{stage}.blocks.{i}")
    mapping.tensor("class_token", f"stage{stages - 1}.cls_token", "token")
    mapping.norm("norm", "norm")
    mapping.dense("predictions", "head", optional=True)
