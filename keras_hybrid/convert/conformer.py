"""Conformer: https://github.com/pengzhiliang/Conformer."""

from keras_hybrid.convert.mapping import TorchMapping


def map_weights(mapping: TorchMapping) -> None:
    """Names of the authors' ``Conformer``, which counts blocks from 1."""
    mapping.conv("stem_conv", "conv1")
    mapping.norm("stem_norm", "bn1")
    mapping.conv("patch_embedding", "trans_patch_conv")
    mapping.tensor("class_token", "cls_token", "token")
    _map_bottleneck(mapping, "block0_bottleneck", "conv_1")
    _map_transformer(mapping, "block0", "trans_1")
    for i in range(1, mapping.count("block{}_attention")):
        ours, theirs = f"block{i}", f"conv_trans_{i + 1}"
        _map_bottleneck(mapping, f"{ours}_bottleneck", f"{theirs}.cnn_block")
        mapping.conv(f"{ours}_down_conv", f"{theirs}.squeeze_block.conv_project")
        mapping.norm(f"{ours}_down_norm", f"{theirs}.squeeze_block.ln")
        _map_transformer(mapping, ours, f"{theirs}.trans_block")
        mapping.conv(f"{ours}_up_conv", f"{theirs}.expand_block.conv_project")
        mapping.norm(f"{ours}_up_norm", f"{theirs}.expand_block.bn")
        _map_bottleneck(mapping, f"{ours}_fusion", f"{theirs}.fusion_block")
    mapping.norm("norm", "trans_norm")
    mapping.dense("predictions.convolution", "conv_cls_head", optional=True)
    mapping.dense("predictions.transformer", "trans_cls_head", optional=True)


def _map_bottleneck(mapping: TorchMapping, ours: str, theirs: str) -> None:
    for i in (1, 2, 3):
        mapping.conv(f"{ours}_conv{i}", f"{theirs}.conv{i}")
        mapping.norm(f"{ours}_norm{i}", f"{theirs}.bn{i}")
    if mapping.has(f"{ours}_shortcut_conv"):
        mapping.conv(f"{ours}_shortcut_conv", f"{theirs}.residual_conv")
        mapping.norm(f"{ours}_shortcut_norm", f"{theirs}.residual_bn")


def _map_transformer(mapping: TorchMapping, ours: str, theirs: str) -> None:
    mapping.norm(f"{ours}_norm1", f"{theirs}.norm1")
    mapping.dense(f"{ours}_attention.qkv", f"{theirs}.attn.qkv")
    mapping.dense(f"{ours}_attention.projection", f"{theirs}.attn.proj")
    mapping.norm(f"{ours}_norm2", f"{theirs}.norm2")
    mapping.dense(f"{ours}_mlp_dense1", f"{theirs}.mlp.fc1")
    mapping.dense(f"{ours}_mlp_dense2", f"{theirs}.mlp.fc2")
