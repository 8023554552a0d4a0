"""Batch normalisation folded into the layer before it: same function, one set of weights."""

import pathlib

import keras
import numpy as np
import pytest
from keras import layers

import keras_hybrid as kh
from keras_hybrid.export.folding import fold_batch_normalization
from tests.export.export_cases import NEEDS, randomize, skip_without

DATA = pathlib.Path(__file__).resolve().parents[3] / "shared" / "data"
IMAGES = np.random.default_rng(3).uniform(0, 1, (4, 9, 9, 3)).astype("float32")
LINEAR = {
    "convolution": lambda: layers.Conv2D(8, 3),
    "convolution_without_bias": lambda: layers.Conv2D(8, 3, strides=2, use_bias=False),
    "grouped_convolution": lambda: layers.Conv2D(9, 3, groups=3),
    "depthwise": lambda: layers.DepthwiseConv2D(3, depth_multiplier=2),
    "depthwise_without_bias": lambda: layers.DepthwiseConv2D(9, use_bias=False),
    "dense": lambda: layers.Dense(8),
}
NORMALIZATIONS = {
    "scaled_and_centred": {},
    "unscaled": {"scale": False},
    "neither": {"scale": False, "center": False, "epsilon": 1e-5},
}


def predictions(model):
    return keras.tree.flatten(model.predict(IMAGES, verbose=0))


def build(*stack, image=None):
    image = keras.Input((9, 9, 3)) if image is None else image
    x = image
    for layer in stack:
        x = layer(x)
    return randomize(keras.Model(image, x))


def sequential():
    return randomize(
        keras.Sequential(
            [keras.Input((9, 9, 3)), LINEAR["depthwise"](), layers.BatchNormalization()]
        )
    )


def nested_sequential():
    stack = [LINEAR["convolution"](), layers.BatchNormalization(), layers.ReLU()]
    return build(keras.Sequential(stack), LINEAR["dense"](), layers.BatchNormalization())


def nested():
    inner = build(LINEAR["convolution"](), layers.BatchNormalization())
    return build(inner, layers.ReLU(), LINEAR["dense"](), layers.BatchNormalization())


@pytest.mark.parametrize(
    ("model", "count"),
    [
        pytest.param(
            lambda linear=linear, options=options: build(
                linear(), layers.BatchNormalization(**options)
            ),
            1,
            id=f"{name}-{kind}",
        )
        for name, linear in LINEAR.items()
        for kind, options in NORMALIZATIONS.items()
    ]
    + [
        pytest.param(
            lambda: build(layers.Dense(8), kh.layers.BatchNormalization()), 1, id="of_our_own"
        ),
        pytest.param(sequential, 1, id="sequential"),
        pytest.param(nested_sequential, 2, id="nested_sequential"),
        pytest.param(nested, 2, id="nested"),
    ],
)
@pytest.mark.parametrize("reloaded", [False, True], ids=["", "reloaded"])
def test_a_folded_normalization_adds_an_offset_and_the_function_stays(
    model, count, reloaded, tmp_path
):
    model = model()
    if reloaded:  # as in an export
        model.save(tmp_path / "model.keras")
        model = keras.saving.load_model(tmp_path / "model.keras")
    before = predictions(model)
    assert fold_batch_normalization(model) == count
    for ours, theirs in zip(predictions(model), before, strict=True):
        assert np.abs(ours - theirs).max() <= 2e-6 * np.abs(theirs).max()
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization):
            shape = (1, 1, 1, layer.input.shape[-1])
            zero, one = (
                keras.ops.convert_to_numpy(layer(np.full(shape, value, "float32")))
                for value in (0.0, 1.0)
            )
            np.testing.assert_allclose(one - zero, 1, atol=1e-5)


class Doubled(layers.Conv2D):
    def call(self, inputs):
        return 2 * super().call(inputs)


class Shifted(layers.BatchNormalization):
    def call(self, inputs, training=None, mask=None):
        return 1 + super().call(inputs, training=training, mask=mask)


class OurShifted(kh.layers.BatchNormalization):
    def call(self, inputs, training=None, mask=None):
        return 1 + super().call(inputs, training=training, mask=mask)


def adapted():
    linear = layers.Dense(8)
    model = build(linear, layers.BatchNormalization())
    linear.enable_lora(2)
    return model


def shared():
    linear, image = LINEAR["convolution"](), keras.Input((9, 9, 3))
    x = layers.BatchNormalization()(linear(image))
    return randomize(keras.Model(image, x + linear(2 * image)))


def branched():
    image = keras.Input((9, 9, 3))
    linear = LINEAR["convolution"]()(image)
    return randomize(keras.Model(image, layers.BatchNormalization()(linear) + linear))


def also_an_output():
    image = keras.Input((9, 9, 3))
    linear = LINEAR["convolution"]()(image)
    return randomize(keras.Model(image, [layers.BatchNormalization()(linear), linear]))


def normalization_used_twice():
    image, normalization = keras.Input((9, 9, 3)), layers.BatchNormalization()
    x = normalization(layers.Conv2D(8, 3)(image))
    return randomize(keras.Model(image, normalization(layers.Conv2D(8, 3, padding="same")(x))))


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(lambda: build(layers.BatchNormalization()), id="no_layer_before"),
        pytest.param(
            lambda: build(layers.Conv2D(8, 3, activation="relu"), layers.BatchNormalization()),
            id="an_activation_between",
        ),
        pytest.param(
            lambda: build(layers.Conv2D(8, 3), layers.BatchNormalization(axis=1)), id="other_axis"
        ),
        pytest.param(lambda: build(Doubled(8, 3), layers.BatchNormalization()), id="a_subclass"),
        pytest.param(lambda: build(layers.Conv2D(8, 3), Shifted()), id="other_normalization"),
        pytest.param(lambda: build(layers.Conv2D(8, 3), OurShifted()), id="other_of_our_own"),
        pytest.param(adapted, id="a_layer_with_lora"),
        pytest.param(shared, id="a_shared_layer"),
        pytest.param(branched, id="another_branch"),
        pytest.param(also_an_output, id="also_an_output"),
        pytest.param(normalization_used_twice, id="normalization_used_twice"),
    ],
)
def test_what_cannot_be_folded_is_left_as_it_is(model):
    model = model()
    before = [keras.ops.convert_to_numpy(variable) for variable in model.variables]
    assert fold_batch_normalization(model) == 0
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(variable), value)


@keras.saving.register_keras_serializable("test_folding")
class Again(layers.Layer):
    """Applies a layer of the model once more, which the model's graph does not show."""

    def __init__(self, layer, **arguments):
        super().__init__(**arguments)
        self.layer = layer

    def call(self, inputs):
        return self.layer(keras.ops.relu(inputs))

    def get_config(self):
        return super().get_config() | {"layer": keras.saving.serialize_keras_object(self.layer)}

    @classmethod
    def from_config(cls, config):
        return cls(keras.saving.deserialize_keras_object(config.pop("layer")), **config)


@pytest.mark.parametrize("quantization", [None, "float16"])
def test_a_layer_with_other_work_than_the_graph_shows_is_exported_as_it_is(quantization, tmp_path):
    skip_without(*NEEDS["to_litert"])
    linear = layers.Conv2D(3, 3, padding="same")
    model = build(linear, layers.BatchNormalization(), Again(linear), layers.Flatten())
    folder = tmp_path / "runs [2]"  # which TensorFlow would take for a pattern
    report = kh.export.to_litert(model, folder / "model.tflite", quantization, input_range=(0, 1))
    assert report.relative_difference < (1e-5 if quantization is None else 1e-2)
    assert [file.name for file in folder.iterdir()] == ["model.tflite"]
    with pytest.raises(ValueError, match=r"TensorFlow takes \*, \?, \[ and \] in the path"):
        kh.export.to_saved_model(model, folder / "saved")


@pytest.mark.slow
@pytest.mark.any_backend
def test_a_published_network_keeps_its_embeddings_in_eight_bits(tmp_path):
    """The smallest cosine of these was 0.967 before folding, and the bound is 0.99."""
    skip_without(*NEEDS["to_litert"], "torch")
    checkpoint, faces = DATA / "pretrained/mobilefacenet_relu6.pth", DATA / "celeba_faces_112.zip"
    for path in (checkpoint, faces):
        if not path.exists():
            pytest.skip(f"{path} is not here")
    model = kh.create_model("mobilefacenet_relu6", include_top=False, pooling="native")
    kh.convert.load_torch_weights(model, checkpoint)
    source = kh.data.ZipSource(faces)
    photographs = np.stack([source.read(i * (len(source) // 8)) for i in range(8)])
    report = kh.export.to_litert(
        model,
        tmp_path / "model.tflite",
        quantization="dynamic",
        representative_data=photographs,
        output="embedding",
    )
    assert report.samples == 8 and report.cosine >= 0.99
