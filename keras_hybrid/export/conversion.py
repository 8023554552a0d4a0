"""Converts a saved model: the program that runs in a process of its own, one job per process.

``python -m keras_hybrid.export.conversion job.json answer.json``. The job's keys are documented
where they are written, in :mod:`keras_hybrid.export.formats`. The program loads the model,
converts it, loads the result back, runs it on the job's samples, and writes what it found.

TensorFlow, LiteRT and JAX are imported by the functions that need them, since a process has the
backend of one of them only.
"""

import contextlib
import importlib
import json
import math
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_hybrid.export.calibration import CALIBRATED, images_left_out
from keras_hybrid.export.folding import fold_batch_normalization
from keras_hybrid.export.metadata import METADATA_NAME, SAVED_MODEL_METADATA
from keras_hybrid.export.onnx_graph import make_pooling_spatial
from keras_hybrid.export.preparation import IMAGE, PATTERN, SIGNATURE
from keras_hybrid.export.process import ExportError

_STRUCTURAL = {"Const", "Identity", "NoOp", "Placeholder"}
_FOLDED_TOLERANCE = 1e-3  # of the norm of all outputs
_OBSERVED = 100  # representative images that ranges are chosen by
# What "int8_cpu" leaves in float32: LiteRT computes these in int8 by its reference kernels, the
# products of attention and PReLU above all, and the statistics of layer normalisation lose most.
_FLOAT_ON_CPU = ("BATCH_MATMUL", "SOFTMAX", "MEAN", "SQUARED_DIFFERENCE", "RSQRT", "PRELU")


def main(job_file: str, answer_file: str) -> int:
    """Run the job in one file, write the answer to another, return the exit status."""
    job = json.loads(Path(job_file).read_text("utf-8"))
    convert = {"saved_model": to_saved_model, "litert": to_litert, "onnx": to_onnx}[job["format"]]
    try:
        answer = convert(job, load(job))
        status = 0
    except ExportError as error:
        answer, status = {"error": str(error)}, 1
    except Exception as error:
        answer, status = {"error": _describe(error)}, 1
    Path(answer_file).write_text(json.dumps(answer), encoding="utf-8")
    return status


def load(job: dict[str, Any]) -> keras.Model:
    """Load the model of a job in float32, after importing the modules that define its layers."""
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")
    keras.config.set_image_data_format("channels_last")
    for module in job["modules"]:
        importlib.import_module(module)
    try:
        # The exporting process loaded or built this very model: its code is trusted already.
        return keras.saving.load_model(job["model"], compile=False, safe_mode=False)
    except (TypeError, ValueError) as error:
        missing = re.search(r"Could not locate (?:class|function) '([^']+)'", str(error))
        if missing is None:
            raise
        raise ExportError(
            f"{missing[1]} cannot be found in the process that converts. Define it in a module "
            "that can be imported, not in a script or notebook, and name that module in "
            "import_modules=[...] if it is not found by itself."
        ) from error


def to_saved_model(job: dict[str, Any], model: keras.Model) -> dict[str, Any]:
    """Write a SavedModel with a free batch size, load it back and run it."""
    import tensorflow as tf

    _write_saved_model(job, model, batch_size=None, dtype="float32", folder=job["target"])
    extra = Path(job["target"], SAVED_MODEL_METADATA)
    extra.parent.mkdir()
    extra.write_text(job["metadata"], encoding="utf-8")

    serve = tf.saved_model.load(job["target"]).signatures[SIGNATURE]
    _run(
        job,
        lambda images: {k: v.numpy() for k, v in serve(**{IMAGE: tf.constant(images)}).items()},
        _one_then_the_rest,
    )
    definition = serve.graph.as_graph_def()
    nodes = [*definition.node, *(n for f in definition.library.function for n in f.node_def)]
    image = serve.structured_input_signature[1][IMAGE]
    return {
        "operators": _count(node.op for node in nodes if node.op not in _STRUCTURAL),
        "inputs": [[IMAGE, image.shape.as_list(), image.dtype.name]],
        "outputs": [
            [name, spec.shape.as_list(), spec.dtype.name]
            for name, spec in serve.structured_outputs.items()
        ],
    }


def to_litert(job: dict[str, Any], model: keras.Model) -> dict[str, Any]:
    """Write a LiteRT file of built-in operators only, load it back and run it."""
    import tensorflow as tf
    from ai_edge_litert.interpreter import Interpreter

    from keras_hybrid.export import litert_file

    left_out: list[int] = []
    if job["quantization"] in CALIBRATED:
        left_out = images_left_out(model, np.load(job["representative_data"], mmap_mode="r"))
    _fold(model, np.load(job["samples"])[:2].astype("float32"))
    place = None if PATTERN & set(job["folder"]) else job["folder"]
    with tempfile.TemporaryDirectory(dir=place, ignore_cleanup_errors=True) as folder:
        function = _write_saved_model(job, model, job["batch_size"], job["input_dtype"], folder)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=[SIGNATURE])
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        if job["quantization"] is not None:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if job["quantization"] == "float16":
            converter.target_spec.supported_types = [tf.float16]
        try:
            if job["quantization"] in CALIBRATED:
                content = _quantize_activations(job, converter, left_out)
            else:
                content = converter.convert()
        except ExportError:
            raise
        except Exception as error:
            raise ExportError(_describe_conversion_failure(error, function)) from error
    content = _with_metadata(content, job["metadata"])
    Path(job["target"]).write_bytes(content)

    interpreter = Interpreter(model_path=job["target"])
    runner = interpreter.get_signature_runner(SIGNATURE)
    batches = _one_then_the_rest if job["batch_size"] is None else _fixed_batches(job["batch_size"])
    _run(job, lambda images: runner(**{IMAGE: images}), batches)

    def describe(details: dict[str, dict]) -> list[list]:
        return [
            [
                name,
                [None if size < 0 else int(size) for size in detail["shape_signature"]],
                np.dtype(detail["dtype"]).name,
            ]
            for name, detail in details.items()
        ]

    return {
        "left_out": left_out,
        "operators": litert_file.count_operators(litert_file.unpack(content)),
        "inputs": describe(runner.get_input_details()),
        "outputs": describe(runner.get_output_details()),
    }


def _fold(model: keras.Model, images: np.ndarray) -> None:
    """Fold batch normalisation into other layers, unless the model then answers otherwise.

    A kernel may have other work that no graph shows, such as in a layer that holds this one.
    """

    def answers() -> np.ndarray:
        outputs = keras.tree.flatten(model(images, training=False))
        return np.concatenate([np.ravel(keras.ops.convert_to_numpy(x)) for x in outputs])

    weights, before = model.get_weights(), answers()
    fold_batch_normalization(model)
    if not np.linalg.norm(answers() - before) <= _FOLDED_TOLERANCE * np.linalg.norm(before):
        model.set_weights(weights)


def to_onnx(job: dict[str, Any], model: keras.Model) -> dict[str, Any]:
    """Write an ONNX file with a free batch size, check it, load it back and run it."""
    import jax2onnx
    import onnx
    import onnxruntime

    shape = tuple(model.inputs[0].shape[1:])
    # jax2onnx traces what a model does, and a model freshly loaded builds state at its first call.
    # `training` must be said: random layers take True, and hand it on to batch normalisation.
    model(np.zeros((1, *shape), "float32"), training=False)
    graph = jax2onnx.to_onnx(
        lambda images: tuple(keras.tree.flatten(model(images, training=False))),
        inputs=[("batch", *shape)],
        model_name=model.name,
        input_names=[IMAGE],
        output_names=job["output_names"],
    )
    make_pooling_spatial(graph)
    graph.metadata_props.add(key=METADATA_NAME, value=job["metadata"])
    onnx.save(graph, job["target"])
    onnx.checker.check_model(job["target"], full_check=True)

    session = onnxruntime.InferenceSession(job["target"], providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    _run(
        job,
        lambda images: dict(zip(names, session.run(None, {IMAGE: images}), strict=True)),
        _one_then_the_rest,
    )

    def describe(tensors: Sequence) -> list[list]:
        return [
            [
                tensor.name,
                [size if isinstance(size, int) else None for size in tensor.shape],
                {"tensor(float)": "float32"}.get(tensor.type, tensor.type),
            ]
            for tensor in tensors
        ]

    nodes = [*graph.graph.node, *(node for function in graph.functions for node in function.node)]
    return {
        "operators": _count(node.op_type for node in nodes),
        "inputs": describe(session.get_inputs()),
        "outputs": describe(session.get_outputs()),
    }


def _write_saved_model(
    job: dict[str, Any], model: keras.Model, batch_size: int | None, dtype: str, folder: str
) -> Any:
    """Write a SavedModel with the serving signature; return its concrete function."""
    import tensorflow as tf

    shape = (batch_size, *model.inputs[0].shape[1:])

    @tf.function(input_signature=[tf.TensorSpec(shape, dtype, name=IMAGE)])
    def serve(image):
        outputs = keras.tree.flatten(model(tf.cast(image, tf.float32), training=False))
        return dict(zip(job["output_names"], outputs, strict=True))

    module = tf.Module()
    module.model_variables = [variable.value for variable in model.variables]
    module.serve = serve
    tf.saved_model.save(module, folder, signatures={SIGNATURE: serve})
    return serve.get_concrete_function()


def _run(
    job: dict[str, Any],
    call: Callable[[np.ndarray], dict[str, np.ndarray]],
    batches: Callable[[np.ndarray], Iterator[tuple[np.ndarray, int]]],
) -> None:
    """Run a reloaded model on the job's samples and write its outputs."""
    samples = np.load(job["samples"]).astype(job["input_dtype"])
    parts = []
    for images, count in batches(samples):
        answer = call(images)
        parts.append({name: np.array(answer[name])[:count] for name in job["output_names"]})
    outputs = [np.concatenate([part[name] for part in parts]) for name in job["output_names"]]
    np.savez(job["results"], *outputs)


def _one_then_the_rest(samples: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
    """Yield two batches of different sizes, which proves that the batch size is free."""
    for batch in (samples[:1], samples[1:]):
        if len(batch):
            yield batch, len(batch)


def _fixed_batches(size: int) -> Callable[[np.ndarray], Iterator[tuple[np.ndarray, int]]]:
    """Return a function that splits samples into batches of one size, the last one padded."""

    def split(samples: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
        for start in range(0, len(samples), size):
            batch = samples[start : start + size]
            padding = np.repeat(batch[-1:], size - len(batch), axis=0)
            yield np.concatenate([batch, padding]), len(batch)

    return split


def _quantize_activations(job: dict[str, Any], converter: Any, left_out: list[int]) -> bytes:
    """Return the file in int8, with those ranges of activations that bring it nearer to float32.

    The ranges of least error are those of nearly every network. But a tensor's error is not that of
    the outputs: where an image is answered worse than any is with the converter's own ranges, those
    are taken.
    """
    import tensorflow as tf

    from keras_hybrid.export import ranges

    images = np.delete(np.load(job["representative_data"], mmap_mode="r"), left_out, axis=0)

    def inputs(images: np.ndarray) -> Iterator[np.ndarray]:
        for batch, _ in _fixed_batches(job["batch_size"] or 1)(images):
            yield batch.astype(job["input_dtype"])

    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.representative_dataset = lambda: ({IMAGE: batch} for batch in inputs(images))
    try:
        # It calibrates once, and quantizes as often as asked with what it is given.
        debugger = tf.lite.experimental.QuantizationDebugger(
            converter=converter,
            debug_dataset=converter.representative_dataset,
            debug_options=tf.lite.experimental.QuantizationDebugOptions(
                denylisted_ops=list(_FLOAT_ON_CPU) if job["quantization"] == "int8_cpu" else None
            ),
        )
    except ValueError as error:
        if "debug mode" not in str(error):
            raise
        # What TensorFlow says of a file without a single quantized operator.
        raise ExportError(
            f"quantization={job['quantization']!r} found nothing to quantize: the model has no "
            "operator that it computes in int8. Export it with quantization=None or 'float16'."
        ) from error
    # Each image fills a batch of its own: an image's error is seen for itself, and none is padding.
    chosen = images[:: math.ceil(len(images) / _OBSERVED)].astype(job["input_dtype"])
    observed = [np.repeat(image[np.newaxis], job["batch_size"] or 1, axis=0) for image in chosen]
    observation = ranges.observe(debugger.calibrated_model, observed)
    files = [debugger.get_nondebug_quantized_model()]
    debugger.calibrated_model = ranges.with_least_error_ranges(
        debugger.calibrated_model, observation
    )
    files.append(debugger.get_nondebug_quantized_model())
    return min(files, key=lambda file: ranges.output_error(file, observed, observation.outputs))


def _with_metadata(content: bytes, metadata: str) -> bytes:
    """Return a LiteRT file with a metadata buffer added."""
    from ai_edge_litert import schema_py_generated as schema

    from keras_hybrid.export import litert_file

    model = litert_file.unpack(content)
    buffer = schema.BufferT()
    buffer.data = np.frombuffer(metadata.encode("utf-8"), np.uint8)
    model.buffers.append(buffer)
    entry = schema.MetadataT()
    entry.name = METADATA_NAME
    entry.buffer = len(model.buffers) - 1
    model.metadata = [*(model.metadata or ()), entry]
    return litert_file.pack(model)


def _count(names: Iterator[str]) -> dict[str, int]:
    return dict(sorted(Counter(names).items()))


def _describe_conversion_failure(error: Exception, function: Any) -> str:
    """Say which operators LiteRT lacks and which layers use them, if that is the reason."""
    text = str(error)
    found = re.findall(r"(?:TF Select|Custom) ops: (.+)", text)
    kinds = {kind.strip() for line in found for kind in line.split(",")}
    kinds |= set(re.findall(r"'tf\.(\w+)' op is neither a custom op nor a flex op", text))
    if not kinds:
        return _describe(error)
    layers: set[str] = set()
    with contextlib.suppress(Exception):  # A name more is a courtesy; the operators are the news.
        graph = function.graph.as_graph_def()
        nodes = [*graph.node, *(n for f in graph.library.function for n in f.node_def)]
        layers = {node.name.rpartition("/")[0] for node in nodes if node.op in kinds}
    where = f" (in {', '.join(sorted(layers))})" if any(layers) else ""
    return (
        f"LiteRT has no built-in operator for {', '.join(sorted(kinds))}{where}. Write that layer "
        "with other operations: a file that needs TensorFlow's own kernels does not run on a phone."
    )


def _describe(error: Exception) -> str:
    """Return the type and the beginning of an error's message."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    text = "\n".join(lines[:6])
    return f"{type(error).__name__}: {text[:1500]}"


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
