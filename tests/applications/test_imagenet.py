"""weights="imagenet": from Keras's own files to Keras's own features, for images in [0, 255].

There is no network here: the files are written by ``keras.applications``, whose networks get
numbers that make every difference show, and Keras's downloads are answered with them.
"""

import pathlib

import keras
import numpy as np
import pytest

import keras_hybrid as kh
from tests.cases import predict, relative_error, without_weights

pytestmark = pytest.mark.any_backend

MODULES = {
    "EfficientNetB0": keras.applications.efficientnet,
    "EfficientNetV2S": keras.applications.efficientnet_v2,
    "MobileNetV2": keras.applications.mobilenet_v2,
    "ResNet50": keras.applications.resnet50,
}
ONE_STAGE = {"depths": (3,), "widths": (64,), "taps": (1,), "dim": 8, "num_heads": 2}
ATTENTION = {"depths": (3, 1), "widths": (64, 8), "num_heads": 2}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Return a function: network, with top or without → path of a file that Keras wrote."""
    folder, written = tmp_path_factory.mktemp("imagenet"), {}

    def write(network: str, top: bool, **arguments) -> pathlib.Path:
        if (network, top) not in written:
            keras.utils.set_random_seed(0)
            random = np.random.default_rng(0)
            model = getattr(keras.applications, network)(weights=None, include_top=top, **arguments)
            for layer in model.layers:
                if isinstance(layer, keras.layers.Normalization):
                    # As released: standard deviations where the layer wants variances.
                    statistics = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225], 0)
                    layer.set_weights([np.array(numbers) for numbers in statistics])
                elif isinstance(layer, keras.layers.BatchNormalization):
                    shape = layer.gamma.shape
                    limits = ((0.5, 1), (-0.1, 0.1), (-0.1, 0.1), (0.5, 1.5))
                    layer.set_weights([random.uniform(*limit, shape) for limit in limits])
                    if layer.name in ("conv1_bn", "bn_Conv1", "stem_bn"):
                        # Some channels of trained networks hardly vary: ε matters there.
                        variance = np.where(np.arange(*shape) % 8, layer.moving_variance, 1e-6)
                        layer.moving_variance.assign(variance)
                elif getattr(layer, "use_bias", False):
                    layer.bias.assign(random.uniform(-0.1, 0.1, layer.bias.shape))
            written[network, top] = folder / f"{network}_{top}.weights.h5"
            model.save_weights(written[network, top])
        return written[network, top]

    return write


@pytest.fixture
def downloads(files, monkeypatch):
    """Answer downloads with a network's files; return a function to say which network's."""
    asked = []

    def answer_for(network: str, **arguments) -> list:
        def get_file(fname, origin, **kwargs):
            top = "notop" not in fname and "no_top" not in fname
            asked.append((fname, origin, kwargs.get("file_hash")))
            return files(network, top, **arguments if top else {})

        monkeypatch.setattr("keras.src.utils.file_utils.get_file", get_file)
        return asked

    return answer_for


def photographs(shape) -> np.ndarray:
    return np.random.default_rng(1).uniform(0, 255, (2, *shape)).astype("float32")


@pytest.mark.parametrize(
    ("name", "arguments", "layer", "network", "their_layer", "shape"),
    [
        pytest.param(
            *("efficientnet_b0_face", {}, "top_activation", "EfficientNetB0", None, (33, 48, 3)),
            marks=pytest.mark.slow,
        ),
        (
            "efficientvit_face",
            {"depth": 1},
            "block2b_add",
            "EfficientNetB0",
            "block2b_add",
            (32, 48, 3),
        ),
        ("mobilenet_v2", {}, "head_relu6", "MobileNetV2", None, (96, 96, 3)),
        ("resnet50", {}, "stage4_block2_relu3", "ResNet50", None, (64, 48, 3)),
        (
            "resnet50_fct",
            {"stem": "imagenet", **ONE_STAGE},
            "stage1_block2_relu3",
            "ResNet50",
            "conv2_block3_out",
            (64, 48, 3),
        ),
        (
            "botnet50",
            ATTENTION,
            "stage1_block2_relu3",
            "ResNet50",
            "conv2_block3_out",
            (64, 48, 3),
        ),
        pytest.param(
            *("efficientnet_v2_s", {}, "top_activation", "EfficientNetV2S", None, (33, 48, 3)),
            marks=pytest.mark.slow,
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_features_are_those_of_keras_applications(
    name, arguments, layer, network, their_layer, shape, downloads
):
    asked = downloads(network)
    theirs = getattr(keras.applications, network)(
        weights="imagenet", include_top=False, input_shape=shape
    )
    if their_layer is not None:
        theirs = keras.Model(theirs.input, theirs.get_layer(their_layer).output)
    model = kh.create_model(name, weights="imagenet", input_shape=shape, classes=3, **arguments)
    ours = keras.Model(model.input, model.get_layer(layer).output)
    images = photographs(shape)
    expected = predict(theirs, MODULES[network].preprocess_input(images.copy()))
    assert relative_error(predict(ours, images), expected) <= 1e-5
    assert len(asked) == 2 and asked[0] == asked[1]
    if name.startswith("efficientnet_"):
        return
    # What the model was trained in is what its weights are loaded into again.
    with without_weights():
        again = kh.create_model(name, keras_trunk=True, input_shape=shape, classes=3, **arguments)
    configurations = ([x.get_config() for x in each.layers] for each in (again, model))
    assert next(configurations) == next(configurations)


def test_a_thousand_classes_are_imagenets(downloads):
    shape = (96, 96, 3)
    downloads("MobileNetV2", input_shape=shape)
    theirs = keras.applications.MobileNetV2(weights="imagenet", input_shape=shape)
    ours = kh.create_model(
        "mobilenet_v2", weights="imagenet", input_shape=shape, classifier_activation="softmax"
    )
    expected = predict(theirs, photographs(shape) / 127.5 - 1)
    np.testing.assert_allclose(predict(ours, photographs(shape)), expected, rtol=1e-4)


@pytest.mark.parametrize("name", ["efficientnet_b0", "mobilenet_v2", "resnet50"])
@pytest.mark.parametrize(
    ("arguments", "top"),
    [
        ({}, True),
        ({"classes": 3}, False),
        ({"classifier": "cosine"}, False),
        ({"embedding_dim": 8}, False),
        ({"include_top": False, "pooling": "native"}, False),
    ],
    ids=str,
)
def test_other_classifiers_start_anew(name, arguments, top, monkeypatch):
    class Asked(Exception):
        pass

    def builder(include_top, weights, **_):
        raise Asked(include_top, weights)

    for network in MODULES:
        monkeypatch.setattr(keras.applications, network, builder)
    with without_weights(), pytest.raises(Asked) as asked:
        kh.create_model(name, weights="imagenet", **arguments)
    assert asked.value.args == (top, "imagenet")


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("vit_ti16", {}, r"weights must be None or the path"),
        ("se_resnet50", {}, r"weights must be None or .*ResNet50's: .*squeeze-and-excitation"),
        ("resnet50", {"ceil_pooling": True}, "ceil_pooling"),
        ("resnet50", {"keras_trunk": False}, "keras_trunk=False"),
        ("resnet50", {"input_shape": (64, 64, 1), "include_preprocessing": False}, "3 colours"),
        ("resnet50_fct", {}, "stem='imagenet'"),
        ("botnet50", {"widths": (64, 128, 128, 512)}, "widths"),
        (
            "efficientnet_b0",
            {"pixel_mean": 127.5, "pixel_std": 127.5},
            "EfficientNetB0's: .*pixel_mean",
        ),
        ("efficientnet_b0", {"se_ratio": 0.0}, "squeeze-and-excitation"),
        ("efficientvit_face_small", {}, "swish"),
        ("mobilenet_v2", {"width": 0.9}, "a width of"),
    ],
)
def test_a_trunk_that_is_another_network_is_refused(name, arguments, message):
    with without_weights(), pytest.raises(ValueError, match=message):
        kh.create_model(name, weights="imagenet", **arguments)


def test_where_imagenet_is_accepted_the_message_says_so():
    with (
        without_weights(),
        pytest.raises(ValueError, match=r"weights must be None, 'imagenet' or the path.*'imagnet'"),
    ):
        kh.create_model("mobilenet_v2", weights="imagnet")
