"""What export refuses, with which words, before any conversion starts."""

import importlib.util
import json
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import layers

import keras_hybrid as kh
from keras_hybrid import export
from keras_hybrid.export import preparation
from keras_hybrid.export import report as reports
from tests.cases import small_model
from tests.export.export_cases import IMAGE_SHAPE, NEEDS, hybrid_network, skip_without

pytestmark = pytest.mark.any_backend

EXPORTS = [("to_saved_model", "out"), ("to_litert", "out.tflite"), ("to_onnx", "out.onnx")]


@pytest.fixture(autouse=True)
def all_dependencies_present(monkeypatch):
    """Arguments are refused alike wherever the converters are installed or not."""
    found = importlib.util.find_spec
    names = {name for needed in NEEDS.values() for name in needed}
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: object() if name in names else found(name, *rest),
    )


def test_importing_export_imports_no_converter():
    program = (
        "import sys, keras\n"
        "before = set(sys.modules)\n"
        "import keras_hybrid.export\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "assert not new & {'tensorflow', 'ai_edge_litert', 'jax2onnx', 'onnx', 'onnxruntime'}, new"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize(("function", "name"), EXPORTS)
def test_a_missing_dependency_is_one_sentence_with_the_command(
    function, name, model, tmp_path, monkeypatch
):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None)
    with pytest.raises(ImportError, match=r'pip install "keras-hybrid\[export\]"') as caught:
        getattr(export, function)(model, tmp_path / name)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("function", "name", "options", "message"),
    [
        ("to_litert", "out.onnx", {}, r"must end in '\.tflite'"),
        ("to_onnx", "out", {}, r"must end in '\.onnx'"),
        ("to_saved_model", "out.tflite", {}, "is a folder"),
        ("to_litert", "out.tflite", {"quantization": "int4"}, "'int4'"),
        ("to_litert", "out.tflite", {"quantization": "int8"}, "about a hundred images"),
        (
            "to_litert",
            "out.tflite",
            {"quantization": "int8_cpu"},
            "quantization='int8_cpu' needs representative_data",
        ),
        ("to_litert", "out.tflite", {"input_dtype": "int8"}, "input_dtype"),
        ("to_litert", "out.tflite", {"batch_size": 0}, "batch_size"),
        ("to_litert", "out.tflite", {"batch_size": True}, "batch_size.*True"),
        ("to_onnx", "out.onnx", {"labels": "abcdefg"}, "labels must be a seq.*str 'abcdefg'"),
        ("to_onnx", "out.onnx", {"import_modules": "mine"}, "import_modules must be.*'mine'"),
        ("to_litert", "out.tflite", {"input_dtype": "uint8", "input_range": (0, 1)}, "0, 255"),
        ("to_onnx", "out.onnx", {"input_range": (1, 0)}, r"smaller one first, received \(1, 0\)"),
        ("to_saved_model", "out", {"input_range": (0, 1, 2)}, "input_range must be two numbers"),
        ("to_litert", "out.tflite", {"input_range": (0, np.inf)}, "input_range must be two"),
        ("to_onnx", "out.onnx", {"output": "logits"}, "'logits'"),
        ("to_onnx", "out.onnx", {"output": "cosines"}, "Dense, puts out logits"),
        ("to_onnx", "out.onnx", {"labels": ["a", "b"]}, r"names 2 classes.*shape \(7,\)"),
        (
            "to_saved_model",
            "out",
            {"output": "embedding", "labels": list("0123456789abcdefghijklmn")},
            "names 24 classes; the exported embedding",
        ),
        (
            "to_litert",
            "out.tflite",
            {"quantization": "int8", "representative_data": np.zeros((2, 8, 8, 3))},
            r"shape \(16, 20, 3\)",
        ),
        (
            "to_litert",
            "out.tflite",
            {"input_dtype": "uint8", "representative_data": np.full((2, *IMAGE_SHAPE), -1.0)},
            r"values in input_range \[0, 255\], received values in \[-1, -1\]",
        ),
    ],
)
def test_a_wrong_argument_is_named(function, name, options, message, model, tmp_path):
    with pytest.raises(ValueError, match=message):
        getattr(export, function)(model, tmp_path / name, **options)
    assert not list(tmp_path.iterdir())


def images_between(low, high, dtype="float32"):
    return np.linspace(low, high, 2 * np.prod(IMAGE_SHAPE)).reshape(2, *IMAGE_SHAPE).astype(dtype)


def calibrate(model, folder, images, input_range):
    options = {"representative_data": images, "input_range": input_range}
    export.to_litert(model, folder / "out.tflite", quantization="int8", **options)


@pytest.mark.parametrize(
    ("images", "input_range", "message"),
    [
        (images_between(0, 1), (0, 255), r"fill input_range \[0, 255\].* values in \[0, 1\]"),
        (images_between(-1, 1), (0, 255), r"fill input_range .* values in \[-1, 1\]"),
        (images_between(7, 7), (0, 255), r"fill input_range .* values in \[7, 7\]"),
        (images_between(0, 255), (-1, 1), r"values in input_range \[-1, 1\].* in \[0, 255\]"),
        (images_between(0, 255, "uint8"), (0, 1), r"values in input_range \[0, 1\]"),
        (images_between(-1, 1), (0, 1), r"values in input_range \[0, 1\].* in \[-1, 1\]"),
        (images_between(0, np.nan), (0, 255), r"values in input_range .* in \[nan, nan\]"),
    ],
)
def test_representative_images_of_another_range_are_refused(
    images, input_range, message, model, tmp_path
):
    with pytest.raises(ValueError, match=f"representative_data must (have )?{message}"):
        calibrate(model, tmp_path, images, input_range)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("images", "input_range"),
    [
        (images_between(0, 255, "uint8"), (0, 255)),
        (images_between(90, 120), (0, 255)),  # fog
        (images_between(-12, 262), (0, 255)),  # cubic interpolation
        (images_between(-2.12, 2.64), (-2.2, 2.7)),
    ],
)
def test_representative_images_may_fill_the_range_as_photographs_do(
    images, input_range, model, tmp_path, monkeypatch
):
    class StopHereError(RuntimeError):
        pass

    def convert(job, folder, backend):
        np.testing.assert_array_equal(np.load(job["representative_data"]), images)
        raise StopHereError(json.loads(job["metadata"])["input"]["value_range"])

    monkeypatch.setattr(export.formats, "run_conversion", convert)
    with pytest.raises(StopHereError) as caught:
        calibrate(model, tmp_path, images, input_range)
    assert caught.value.args == (list(input_range),)


def test_a_batch_size_may_be_numpys(model, tmp_path, monkeypatch):
    class StopHereError(RuntimeError):
        pass

    def convert(job, folder, backend):
        raise StopHereError(type(job["batch_size"]), json.loads(job["metadata"])["input"]["shape"])

    monkeypatch.setattr(export.formats, "run_conversion", convert)
    with pytest.raises(StopHereError) as caught:
        export.to_litert(model, tmp_path / "out.tflite", batch_size=np.int64(2))
    assert caught.value.args == (int, [2, *IMAGE_SHAPE])


def compare(actual, expected):
    arrays = [[np.array([values]) for values in outputs] for outputs in (actual, expected)]
    return export.formats._compare(*arrays, 0.01, "onnx")


def test_every_output_is_judged_by_its_own_scale():
    with pytest.raises(export.ExportError, match=r"by 0\.02, 0\.2 of the largest value of that"):
        compare([[100.0, 0.0], [0.12]], [[100.0, 0.0], [0.1]])
    assert compare([[100.5], [0.1]], [[100.0], [0.1]]) == (0.5, 100.0)
    found = compare([[100.1], [0.1005]], [[100.0], [0.1]])  # furthest off for its size
    assert found == pytest.approx((0.0005, 0.1))
    # Zeros have no scale of their own.
    assert compare([[100.0], [0.5]], [[100.0], [0.0]]) == (0.5, 100.0)
    assert compare([[0.0], [0.0]], [[0.0], [0.0]]) == (0.0, 0.0)


def test_a_folder_that_is_no_saved_model_is_left_alone(model, tmp_path):
    (tmp_path / "thesis.txt").write_text("irreplaceable")
    with pytest.raises(ValueError, match="not a SavedModel"):
        export.to_saved_model(model, tmp_path)
    assert (tmp_path / "thesis.txt").is_file()


def test_a_saved_model_with_other_files_in_its_folder_is_left_alone(model, tmp_path):
    (tmp_path / "saved_model.pb").touch()
    (tmp_path / "variables").mkdir()
    (tmp_path / "face.tflite").write_text("irreplaceable")
    with pytest.raises(ValueError, match=r"holds what is not of a SavedModel: face\.tflite"):
        export.to_saved_model(model, tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


def test_what_was_there_comes_back_when_the_exchange_is_interrupted(tmp_path, monkeypatch):
    made, target = tmp_path / "made", tmp_path / "target"
    for folder, text in ((made, "new"), (target, "former")):
        folder.mkdir()
        (folder / "saved_model.pb").write_text(text)
    rename = type(made).rename

    def interrupted(self, other):
        if self == made:
            raise KeyboardInterrupt
        return rename(self, other)

    monkeypatch.setattr(type(made), "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export.formats._put_in_place(made, target, tmp_path)
    assert (target / "saved_model.pb").read_text() == "former"


def two_inputs():
    first, second = keras.Input(IMAGE_SHAPE), keras.Input(IMAGE_SHAPE)
    return keras.Model([first, second], layers.Add()([first, second]))


def any_size():
    image = keras.Input((None, None, 3))
    return keras.Model(image, layers.Conv2D(2, 3)(image))


def channels_first():
    image = keras.Input((3, 8, 8))
    return keras.Model(
        image, layers.GlobalAveragePooling2D(data_format="channels_first", name="pool")(image)
    )


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (two_inputs, "one input"),
        (any_size, "fixed size"),
        (channels_first, "'pool' has data_format='channels_first'"),
        (keras.Sequential, "no symbolic inputs"),
    ],
)
def test_a_model_that_no_format_can_take_is_refused(build, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        export.to_onnx(build(), tmp_path / "out.onnx")
    assert not list(tmp_path.iterdir())


def test_a_quantized_keras_model_is_refused(tmp_path):
    image = keras.Input((4, 4, 3))
    model = keras.Model(image, layers.Dense(2)(image))
    model.quantize("int8")
    with pytest.raises(ValueError, match="before quantize"):
        export.to_onnx(model, tmp_path / "out.onnx")


def test_something_else_than_a_model_is_refused(tmp_path):
    with pytest.raises(TypeError, match=r"keras\.Model"):
        export.to_onnx(3, tmp_path / "out.onnx")


def test_reading_metadata_of_another_file_fails_with_its_name(tmp_path):
    with pytest.raises(ValueError, match="holds no"):
        export.read_metadata(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"There is no file or folder .*absent"):
        export.read_metadata(tmp_path / "absent")


@pytest.mark.parametrize(
    ("name", "content", "message", "needed"),
    [
        ("Face.TFLITE", b"no model", "is not a LiteRT file", "ai_edge_litert"),
        ("face.tflite", b"\xff\xff\xff\x7fTFL3", "is damaged", "ai_edge_litert"),
        ("face.onnx", b"no model", "is not an ONNX file", "onnx"),
        ("Face.ONNX", b"no model", "is not an ONNX file", "onnx"),
    ],
)
def test_reading_metadata_of_a_damaged_file_fails_with_its_name(
    name, content, message, needed, tmp_path
):
    pytest.importorskip(needed)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} {message}"):
        export.read_metadata(tmp_path / name)


IMAGES = np.arange(5 * 4 * 4 * 3, dtype="float64").reshape(5, 4, 4, 3)


@pytest.mark.parametrize(
    "data",
    [
        IMAGES,
        list(IMAGES),
        [IMAGES[:2], IMAGES[2:]],
        (image for image in IMAGES),
        ((batch, np.zeros(len(batch))) for batch in (IMAGES[:3], IMAGES[3:])),
        [(image, 1) for image in IMAGES],
        [(batch, np.zeros(len(batch))) for batch in (IMAGES[:3], IMAGES[3:])],
        [keras.ops.convert_to_tensor(IMAGES)],
    ],
    ids=[
        "array",
        "images",
        "batches",
        "generator",
        "labelled",
        "labelled images",
        "labelled list",
        "tensor",
    ],
)
def test_representative_images_come_in_any_container(data):
    images = preparation.read_images(data, (4, 4, 3))
    assert images.dtype == "float32"
    np.testing.assert_array_equal(images, IMAGES)


def test_an_endless_source_of_representative_images_is_read_to_the_limit():
    def endless():
        while True:
            yield np.zeros((300, 2, 2, 3), "uint8")

    images = preparation.read_images(endless(), (2, 2, 3))
    assert images.shape == (preparation.MAX_REPRESENTATIVE_IMAGES, 2, 2, 3)
    assert images.dtype == "uint8"


def test_an_empty_source_of_representative_images_is_refused():
    with pytest.raises(ValueError, match="no images"):
        preparation.read_images([], (2, 2, 3))


def test_sample_images_are_the_same_each_time_and_fill_the_range():
    first, second = (
        preparation.choose_samples(None, (9, 12, 3), (-1, 1), whole_numbers=False) for _ in "ab"
    )
    np.testing.assert_array_equal(first, second)
    assert first.shape == (4, 9, 12, 3) and -1 <= first.min() < -0.7 and 0.7 < first.max() <= 1


def test_a_mixed_precision_model_is_prepared_in_float32_with_its_weights(model, tmp_path):
    former = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        mixed = hybrid_network()
    finally:
        keras.config.set_dtype_policy(former)
    mixed.set_weights(model.get_weights())
    prepared = preparation.prepare(mixed, None, tmp_path)
    assert {layer.compute_dtype for layer in prepared.model._flatten_layers()} == {"float32"}
    images = np.full((2, *IMAGE_SHAPE), 100, "float32")
    np.testing.assert_allclose(
        prepared.predict(images)[0], model.predict(images, verbose=0), rtol=1e-4, atol=1e-5
    )


def prepared_scores(head, output, folder):
    image = keras.Input((4, 5, 3))
    x = layers.Rescaling([1.0, 2.0, 4.0], offset=[0.0, -1.0, -2.0])(image)
    x = layers.Activation("linear", name="embedding")(layers.Flatten()(x))
    return preparation.prepare(keras.Model(image, head(x), name="scores"), output, folder)


def rescaled_by(*numbers):
    return layers.Rescaling(*numbers)


def normalized(**options):
    return layers.Normalization(mean=[1.0, 2.0, 3.0], variance=[4.0, 16.0, 0.25], **options)


def chain(*steps):
    def build(image):
        for step in steps:
            image = step(image)
        return image

    return build


def subtracted_by_hand(image):
    return (rescaled_by(1 / 255)(image) - 0.5) / 0.25


def on_one_branch(image):
    return layers.Concatenate()([rescaled_by(1 / 255)(image), layers.MaxPooling2D(1)(image)])


def on_each_branch(image):
    return layers.Concatenate()([rescaled_by(1 / 255)(image), rescaled_by(2.0)(image)])


def in_a_network_inside(image):
    inner = keras.Input((4, 5, 3))
    network = keras.Sequential([inner, layers.Conv2D(2, 1), rescaled_by(3.0)])
    return network(rescaled_by(1 / 255)(image))


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (rescaled_by(0.5, -1.0), {"scale": 0.5, "offset": -1.0}),
        (chain(rescaled_by(0.5), layers.Dropout(0.1)), {"scale": 0.5, "offset": 0.0}),
        (normalized(), {"scale": [0.5, 0.25, 2.0], "offset": [-0.5, -0.5, -6.0]}),
        (
            layers.Normalization(axis=None, mean=2.0, variance=4.0),
            {"scale": 0.5, "offset": -1.0},
        ),
        (normalized(invert=True), None),
        (layers.Normalization(axis=2, mean=np.zeros(5), variance=np.ones(5)), None),
        (chain(rescaled_by(1 / 255), rescaled_by(2.0, -1.0)), None),
        (chain(rescaled_by(1 / 255), normalized()), None),
        (chain(rescaled_by(1 / 255), layers.Dropout(0.1), rescaled_by(2.0)), None),
        (chain(layers.Dropout(0.1), rescaled_by(1 / 255)), None),
        (subtracted_by_hand, None),
        (on_one_branch, None),
        (on_each_branch, None),
        (in_a_network_inside, None),
    ],
    ids=lambda value: getattr(value, "__name__", "") or type(value).__name__,
)
def test_a_normalization_is_told_only_if_one_layer_does_all_of_it(build, expected, tmp_path):
    image = keras.Input((4, 5, 3))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(2, 1)(build(image)))
    prepared = preparation.prepare(keras.Model(image, x), None, tmp_path)
    if expected is None:
        assert prepared.normalization is None
    else:
        for key, value in expected.items():
            np.testing.assert_allclose(prepared.normalization[key], value, rtol=1e-6)
        json.dumps(prepared.normalization)


@pytest.mark.parametrize("family", ["facerec_[ms]*", "iresnet*", "kprpe_*"])
def test_a_face_models_own_normalization_is_told(family, tmp_path):
    model = small_model(family)
    layer = model.get_layer("preprocessing")
    prepared = preparation.prepare(model, None, tmp_path)
    assert prepared.normalization == {"scale": layer.scale, "offset": layer.offset}
    (tmp_path / "bare").mkdir()
    bare = small_model(family, include_preprocessing=False)
    assert preparation.prepare(bare, None, tmp_path / "bare").normalization is None


PIXELS = np.random.default_rng(3).uniform(0, 1, (2, 4, 5, 3)).astype("float32")
EMBEDDINGS = (PIXELS * [1, 2, 4] - [0, 1, 2]).reshape(2, 60)


@pytest.mark.parametrize("activation", [None, "softmax"])
def test_probabilities_are_the_softmax_whether_the_model_has_it_or_not(activation, tmp_path):
    head = layers.Dense(3, activation=activation, name="predictions")
    prepared = prepared_scores(head, "probabilities", tmp_path)
    kernel, _ = (keras.ops.convert_to_numpy(weight) for weight in head.weights)
    powers = np.exp(EMBEDDINGS @ kernel)
    (found,) = prepared.predict(PIXELS)
    np.testing.assert_allclose(found, powers / powers.sum(axis=1, keepdims=True), rtol=1e-4)
    assert prepared.output_names == ("probabilities",) == (prepared.kind,)
    assert prepared.model_name == "scores"
    assert prepared.normalization == {"scale": [1, 2, 4], "offset": [0, -1, -2]}


@pytest.mark.parametrize("activation", [None, "sigmoid"])
def test_the_probability_of_one_unit_is_its_sigmoid(activation, tmp_path):
    head = layers.Dense(1, activation=activation, name="predictions")
    (found,) = prepared_scores(head, "probabilities", tmp_path).predict(PIXELS)
    kernel, _ = (keras.ops.convert_to_numpy(weight) for weight in head.weights)
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-EMBEDDINGS @ kernel)), rtol=1e-4)


class Doubled(keras.Model):
    """Answers otherwise than its symbolic layers."""

    def call(self, x, training=None):
        return 2 * super().call(x)


def test_a_model_with_a_call_of_its_own_is_refused(tmp_path):
    image = keras.Input((4, 5, 3))
    outputs = layers.Conv2D(2, 3)(image)
    with pytest.raises(ValueError, match=r"is a Doubled, whose own call\(\) is not among its"):
        preparation.prepare(Doubled(image, outputs), None, tmp_path)
    sequential = keras.Sequential([image, layers.Conv2D(2, 3)])
    for number, model in enumerate([kh.applications.MarginModel(image, outputs), sequential]):
        folder = tmp_path / str(number)
        folder.mkdir()
        assert preparation.prepare(model, None, folder).kind == "predictions"


@keras.saving.register_keras_serializable("tests")
class WithModule(layers.Layer):
    """A layer with an argument that is called as what Keras writes of a class."""

    def __init__(self, module="small", **kwargs):
        super().__init__(**kwargs)
        self.module = module

    def call(self, x):
        return x

    def get_config(self):
        return {**super().get_config(), "module": self.module}


def test_an_argument_called_module_is_not_imported(tmp_path):
    image = keras.Input((4, 5, 3))
    prepared = preparation.prepare(keras.Model(image, WithModule()(image)), None, tmp_path)
    assert prepared.modules == (__name__,)


def test_cosines_come_from_a_cosine_classifier_which_has_no_probabilities(tmp_path):
    head = kh.layers.CosineClassifier(3, name="predictions")
    prepared = prepared_scores(head, "cosines", tmp_path)
    centers = keras.ops.convert_to_numpy(head.centers)
    lengths = np.linalg.norm(EMBEDDINGS, axis=1)[:, None] * np.linalg.norm(centers, axis=1)
    np.testing.assert_allclose(
        prepared.predict(PIXELS)[0], EMBEDDINGS @ centers.T / lengths, atol=1e-5
    )
    assert prepared.output_names == ("cosines",)
    another = kh.layers.CosineClassifier(3, name="predictions")
    with pytest.raises(ValueError, match=r"CosineClassifier, puts out cosines.*scale of the loss"):
        prepared_scores(another, "probabilities", tmp_path)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (layers.Dense(3, name="age"), "ends in 'age'"),
        (layers.Dense(3, activation="sigmoid", name="predictions"), "cannot be told"),
    ],
)
def test_scores_that_cannot_be_told_are_not_called_probabilities(head, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        prepared_scores(head, "probabilities", tmp_path)


def test_cosine_of_rows_handles_zeros():
    a = np.array([[1.0, 0.0], [0.0, 0.0]])
    assert reports.smallest_cosine([a], [a]) == 1
    assert reports.smallest_cosine([a], [np.array([[1.0, 0.0], [0.0, 1.0]])]) == 0
    assert reports.smallest_cosine([a[:1]], [-a[:1]]) == -1


@pytest.mark.slow
def test_a_layer_that_the_conversion_cannot_find_is_explained(tmp_path, monkeypatch):
    monkeypatch.undo()
    skip_without(*NEEDS["to_onnx"])

    class Unfindable(keras.Layer):
        def call(self, x):
            return x

    Unfindable.__module__ = "__main__"
    image = keras.Input((4, 4, 3))
    with pytest.raises(export.ExportError, match=r"failed: Unfindable cannot.*import_modules"):
        export.to_onnx(keras.Model(image, Unfindable()(image)), tmp_path / "out.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_modules_are_imported_before_a_file_is_read(tmp_path, monkeypatch):
    monkeypatch.undo()
    skip_without(*NEEDS["to_onnx"])
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "layers_apart.py").write_text(
        "import keras\nclass Twice(keras.Layer):\n    def call(self, x):\n        return 2 * x\n"
    )
    (tmp_path / "registry_apart.py").write_text(
        "import keras, layers_apart\n"
        "keras.saving.register_keras_serializable('Apart')(layers_apart.Twice)\n"
    )
    layers_apart = importlib.import_module("registry_apart").layers_apart
    image = keras.Input((4, 4, 3))
    keras.Model(image, layers_apart.Twice()(image)).save(tmp_path / "model.keras")
    # As in a process that has not seen them.
    del sys.modules["registry_apart"], sys.modules["layers_apart"]
    keras.saving.get_custom_objects().pop("Apart>Twice")
    report = export.to_onnx(
        tmp_path / "model.keras", tmp_path / "out.onnx", import_modules=["registry_apart"]
    )
    assert report.output_scale > 300
