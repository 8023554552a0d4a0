"""The families against the original authors' implementations, weights and input given."""

import numpy as np
import pytest

import keras_hybrid as kh
from tests.goldens import Golden, assign

TOLERANCE = 1e-5


def _assign_norm(model, name, weights, prefix):
    assign(model.get_layer(name), weights[f"{prefix}.weight"], weights[f"{prefix}.bias"])


def _assign_dense(model, name, weights, prefix):
    assign(model.get_layer(name), weights[f"{prefix}.weight"], weights[f"{prefix}.bias"])


def _depth(model):
    return sum(isinstance(x, kh.layers.MultiHeadSelfAttention) for x in model.layers)


def load_compact(model, weights):
    names = {layer.name for layer in model.layers}
    for i in range(2):
        if f"tokenizer{i}_conv" in names:
            weight = weights[f"tokenizer.conv_layers.{i}.0.weight"]
            assign(model.get_layer(f"tokenizer{i}_conv"), weight)
    if "patch_embedding" in names:
        _assign_dense(model, "patch_embedding", weights, "tokenizer.conv_layers.0.0")
    if "class_token" in names:
        assign(model.get_layer("class_token"), weights["classifier.class_emb"])
    assign(model.get_layer("position_embedding"), weights["classifier.positional_emb"])
    for i in range(_depth(model)):
        prefix = f"classifier.blocks.{i}"
        _assign_norm(model, f"block{i}_norm1", weights, f"{prefix}.pre_norm")
        _assign_norm(model, f"block{i}_norm2", weights, f"{prefix}.norm1")
        assign(
            model.get_layer(f"block{i}_attention"),
            weights[f"{prefix}.self_attn.qkv.weight"],
            weights[f"{prefix}.self_attn.proj.weight"],
            weights[f"{prefix}.self_attn.proj.bias"],
        )
        _assign_dense(model, f"block{i}_mlp_dense1", weights, f"{prefix}.linear1")
        _assign_dense(model, f"block{i}_mlp_dense2", weights, f"{prefix}.linear2")
    _assign_norm(model, "norm", weights, "classifier.norm")
    if "sequence_pooling" in names:
        _assign_dense(model, "sequence_pooling", weights, "classifier.attention_pool")
    _assign_dense(model, "predictions", weights, "classifier.fc")


def load_vit(model, weights):
    _assign_dense(model, "patch_embedding", weights, "patch_embed.proj")
    assign(model.get_layer("class_token"), weights["cls_token"])
    assign(model.get_layer("position_embedding"), weights["pos_embed"])
    for i in range(_depth(model)):
        prefix = f"blocks.{i}"
        _assign_norm(model, f"block{i}_norm1", weights, f"{prefix}.norm1")
        _assign_norm(model, f"block{i}_norm2", weights, f"{prefix}.norm2")
        assign(
            model.get_layer(f"block{i}_attention"),
            *(weights[f"{prefix}.attn.{n}"] for n in ("qkv.weight", "qkv.bias")),
            *(weights[f"{prefix}.attn.{n}"] for n in ("proj.weight", "proj.bias")),
        )
        _assign_dense(model, f"block{i}_mlp_dense1", weights, f"{prefix}.mlp.fc1")
        _assign_dense(model, f"block{i}_mlp_dense2", weights, f"{prefix}.mlp.fc2")
    _assign_norm(model, "norm", weights, "norm")
    _assign_dense(model, "predictions", weights, "head")


def load_facerec(model, weights):
    _assign_dense(model, "patch_embedding", weights, "emb")
    convolutions = [f"conv.{i}.{kind}" for i in (0, 3, 6) for kind in ("weight", "bias")]
    assign(model.get_layer("patch_convolutions"), *(weights[name] for name in convolutions))
    products = [f"{name}.{kind}" for name in ("wq", "wk") for kind in ("weight", "bias")]
    assign(model.get_layer("convolutional_attention"), *(weights[name] for name in products))
    for i in range(_depth(model)):
        prefix = f"blocks.{i}"
        _assign_norm(model, f"block{i}_norm1", weights, f"{prefix}.n1")
        _assign_norm(model, f"block{i}_norm2", weights, f"{prefix}.n2")
        assign(
            model.get_layer(f"block{i}_attention"),
            *(weights[f"{prefix}.{n}"] for n in ("qkv.weight", "qkv.bias", "o.weight", "o.bias")),
        )
        _assign_dense(model, f"block{i}_mlp_dense1", weights, f"{prefix}.f.0")
        _assign_dense(model, f"block{i}_mlp_dense2", weights, f"{prefix}.f.2")
    _assign_norm(model, "norm", weights, "norm")
    _assign_dense(model, "sequence_pooling", weights, "pool")
    assign(model.get_layer("predictions"), weights["W"], transpose=False)


CASES = {
    "CCT_7_3x1": ("cct_7_3x1", load_compact),
    "CCT_14_7x2_224": ("cct_14_7x2", load_compact),
    "CVT_7_4_32": ("cvt_7_4", load_compact),
    "ViT_Lite_7_4_32": ("vit_lite_7_4", load_compact),
    "ViT_Ti16_224": ("vit_ti16", load_vit),
    "FaceRec_A1_L8": ("facerec", load_facerec),
}


@pytest.mark.parametrize("golden_name", CASES)
def test_output_equals_the_original_implementation(golden_name):
    golden = Golden(golden_name)
    model_name, load = CASES[golden_name]
    model = kh.create_model(model_name, include_preprocessing=False)
    load(model, golden.weights)
    output = model.predict(golden.input, verbose=0)
    assert golden.error(output) <= TOLERANCE


def test_a_wrong_epsilon_or_head_order_would_be_noticed():
    """The parity test has teeth: exchanging two heads' queries moves the output."""
    golden = Golden("ViT_Ti16_224")
    weights = dict(golden.weights)
    qkv = weights["blocks.0.attn.qkv.weight"].copy()
    qkv[:128] = np.roll(qkv[:128], 64, axis=0)
    weights["blocks.0.attn.qkv.weight"] = qkv
    model = kh.create_model("vit_ti16", include_preprocessing=False)
    load_vit(model, weights)
    assert golden.error(model.predict(golden.input, verbose=0)) > 10 * TOLERANCE
