"""The families against the original authors' implementations, weights and input given."""

import numpy as np
import pytest

import keras_hybrid as kh
from tests.goldens import Golden

TOLERANCE = 1e-5

# Face models' files end at the embedding.
EMBEDDING = {"include_top": False, "pooling": "native"}
# Parity file → registered model, with arguments if it takes any.
CASES = {
    "CCT_7_3x1": "cct_7_3x1",
    "CCT_14_7x2_224": "cct_14_7x2",
    "CVT_7_4_32": "cvt_7_4",
    "ViT_Lite_7_4_32": "vit_lite_7_4",
    "ViT_Ti16_224": "vit_ti16",
    "FaceRec_A1_L8": "facerec",
    "ViT_P8S8": ("vit_p8s8", EMBEDDING),
    "ViT_P12S8": ("vit_p12s8", EMBEDDING),
    "MobileFaceNet_112": ("mobilefacenet_insightface", EMBEDDING),
    "IResNet50_112": ("iresnet50", EMBEDDING),
    "MobileNetV2_100_112": ("mobilenet_v2", {"input_shape": (112, 112, 3)}),
}


@pytest.mark.parametrize("golden_name", CASES)
def test_output_equals_the_original_implementation(golden_name):
    golden = Golden(golden_name)
    case = CASES[golden_name]
    name, arguments = (case, {}) if isinstance(case, str) else case
    model = kh.create_model(name, include_preprocessing=False, **arguments)
    kh.convert.load_torch_weights(model, golden.weights)
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
    kh.convert.load_torch_weights(model, weights)
    assert golden.error(model.predict(golden.input, verbose=0)) > 10 * TOLERANCE
