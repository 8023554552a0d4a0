"""KP-RPE: CVLface, https://github.com/mk-minchul/CVLface.

The code has no licence file at commit d3d09c9; the model cards on huggingface.co/minchul say MIT.

Their aligner is a model of its own: a checkpoint fits ``landmarks="given"`` or a Keras tensor, and
one of their plain ViT ``landmarks=None``.
"""

from keras_hybrid.convert.mapping import TorchMapping


def map_weights(mapping: TorchMapping) -> None:
    """Names of the authors' ``VisionTransformerWithKPRPE`` and ``VisionTransformer``."""
    mapping.conv("patch_embedding", "patch_embed.proj")
    mapping.tensor("position_embedding", "pos_embed", "embedding")
    for i in range(mapping.count("block{}_attention")):
        mapping.norm(f"block{i}_norm1", f"blocks.{i}.norm1")
        mapping.dense(f"block{i}_attention.qkv", f"blocks.{i}.attn.qkv")
        mapping.dense(f"block{i}_attention.projection", f"blocks.{i}.attn.proj")
        mapping.norm(f"block{i}_norm2", f"blocks.{i}.norm2")
        mapping.dense(f"block{i}_mlp_dense1", f"blocks.{i}.mlp.fc1")
        mapping.dense(f"block{i}_mlp_dense2", f"blocks.{i}.mlp.fc2")
    mapping.norm("norm", "norm")
    mapping.dense("feature_projection", "feature.0", optional=True)
    mapping.norm("feature_norm", "feature.1", optional=True)
    mapping.dense("embedding_projection", "feature.2", optional=True)
    mapping.norm("embedding_norm", "feature.3", optional=True)
    # Not optional: a plain ViT does not answer as one that was trained with the bias.
    if mapping.has("keypoint_linear"):
        mapping.dense("keypoint_linear", "keypoint_linear")
