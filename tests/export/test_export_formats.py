"""Exported files give the model's answers, on every backend; failed exports leave no trace."""

import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import layers

from keras_hybrid import export
from tests.export.export_cases import IMAGE_SHAPE, NEEDS, hybrid_network, randomize, skip_without

pytestmark = [pytest.mark.slow, pytest.mark.any_backend]

LABELS = ["Ada", "Björk", "Chidi", "Duong", "Eve", "Fatima", "Grégoire"]


def predictions(model, images):
    return np.asarray(model.predict(images.astype("float32"), verbose=0), "float32")


def run_litert(path, images):
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(model_path=str(path)).get_signature_runner("serving_default")
    return runner(image=images)["output"]


def cosines(a, b):
    return (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


@pytest.fixture
def litert(exported):
    return exported("float32.tflite", "to_litert")


@pytest.fixture
def int8(exported, photographs):
    return exported(
        "int8.tflite",
        "to_litert",
        quantization="int8",
        representative_data=photographs,
        input_dtype="uint8",
        labels=LABELS,
    )


@pytest.fixture
def onnx_report(exported):
    return exported("hybrid.onnx", "to_onnx")


def test_saved_model_answers_in_a_process_that_knows_nothing_of_us(
    exported, model, photographs, tmp_path
):
    report = exported("saved", "to_saved_model")
    np.save(tmp_path / "images.npy", photographs[:3].astype("float32"))
    program = (
        "import sys, numpy as np, tensorflow as tf\n"
        "path, folder = sys.argv[1:]\n"
        "serve = tf.saved_model.load(path).signatures['serving_default']\n"
        "images = tf.constant(np.load(folder + '/images.npy'))\n"
        "np.save(folder + '/answer.npy', serve(image=images)['output'].numpy())\n"
        "assert 'keras_hybrid' not in sys.modules\n"
    )
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-c", program, str(report.path), str(tmp_path)]
    subprocess.run(command, check=True, env=environment)
    expected = predictions(model, photographs[:3])
    assert (
        np.abs(np.load(tmp_path / "answer.npy") - expected).max() <= 1e-4 * np.abs(expected).max()
    )
    assert report.relative_difference <= 1e-4
    assert report.inputs == (export.TensorSignature("image", (None, *IMAGE_SHAPE), "float32"),)
    assert report.outputs == (export.TensorSignature("output", (None, 7), "float32"),)
    assert report.size_bytes > 1000 and report.operators["Conv2D"] == 2
    assert export.read_metadata(report.path)["input"]["value_range"] == [0, 255]


def test_litert_float32_answers_as_the_model(litert, model, photographs):
    expected = predictions(model, photographs[:1])
    answer = run_litert(litert.path, photographs[:1].astype("float32"))
    assert np.abs(answer - expected).max() <= 1e-4 * np.abs(expected).max()
    assert litert.relative_difference <= 1e-4 and litert.cosine > 0.99999
    assert litert.inputs == (export.TensorSignature("image", (1, *IMAGE_SHAPE), "float32"),)
    assert litert.size_bytes == litert.path.stat().st_size


def test_litert_uses_built_in_operators_only_and_both_gelus_are(litert):
    assert not [name for name in litert.operators if name.startswith("Flex")]
    assert litert.operators["GELU"] == 2
    assert litert.operators["SOFTMAX"] == 1


def test_float16_halves_the_weights_and_a_free_batch_takes_any_number(
    exported, litert, model, photographs
):
    report = exported("float16.tflite", "to_litert", quantization="float16", batch_size=None)
    assert report.inputs[0].shape == (None, *IMAGE_SHAPE)
    expected = predictions(model, photographs[:5])
    for count in (5, 2):
        answer = run_litert(report.path, photographs[:count].astype("float32"))
        assert answer.shape == (count, 7)
        assert np.abs(answer - expected[:count]).max() <= 1e-2 * np.abs(expected).max()


def test_dynamic_range_needs_no_data(exported, litert):
    report = exported("dynamic.tflite", "to_litert", quantization="dynamic")
    assert report.cosine >= 0.98 and report.quantization == "dynamic"
    assert report.size_bytes < litert.size_bytes


def test_int8_takes_a_camera_image_unchanged(int8, litert, model, photographs):
    assert int8.inputs[0].dtype == "uint8" and int8.outputs[0].dtype == "float32"
    answers = np.concatenate([run_litert(int8.path, image[None]) for image in photographs[:8]])
    assert cosines(answers, predictions(model, photographs[:8])).min() >= 0.98
    assert int8.cosine >= 0.98 and int8.samples == 8
    assert "QUANTIZE" in int8.operators


def test_onnx_passes_the_checker_and_takes_any_batch(onnx_report, model, photographs):
    import onnx
    import onnxruntime

    onnx.checker.check_model(str(onnx_report.path), full_check=True)
    session = onnxruntime.InferenceSession(
        str(onnx_report.path), providers=["CPUExecutionProvider"]
    )
    expected = predictions(model, photographs[:5])
    for count in (1, 5):
        (answer,) = session.run(["output"], {"image": photographs[:count].astype("float32")})
        assert np.abs(answer - expected[:count]).max() <= 1e-4 * np.abs(expected).max()
    assert onnx_report.relative_difference <= 1e-4
    assert onnx_report.operators["MaxPool"] == 1
    assert onnx_report.inputs[0].shape == (None, *IMAGE_SHAPE)


def test_the_file_says_what_it_expects(int8, onnx_report):
    described = export.read_metadata(int8.path)
    assert described["model"] == "hybrid" and described["quantization"] == "int8"
    assert described["signature"] == "serving_default" and described["labels"] == LABELS
    assert described["input"] == {
        "name": "image",
        "shape": [1, *IMAGE_SHAPE],
        "dtype": "uint8",
        "layout": "NHWC",
        "color_order": "RGB",
        "value_range": [0, 255],
        "normalization": {"scale": 1 / 127.5, "offset": -1},
    }
    assert described["outputs"] == [
        {"name": "output", "kind": "predictions", "shape": [1, 7], "l2_normalized": False}
    ]
    described = export.read_metadata(onnx_report.path)
    assert described["model"] == "hybrid" and described["labels"] is None
    assert described["input"]["shape"] == [None, *IMAGE_SHAPE]


def test_litert_weights_stay_aligned_beside_the_metadata(litert):
    from ai_edge_litert import schema_py_generated as schema

    content = np.fromfile(litert.path, np.uint8)
    model = schema.Model.GetRootAs(content.tobytes())
    buffers = [model.Buffers(index) for index in range(model.BuffersLength())]
    starts = [b._tab.Vector(b._tab.Offset(4)) for b in buffers if b.DataLength()]
    assert len(starts) > 10 and not [start for start in starts if start % 16]


def test_a_report_is_json(litert):
    values = json.loads(json.dumps(litert.to_dict()))
    assert values["path"] == str(litert.path) and values["format"] == "litert"
    assert values["inputs"][0]["name"] == "image"


@pytest.mark.parametrize(
    ("policy", "function", "name"),
    [
        ("mixed_bfloat16", "to_litert", "mixed.tflite"),
        ("mixed_float16", "to_saved_model", "mixed"),
    ],
)
def test_a_mixed_precision_model_is_exported_in_float32(policy, function, name, model, tmp_path):
    skip_without(*NEEDS[function])
    former = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        mixed = hybrid_network()
        mixed.set_weights(model.get_weights())
        mixed.compile("adam", "mse")
        report = getattr(export, function)(mixed, tmp_path / name)
        assert keras.config.dtype_policy().name == policy
    finally:
        keras.config.set_dtype_policy(former)
    assert mixed.get_layer("embedding").compute_dtype != "float32"
    # The reference is the float32 rebuild: only then can the agreement be this close.
    assert report.relative_difference <= 1e-4


def test_an_embedding_is_a_unit_vector(photographs, tmp_path):
    applications = pytest.importorskip("keras_hybrid.applications")
    skip_without(*NEEDS["to_litert"])
    image = keras.Input(IMAGE_SHAPE)
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(8, 3, activation="relu")(image))
    x = layers.Dense(5, name="embedding")(x)
    model = randomize(keras.Model(image, layers.Dense(3, name="predictions")(x)))
    archive = tmp_path / "model.keras"
    model.save(archive)
    report = export.to_litert(
        archive, tmp_path / "embedder.tflite", output="embedding", batch_size=3
    )
    assert report.outputs == (export.TensorSignature("embedding", (3, 5), "float32"),)
    assert report.output_scale <= 1 and report.samples == 4
    described = export.read_metadata(report.path)
    assert described["outputs"][0]["l2_normalized"] and described["model"] == model.name
    assert described["outputs"][0]["kind"] == "embedding"
    assert described["input"]["normalization"] is None
    assert applications.embedding_model(model).output_shape == (None, 5)


def test_an_operator_that_litert_lacks_is_named_and_the_earlier_file_survives(tmp_path):
    skip_without(*NEEDS["to_litert"])
    image = keras.Input((8, 8, 3))
    x = keras.ops.roll(keras.ops.erf(layers.Conv2D(4, 3)(image)), 1, axis=1)
    target = tmp_path / "model.tflite"
    target.write_bytes(b"an earlier export")
    with pytest.raises(export.ExportError, match="no built-in operator for Erf") as caught:
        export.to_litert(keras.Model(image, x), target)
    assert len(str(caught.value)) < 1000
    assert target.read_bytes() == b"an earlier export"
    assert list(tmp_path.iterdir()) == [target]


def test_an_output_with_the_name_of_the_input_gets_another(tmp_path):
    skip_without(*NEEDS["to_onnx"])
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(3, 3, padding="same", name="image")(image)
    model = keras.Model(image, [x, layers.GlobalAveragePooling2D(name="code")(x)])
    report = export.to_onnx(model, tmp_path / "model.onnx")
    assert [output.name for output in report.outputs] == ["output_0", "output_1"]


@pytest.mark.parametrize("name", ["model", "former"])
def test_several_outputs_keep_their_names_and_a_saved_model_is_replaced(tmp_path, name):
    skip_without(*NEEDS["to_saved_model"])
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3)(image)
    x = layers.GlobalAveragePooling2D(name="pooled")(x)
    model = keras.Model(image, {"b": layers.Dense(2, name="age")(x), "a": x})
    # "model" and "former" are also names of what an export works with.
    target = tmp_path / "deeper" / name
    target.mkdir(parents=True)
    (target / "saved_model.pb").write_bytes(b"an earlier export")
    report = export.to_saved_model(model, target)
    content = {path.name for path in target.iterdir()}
    assert content == {"assets", "assets.extra", "fingerprint.pb", "saved_model.pb", "variables"}
    assert report.size_bytes == sum(f.stat().st_size for f in target.rglob("*") if f.is_file())
    assert {output.shape for output in report.outputs} == {(None, 4), (None, 2)}
    assert {output.name: output.shape for output in report.outputs} == {
        "a": (None, 4),
        "b": (None, 2),
    }
    assert (target / "saved_model.pb").stat().st_size > 100
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 4},
        {"batch_size": None, "input_dtype": "uint8"},
        {"input_range": (-1, 1)},
    ],
)
def test_a_litert_file_answers_photographs_as_its_model(tmp_path, options):
    skip_without(*NEEDS["to_litert"])
    low, high = options.get("input_range", (0, 255))
    image = keras.Input((8, 8, 3))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(image))
    model = keras.Model(image, layers.UnitNormalization(name="embedding")(x))
    both = keras.Model(image, [x, layers.Dense(2, name="age")(x)])
    export.to_litert(model, tmp_path / "model.tflite", output="embedding", **options)
    file = export.LiteRTModel(tmp_path / "model.tflite")
    assert (file.name, file.image_size) == (model.name, (8, 8))
    assert (file.batch_size, file.value_range) == (options.get("batch_size", 1), (low, high))
    images = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    expected = model.predict(low + images.astype("float32") / 255 * (high - low), verbose=0)
    for given in (images, images.astype("float32")):
        np.testing.assert_allclose(file.embedder()(given), expected, atol=1e-5)
    with pytest.raises(ValueError, match="one score for each class, but embedding"):
        file.classifier()
    export.to_litert(both, tmp_path / "both.tflite")
    with pytest.raises(ValueError, match="does not put out an embedding"):
        export.LiteRTModel(tmp_path / "both.tflite").embedder()
    with pytest.raises(ValueError, match=r"one score for each class, but .*, age"):
        export.LiteRTModel(tmp_path / "both.tflite").classifier()


@pytest.mark.parametrize("shape", [(2, 9, 8, 3), (8, 8, 3), (0, 8, 8, 3), (1, 8, 8, 4)])
def test_images_that_a_litert_file_does_not_take_are_refused(tmp_path, shape):
    skip_without(*NEEDS["to_litert"])
    image = keras.Input((8, 8, 3))
    x = layers.GlobalAveragePooling2D(name="embedding")(layers.Conv2D(4, 3)(image))
    export.to_litert(keras.Model(image, x), tmp_path / "model.tflite", output="embedding")
    file = export.LiteRTModel(tmp_path / "model.tflite")
    assert file.labels is None
    with pytest.raises(
        ValueError, match=r"takes images of shape \(n, 8, 8, 3\), n at least 1; rec"
    ):
        file.embedder()(np.zeros(shape, "uint8"))


@pytest.mark.parametrize(("function", "name"), [("to_litert", "m.tflite"), ("to_onnx", "m.onnx")])
def test_an_embedding_of_zeros_stays_one(tmp_path, function, name):
    skip_without(*NEEDS[function])
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, activation="relu", use_bias=False)(image)
    x = layers.GlobalAveragePooling2D(name="embedding")(x)
    report = getattr(export, function)(keras.Model(image, x), tmp_path / name, output="embedding")
    black = np.zeros((1, 8, 8, 3), "float32")
    if function == "to_litert":
        found = export.LiteRTModel(report.path).embedder()(black)
    else:
        import onnxruntime

        session = onnxruntime.InferenceSession(report.path, providers=["CPUExecutionProvider"])
        (found,) = session.run(None, {"image": black})
    np.testing.assert_array_equal(found, np.zeros((1, 4)))


def test_augmentation_changes_no_onnx_file(tmp_path):
    skip_without(*NEEDS["to_onnx"])
    image = keras.Input((8, 8, 3))
    x = layers.RandomFlip()(image)
    x = layers.BatchNormalization(momentum=0.5)(layers.Conv2D(4, 3)(x))
    model = keras.Model(image, layers.GlobalAveragePooling2D()(x))
    assert export.to_onnx(model, tmp_path / "model.onnx").relative_difference < 1e-5


def test_a_litert_file_of_other_images_is_no_model_of_photographs(tmp_path):
    skip_without(*NEEDS["to_litert"])
    image = keras.Input((8, 8, 1))
    model = keras.Model(image, layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(image)))
    export.to_litert(model, tmp_path / "grey.tflite")
    with pytest.raises(ValueError, match=r"images of shape \(8, 8, 1\), not photographs in RGB"):
        export.LiteRTModel(tmp_path / "grey.tflite")
