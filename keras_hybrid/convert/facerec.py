"""FaceRec: no code was published; these are the names of a PyTorch prototype of our reading."""

from keras_hybrid.convert.mapping import TorchMapping


def map_weights(mapping: TorchMapping) -> None:
    """Names of the prototype."""
    mapping.dense("patch_embedding", "emb")
    if mapping.has("convolutional_attention"):
        for i in range(len(mapping.layer("patch_convolutions").convolutions)):
            mapping.conv(f"patch_convolutions.convolutions.{i}", f"conv.{3 * i}")
        mapping.dense("convolutional_attention.query", "wq")
        mapping.dense("convolutional_attention.key", "wk")
    for i in range(mapping.count("block{}_attention")):
        mapping.norm(f"block{i}_norm1", f"blocks.{i}.n1")
        mapping.dense(f"block{i}_attention.qkv", f"blocks.{i}.qkv")
        mapping.dense(f"block{i}_attention.projection", f"blocks.{i}.o")
        mapping.norm(f"block{i}_norm2", f"blocks.{i}.n2")
        mapping.dense(f"block{i}_mlp_dense1", f"blocks.{i}.f.0")
        mapping.dense(f"block{i}_mlp_dense2", f"blocks.{i}.f.2")
    mapping.norm("norm", "norm")
    mapping.dense("sequence_pooling.score", "pool")
    mapping.tensor("predictions", "W", "centers", optional=True)
