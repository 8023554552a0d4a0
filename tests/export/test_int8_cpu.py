"""``quantization="int8_cpu"``: what a CPU computes slowly or badly in int8 stays in float32."""

import keras
import numpy as np
import pytest
from keras import layers

from keras_hybrid import export
from tests.export.export_cases import IMAGE_SHAPE, NEEDS, randomize, skip_without

pytestmark = [pytest.mark.slow, pytest.mark.any_backend]

IN_FLOAT32 = {"BATCH_MATMUL", "SOFTMAX", "MEAN", "SQUARED_DIFFERENCE", "RSQRT"}
IN_INT8 = {"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"}


def operators(path) -> list[tuple[str, set[str]]]:
    """Name of each operator of a file, and the types of what it computes with and puts out."""
    from ai_edge_litert import schema_py_generated as schema

    def names(kind):
        return {value: name for name, value in vars(kind).items() if isinstance(value, int)}

    kinds, types = names(schema.BuiltinOperator), names(schema.TensorType)
    model = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    assert not [code.customCode for code in model.operatorCodes if code.customCode]
    (graph,) = model.subgraphs
    codes = [max(code.builtinCode, code.deprecatedBuiltinCode) for code in model.operatorCodes]
    # int32 are biases and axes, in float32 and int8 alike.
    return [
        (
            kinds[codes[operator.opcodeIndex]],
            {
                types[graph.tensors[index].type]
                for index in (*operator.inputs, *operator.outputs)
                if index >= 0
            }
            - {"INT32"},
        )
        for operator in graph.operators
    ]


def run(path, images):
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(model_path=str(path)).get_signature_runner("serving_default")
    return np.concatenate([runner(image=image[None])["output"] for image in images])


def test_attention_and_statistics_stay_in_float32_and_what_has_weights_is_int8(
    exported, model, photographs
):
    report = exported(
        "int8_cpu.tflite",
        "to_litert",
        quantization="int8_cpu",
        representative_data=photographs,
        input_dtype="uint8",
    )
    found = operators(report.path)
    assert {name for name, _ in found} >= IN_FLOAT32 | IN_INT8
    for name, types in found:
        if name in IN_FLOAT32:
            assert types == {"FLOAT32"}, name
        elif name in IN_INT8:
            assert types == {"INT8"}, name
    assert report.quantization == "int8_cpu"
    assert export.read_metadata(report.path)["quantization"] == "int8_cpu"
    assert report.inputs == (export.TensorSignature("image", (1, *IMAGE_SHAPE), "uint8"),)
    expected = model.predict(photographs[:8].astype("float32"), verbose=0)
    answers = run(report.path, photographs[:8])
    lengths = np.linalg.norm(answers, axis=1) * np.linalg.norm(expected, axis=1)
    assert ((answers * expected).sum(axis=1) / lengths).min() >= 0.98
    assert report.cosine >= 0.98 and report.samples == 8


def test_a_network_of_convolutions_is_int8_but_for_its_global_pooling(photographs, tmp_path):
    skip_without(*NEEDS["to_litert"])
    image = keras.Input(IMAGE_SHAPE)
    x = layers.Conv2D(4, 3, strides=2, activation="relu")(image)
    x = layers.DepthwiseConv2D(3, activation="relu")(x)
    x = layers.GlobalAveragePooling2D()(x)
    model = randomize(keras.Model(image, layers.Dense(3)(x)))
    report = export.to_litert(
        model,
        tmp_path / "model.tflite",
        quantization="int8_cpu",
        representative_data=photographs,
    )
    types = {name: types for name, types in operators(report.path)}
    assert types.pop("MEAN") == {"FLOAT32"}
    assert types == {
        "QUANTIZE": {"FLOAT32", "INT8"},
        "DEQUANTIZE": {"FLOAT32", "INT8"},
        **{name: {"INT8"} for name in IN_INT8},
    }
    assert report.cosine >= 0.98


def test_prelu_stays_in_float32(photographs, tmp_path):
    """In int8 LiteRT has a reference kernel for it, and a MobileFaceNet one PReLU a convolution."""
    skip_without(*NEEDS["to_litert"])
    image = keras.Input(IMAGE_SHAPE)
    x = image
    for strides in (2, 1):
        x = layers.Conv2D(4, 3, strides=strides)(x)
        x = layers.PReLU(keras.initializers.Constant(0.25), shared_axes=[1, 2])(x)
    model = randomize(keras.Model(image, layers.Dense(3)(layers.Flatten()(x))))
    report = export.to_litert(
        model,
        tmp_path / "model.tflite",
        quantization="int8_cpu",
        representative_data=photographs,
    )
    found = operators(report.path)
    assert [types for name, types in found if name == "PRELU"] == [{"FLOAT32"}] * 2
    assert [types for name, types in found if name == "CONV_2D"] == [{"INT8"}] * 2
    assert report.cosine >= 0.98


def test_a_model_without_anything_to_quantize_is_refused_in_words(photographs, tmp_path):
    skip_without(*NEEDS["to_litert"])
    image = keras.Input(IMAGE_SHAPE)
    model = keras.Model(image, layers.GlobalAveragePooling2D()(image))
    with pytest.raises(export.ExportError, match="'int8_cpu' found nothing to quantize") as caught:
        export.to_litert(
            model,
            tmp_path / "model.tflite",
            quantization="int8_cpu",
            representative_data=photographs,
        )
    assert "debug mode" not in str(caught.value)
    assert not list(tmp_path.iterdir())
