"""The families against the original authors' implementations, weights and input given."""

import keras
import numpy as np
import pytest

import keras_hybrid as kh
from tests.goldens import Golden

TOLERANCE = 1e-5

# Parity file → registered model.
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
}


@pytest.mark.parametrize("golden_name", CASES)
def test_output_equals_the_original_implementation(golden_name):
    golden = Golden(golden_name)
    model = kh.create_model(CASES[golden_name], include_preprocessing=False)
    kh.convert.load_torch_weights(model, golden.weights)
    output = model.predict(golden.input, verbose=0)
    assert golden.error(output) <= TOLERANCE


def test_both_heads_of_conformer_equal_the_original_implementation():
    golden = Golden("Conformer_Ti_224")
    model = kh.create_model("conformer_ti", include_preprocessing=False)
    kh.convert.load_torch_weights(model, golden.weights)
    both = keras.Model(model.input, [model.get_layer("embedding").output, model.output])
    embedding, output = both.predict(golden.input, verbose=0)
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
    assert golden.error(model.predict(golden.input, verbose=0)) > 10 * TOLERANCE
