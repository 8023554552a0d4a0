"""ATC: its authors published no code. Names are those of the specification's prototype.

Blocks with an MLP have CvT's names.
"""

from keras_hybrid.convert.convolutional_vision_transformer import map_block, map_embedding
from keras_hybrid.convert.mapping import TorchMapping


def map_weights(mapping: TorchMapping) -> None:
    """Names of the prototype."""
    stages = mapping.count("stage{}_embedding_conv")
    for stage in range(stages):
        ours, theirs = f"stage{stage}", f"b.stage{stage}"
        residual = f"{ours}_embedding_residual"
        is_residual = mapping.has(f"{residual}0_depthwise")
        map_embedding(mapping, ours, theirs, norm="n" if is_residual else "norm")
        if is_residual:
            for i in range(2):
                _map_separable(mapping, f"{residual}{i}", f"{theirs}.patch_embed.r.{i}")
        for i in range(mapping.count(f"{ours}_block{{}}_attention")):
            block = f"{ours}_block{i}"
            if mapping.has(f"{block}_feed_forward0_depthwise"):
                _map_convolutional_block(mapping, block, f"{theirs}.blocks.{i}")
            else:
                map_block(mapping, block, f"{theirs}.blocks.{i}")
    mapping.tensor("class_token", f"b.stage{stages - 1}.cls_token", "token")
    mapping.norm("norm", "b.norm")
    mapping.dense("predictions", "b.head", optional=True)


def _map_convolutional_block(mapping: TorchMapping, ours: str, theirs: str) -> None:
    mapping.norm(f"{ours}_norm1", f"{theirs}.n1")
    mapping.norm(f"{ours}_norm2", f"{theirs}.n2")
    for part in ("query", "key", "value"):
        mapping.conv(f"{ours}_attention.{part}.convolution", f"{theirs}.{part[0]}.0")
        mapping.norm(f"{ours}_attention.{part}.norm", f"{theirs}.{part[0]}.1")
        mapping.dense(f"{ours}_attention.{part}.linear", f"{theirs}.{part[0]}.2")
    mapping.dense(f"{ours}_attention.projection", f"{theirs}.o")
    for i, branch in enumerate("ab"):
        _map_separable(mapping, f"{ours}_feed_forward{i}", f"{theirs}.f.{branch}")


def _map_separable(mapping: TorchMapping, ours: str, theirs: str) -> None:
    mapping.conv(f"{ours}_depthwise", f"{theirs}.0")
    mapping.norm(f"{ours}_norm1", f"{theirs}.1")
    mapping.conv(f"{ours}_pointwise", f"{theirs}.3")
    if mapping.has(f"{ours}_norm2"):
        mapping.norm(f"{ours}_norm2", f"{theirs}.4")
