"""Feature maps beyond what the registry-wide tests ask of every family."""

import keras
import pytest

import keras_hybrid as kh
from tests.cases import dtype_policy, shared_model, small_model, without_weights


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "resnet50",
            {
                "stride02": (112, 112, 64),
                "stride04": (56, 56, 256),
                "stride08": (28, 28, 512),
                "stride16": (14, 14, 1024),
                "stride32": (7, 7, 2048),
            },
        ),
        (
            "swin_tiny",
            {
                "stride04": (56, 56, 96),
                "stride08": (28, 28, 192),
                "stride16": (14, 14, 384),
                "stride32": (7, 7, 768),
            },
        ),
        ("botnet50_cifar", {"stride01": (32, 32, 256), "stride02": (16, 16, 512)}),
        (
            "facerec_small",
            {"stride02": (56, 56, 24), "stride04": (28, 28, 48), "stride08": (14, 14, 192)},
        ),
        ("cct_14_7x2", {"stride04": (56, 56, 64), "stride16": (14, 14, 384)}),
        ("vit_b16", {"stride16": (14, 14, 768)}),
    ],
)
def test_the_pyramid_is_that_of_the_paper(name, expected):
    with without_weights():
        features = kh.feature_model(kh.create_model(name))
    shapes = {endpoint: tuple(x.shape[1:]) for endpoint, x in features.output.items()}
    assert {endpoint: shapes[endpoint] for endpoint in expected} == expected
    assert features.name == f"{name}_features"


def test_chosen_endpoints_come_in_order_and_need_nothing_behind_them():
    model = shared_model("swin_*")
    features = kh.feature_model(model, endpoints=["stride08", "stride04"])
    assert list(features.output) == ["stride04", "stride08"]
    assert list(kh.feature_model(features).output) == ["stride04", "stride08"]
    early = kh.feature_model(model, ["stride04"])
    assert 0 < len(early.weights) < len(features.weights)
    assert {id(v) for v in early.variables} <= {id(v) for v in model.variables}


@pytest.mark.parametrize("endpoints", [["P3"], ["stride04", "stride4"], "stride04", []], ids=str)
def test_an_unknown_endpoint_is_told_the_known_ones(endpoints):
    with pytest.raises(ValueError, match=r"endpoints .*\['stride04', 'stride08'\], got"):
        kh.feature_model(shared_model("swin_*"), endpoints)


def test_a_model_without_endpoints_is_refused():
    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(2, 3)], name="mine")
    with pytest.raises(ValueError, match=r"'mine' has no endpoints.*a builder"):
        kh.feature_model(model)


def test_a_model_with_landmarks_as_second_input_keeps_both():
    features = kh.feature_model(small_model("kprpe_*", landmarks="given"))
    assert [x.shape[1:] for x in features.inputs] == [(16, 16, 3), (5, 2)]
    assert features.output["stride04"].shape == (None, 4, 4, 16)


def test_maps_have_the_compute_dtype_of_the_model():
    with dtype_policy("mixed_bfloat16"):
        model = small_model("vit_*")
    assert {x.dtype for x in kh.feature_model(model).output.values()} == {"bfloat16"}
