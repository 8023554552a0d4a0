"""The families against the original authors' implementations, weights and input given."""

import keras
import numpy as np
import pytest

import keras_hybrid as kh
from keras_hybrid.applications.botnet import BottleneckAttention
from tests.cases import predict
from tests.goldens import Golden

TOLERANCE = 1e-5

AT_112 = {"input_shape": (112, 112, 3)}
SAN_AT_64 = {"input_shape": (64, 64, 3), "classes": 10, "kernel_sizes": (3,) * 5}
# Face models' files end at the embedding.
EMBEDDING = {"include_top": False, "pooling": "native"}

# Parity file → registered model, or (registered model, arguments of its builder).
CASES = {
    "ATC_H2_1_1_1_": "atc_3",
    "ATC_H2_Res_1_1_1_": "atc_3_res",
    "CCT_7_3x1": "cct_7_3x1",
    "CCT_14_7x2_224": "cct_14_7x2",
    "CVT_7_4_32": "cvt_7_4",
    "CvT_13_32_100cls": "cvt_13_32",
    "ViT_Lite_7_4_32": "vit_lite_7_4",
    "ViT_Ti16_224": "vit_ti16",
    "FaceRec_A1_L8": "facerec",
    "ResNet50_112": ("resnet50", AT_112),
    "ResNet50_CIFAR": "resnet50_cifar",
    "ResNet_FCT_FCT_BN": "resnet50_fct",
    "ResNet_FCT_FCT_LN": "resnet50_fct_ln",
    "SAN10_pair_64_10cls_k3": ("san10_pairwise", SAN_AT_64),
    "SAN10_patch_64_10cls_k3_gain05": ("san10_patchwise", SAN_AT_64),
    "pairwise_patchwise_baseline_0": "san_baseline_pairwise",
    "pairwise_patchwise_baseline_1_gain07": "san_baseline_patchwise",
    "pairwise_patchwise_proposed_0": "san_proposed_pairwise",
    "pairwise_patchwise_proposed_1_gain05": "san_proposed_patchwise",
    "SEResNet50_timm_112": ("se_resnet50", AT_112),
    "SEResNet50_legacy_112": (
        "se_resnet50",
        {**AT_112, "stride_in_first": True, "ceil_pooling": True},
    ),
    "Swin_T_224": "swin_tiny",
    "ConViT_Ti_224": "convit_ti",
    "CoAtNet_0_224": "coatnet_0",
    "Astroformer_0_224": "astroformer_0",
    "NAT_Mini_224": "nat_mini",
    "KPRPE_small": ("kprpe_vit_small", {**EMBEDDING, "landmarks": "given"}),
    "ViT_P8S8": ("vit_p8s8", EMBEDDING),
    "ViT_P12S8": ("vit_p12s8", EMBEDDING),
    "MobileFaceNet_112": ("mobilefacenet_insightface", EMBEDDING),
    "IResNet50_112": ("iresnet50", EMBEDDING),
    "EffNet_B0_112_pad_112_": ("efficientnet_b0_face", EMBEDDING),
    "EfficientNetV2_S_tf_128": ("efficientnet_v2_s", {"input_shape": (128, 128, 3)}),
    "MobileNetV2_100_112": ("mobilenet_v2", {"input_shape": (112, 112, 3)}),
}


@pytest.mark.any_backend  # tiny models of all families embed alike on each: test_registry.py
@pytest.mark.parametrize("golden_name", CASES)
def test_output_equals_the_original_implementation(golden_name):
    golden = Golden(golden_name)
    case = CASES[golden_name]
    name, arguments = (case, {}) if isinstance(case, str) else case
    model = kh.create_model(name, include_preprocessing=False, **arguments)
    kh.convert.load_torch_weights(model, golden.weights)
    inputs = [golden.input, *golden.extra] if golden.extra else golden.input
    assert golden.error(predict(model, inputs)) <= TOLERANCE


@pytest.mark.parametrize(
    ("golden_name", "scale_position"),
    [("BoTNet_MHSA_512_14x14_scaled", True), ("BoTNet_MHSA_512_14x14", False)],
)
def test_bottleneck_attention_equals_the_original_implementation(golden_name, scale_position):
    golden = Golden(golden_name)
    layer = BottleneckAttention(4, scale_position)
    layer.build(golden.input.shape)
    assert layer.count_params() == golden.spec["param_count"]
    layer.qkv.kernel.assign(golden.weights["qkv.weight"][:, :, 0, 0].T)
    layer.height_table.assign(golden.weights["pos_embed.height_rel"])
    layer.width_table.assign(golden.weights["pos_embed.width_rel"])
    output = keras.ops.convert_to_numpy(layer(golden.input))
    assert golden.error(output) <= TOLERANCE


@pytest.mark.any_backend
def test_both_heads_of_conformer_equal_the_original_implementation():
    golden = Golden("Conformer_Ti_224")
    model = kh.create_model("conformer_ti", include_preprocessing=False)
    kh.convert.load_torch_weights(model, golden.weights)
    both = keras.Model(model.input, [model.get_layer("embedding").output, model.output])
    embedding, output = predict(both, golden.input)
    heads = model.get_layer("predictions").heads(keras.ops.convert_to_tensor(embedding))
    heads = np.stack([keras.ops.convert_to_numpy(head) for head in heads])
    assert golden.error(heads) <= TOLERANCE
    for ours, theirs in zip(heads, golden.output.reshape(heads.shape), strict=True):
        assert np.linalg.norm(ours - theirs) <= TOLERANCE * np.linalg.norm(theirs)
    np.testing.assert_allclose(output, heads.sum(axis=0), atol=1e-4)


def test_a_wrong_epsilon_or_head_order_would_be_noticed():
    """The parity test has teeth: exchanging two heads' queries moves the output."""
    golden = Golden("ViT_Ti16_224")
    weights = dict(golden.weights)
    qkv = weights["blocks.0.attn.qkv.weight"].copy()
    qkv[:128] = np.roll(qkv[:128], 64, axis=0)
    weights["blocks.0.attn.qkv.weight"] = qkv
    model = kh.create_model("vit_ti16", include_preprocessing=False)
    kh.convert.load_torch_weights(model, weights)
    assert golden.error(predict(model, golden.input)) > 10 * TOLERANCE
