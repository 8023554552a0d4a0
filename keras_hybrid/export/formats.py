"""The three exports: what they accept, how they are checked, and how a file takes its place."""

import importlib
import json
import math
import shutil
import tempfile
import time
from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np

from keras_hybrid._arguments import positive_integer
from keras_hybrid._version import __version__
from keras_hybrid.export.calibration import CALIBRATED
from keras_hybrid.export.preparation import (
    IMAGE,
    PATTERN,
    SIGNATURE,
    PreparedModel,
    choose_samples,
    prepare,
    read_images,
)
from keras_hybrid.export.process import ExportError, require, run_conversion
from keras_hybrid.export.report import (
    ExportReport,
    TensorSignature,
    relative_difference,
    smallest_cosine,
)

Quantization = Literal["float16", "dynamic", "int8", "int8_cpu"]
Output = Literal["predictions", "embedding", "cosines", "probabilities"]

_QUANTIZATIONS = (None, "float16", "dynamic", "int8", "int8_cpu")
_FLOAT32_TOLERANCE = 1e-2
_OF_A_SAVED_MODEL = frozenset(
    ("saved_model.pb", "fingerprint.pb", "keras_metadata.pb", "variables", "assets", "assets.extra")
)
# Of input_range: what resizing with cubic interpolation may add, and what photographs exceed.
_OVERSHOOT = 0.1
_LEAST_VARIATION = 0.02


def to_saved_model(
    model: keras.Model | str | PathLike,
    path: str | PathLike,
    *,
    output: Output | None = None,
    labels: Sequence[str] | None = None,
    input_range: tuple[float, float] = (0.0, 255.0),
    tolerance: float | None = None,
    import_modules: Sequence[str] = (),
) -> ExportReport:
    """Export a model to a TensorFlow SavedModel with a free batch size.

    The signature ``serving_default`` takes ``image``, float32 ``(batch, height, width,
    channels)``, and returns ``output`` (or ``embedding``; a model of several outputs keeps their
    names). ``tf.saved_model.load(path)`` needs neither Keras nor this package. What the signature
    expects of an image is written beside it; see :func:`read_metadata`.

    Args:
        model: A built Functional or Sequential model with one image input of fixed size,
            ``channels_last``, of any backend and precision policy; or the path of a ``.keras``
            file.
        path: The folder to write. A SavedModel that is there already is replaced once the new
            one has been checked.
        output: ``None`` or ``"predictions"`` for the model's own outputs, whatever they are;
            ``"embedding"`` for the L2-normalised output of its layer ``embedding``; ``"cosines"``
            of a cosine classifier; ``"probabilities"`` of any other, with a softmax (of one unit: a
            sigmoid) if it has none. The last two ask for a model that ends in a layer
            ``predictions``.
        labels: Names of the classes, in the order of the scores, to travel in the file.
        input_range: Smallest and largest value the model expects of an image; [0, 255] unless it
            was built with ``include_preprocessing=False``.
        tolerance: Largest accepted difference from each of the model's own outputs, as a fraction
            of the largest value there. ``None`` means 0.01.
        import_modules: Modules to import before the model is loaded for conversion, where custom
            layers are registered in a module other than the one that defines them.

    Returns:
        The report of the SavedModel, loaded again and run.

    Raises:
        ValueError: If the model or an argument cannot be exported as given.
        ImportError: If TensorFlow is missing.
        ExportError: If the conversion fails, or its result differs from the model.
    """
    require("tensorflow", purpose="Export to SavedModel")
    target = Path(path)
    if target.suffix in {".keras", ".h5", ".tflite", ".onnx", ".pb"}:
        raise ValueError(f"A SavedModel is a folder; path ends in {target.suffix!r}: {target}")
    if PATTERN & set(str(target.resolve())):
        raise ValueError(
            "TensorFlow takes *, ?, [ and ] in the path of a SavedModel for a pattern and would "
            f"not find its variables: {target.resolve()}. Give a path without."
        )
    there = {file.name for file in target.iterdir()} if target.is_dir() else set()
    if target.is_file() or (there and not (target / "saved_model.pb").is_file()):
        raise ValueError(f"{target} exists and is not a SavedModel; it is left as it is.")
    if others := sorted(there - _OF_A_SAVED_MODEL):
        raise ValueError(
            f"{target} would be replaced, and holds what is not of a SavedModel: "
            f"{', '.join(others[:5])}. Move that, or give another path."
        )
    return _export(
        model,
        target,
        "saved_model",
        backend="tensorflow",
        output=output,
        labels=labels,
        input_range=input_range,
        tolerance=tolerance,
        import_modules=import_modules,
    )


def to_litert(
    model: keras.Model | str | PathLike,
    path: str | PathLike,
    quantization: Quantization | None = None,
    representative_data: np.ndarray | Iterable[Any] | None = None,
    *,
    output: Output | None = None,
    labels: Sequence[str] | None = None,
    batch_size: int | None = 1,
    input_dtype: Literal["float32", "uint8"] = "float32",
    input_range: tuple[float, float] = (0.0, 255.0),
    tolerance: float | None = None,
    import_modules: Sequence[str] = (),
) -> ExportReport:
    """Export a model to a LiteRT (TensorFlow Lite) file of built-in operators only.

    The file's signature ``serving_default`` takes ``image`` and returns float32 ``output`` (or
    ``embedding``; of several outputs their keys or layers' names). What it expects of an image is
    written into the file; see :func:`read_metadata`.

    Kinds of quantization:

    - ``None``: float32 weights and arithmetic.
    - ``"float16"``: half the size; weights are stored in float16 and widened on load.
    - ``"dynamic"``: weights in int8, about a quarter of the size; activations are quantized on
      the fly, so no data are needed. XNNPACK has no such kernel for depthwise convolutions: a
      MobileFaceNet is slower so than in float32 (see ``docs/export.md``).
    - ``"int8"``: weights and activations in int8, for accelerators without floating point. An
      operator without an int8 kernel stays in float32. On a CPU attention and PReLU are slower
      so than in float32: LiteRT has slow kernels for products of activations and for PReLU.
    - ``"int8_cpu"``: the same size, with those products, PReLU, softmax and the statistics of
      layer normalisation (means, squared differences, inverse square roots) in float32. Without
      any of them it is ``"int8"``, but for global pooling.

    All kinds are made by the TensorFlow converter. Of int8 files the ranges of activations are
    ours: those that quantize them with the least squared error, instead of all values that were
    seen (:mod:`keras_hybrid.export.ranges`). Where the worst answer to one of up to 100
    representative images is nearer to float32 with the converter's own ranges, these are taken.

    Args:
        model: A built Functional or Sequential model with one image input of fixed size,
            ``channels_last``, of any backend and precision policy; or the path of a ``.keras``
            file.
        path: The ``.tflite`` file to write. One that is there already is replaced once the new
            one has been checked.
        quantization: ``None``, ``"float16"``, ``"dynamic"``, ``"int8"`` or ``"int8_cpu"``.
        representative_data: Images of the kind the model will see, with values in
            ``input_range``: an array ``(n, height, width, channels)``, or an iterable of such
            arrays, of single images, or of tuples beginning with one. A hundred varied images
            calibrate well; the first 1000 are used. Required for ``"int8"`` and ``"int8_cpu"``.
            Images that drive a layer to more than eight times the median image's largest value
            are left out, at most one in twenty, and named in the report: the range of a tensor
            that held them would leave too few levels to all others. A model for batches of a fixed
            size above one is calibrated with all images.
            Where given, the file is compared with the model on eight of them, otherwise on
            made-up images.
        output: ``None`` or ``"predictions"`` for the model's own outputs, whatever they are;
            ``"embedding"`` for the L2-normalised output of its layer ``embedding``; ``"cosines"``
            of a cosine classifier; ``"probabilities"`` of any other, with a softmax (of one unit: a
            sigmoid) if it has none. The last two ask for a model that ends in a layer
            ``predictions``.
        labels: Names of the classes, in the order of the scores, to travel in the file.
        batch_size: Number of images per call; ``None`` leaves it free, at some cost in operators.
        input_dtype: ``"uint8"`` makes the file take a camera image unchanged.
        input_range: Smallest and largest value the model expects of an image; [0, 255] unless it
            was built with ``include_preprocessing=False``.
        tolerance: Largest accepted difference from each of the model's own outputs, as a fraction
            of the largest value there. ``None`` means 0.01 without quantization and no limit with
            it.
        import_modules: Modules to import before the model is loaded for conversion, where custom
            layers are registered in a module other than the one that defines them.

    Returns:
        The report of the file, loaded again and run.

    Raises:
        ValueError: If the model or an argument cannot be exported as given.
        ImportError: If TensorFlow or ai-edge-litert is missing.
        ExportError: If the conversion fails, which it does for an operator that LiteRT does not
            have built in, or if its result differs from the model.
    """
    require("tensorflow", "ai_edge_litert", purpose="Export to LiteRT")
    target = _file_target(path, ".tflite")
    if quantization not in _QUANTIZATIONS:
        raise ValueError(
            f"quantization must be one of {_QUANTIZATIONS}, received {quantization!r}."
        )
    if input_dtype not in ("float32", "uint8"):
        raise ValueError(f"input_dtype must be 'float32' or 'uint8', received {input_dtype!r}.")
    if input_dtype == "uint8" and tuple(input_range) != (0, 255):
        raise ValueError(
            f"input_dtype='uint8' needs a model that takes values in [0, 255]; input_range is "
            f"{input_range}."
        )
    batch_size = _check_batch_size(batch_size)
    if quantization in CALIBRATED and representative_data is None:
        raise ValueError(
            f"quantization={quantization!r} needs representative_data: about a hundred images of "
            "the kind the model will see, an array (n, height, width, channels) with values in "
            f"[{input_range[0]:g}, {input_range[1]:g}] or an iterable of such arrays."
        )
    return _export(
        model,
        target,
        "litert",
        backend="tensorflow",
        output=output,
        labels=labels,
        quantization=quantization,
        representative_data=representative_data,
        batch_size=batch_size,
        input_dtype=input_dtype,
        input_range=input_range,
        tolerance=tolerance,
        import_modules=import_modules,
    )


def to_onnx(
    model: keras.Model | str | PathLike,
    path: str | PathLike,
    *,
    output: Output | None = None,
    labels: Sequence[str] | None = None,
    input_range: tuple[float, float] = (0.0, 255.0),
    tolerance: float | None = None,
    import_modules: Sequence[str] = (),
) -> ExportReport:
    """Export a model to an ONNX file with a free batch size.

    The file takes ``image``, float32 ``(batch, height, width, channels)``, and returns ``output``
    (or ``embedding``; of several outputs their keys or layers' names). It has passed
    ``onnx.checker`` and run in ONNX Runtime. What it expects of an image is written into the
    file; see :func:`read_metadata`.

    Args:
        model: A built Functional or Sequential model with one image input of fixed size,
            ``channels_last``, of any backend and precision policy; or the path of a ``.keras``
            file.
        path: The ``.onnx`` file to write. One that is there already is replaced once the new one
            has been checked.
        output: ``None`` or ``"predictions"`` for the model's own outputs, whatever they are;
            ``"embedding"`` for the L2-normalised output of its layer ``embedding``; ``"cosines"``
            of a cosine classifier; ``"probabilities"`` of any other, with a softmax (of one unit: a
            sigmoid) if it has none. The last two ask for a model that ends in a layer
            ``predictions``.
        labels: Names of the classes, in the order of the scores, to travel in the file.
        input_range: Smallest and largest value the model expects of an image; [0, 255] unless it
            was built with ``include_preprocessing=False``.
        tolerance: Largest accepted difference from each of the model's own outputs, as a fraction
            of the largest value there. ``None`` means 0.01.
        import_modules: Modules to import before the model is loaded for conversion, where custom
            layers are registered in a module other than the one that defines them.

    Returns:
        The report of the file, loaded again and run.

    Raises:
        ValueError: If the model or an argument cannot be exported as given.
        ImportError: If JAX, jax2onnx, onnx or onnxruntime is missing.
        ExportError: If the conversion fails, or its result differs from the model.
    """
    require("jax", "jax2onnx", "onnx", "onnxruntime", purpose="Export to ONNX")
    return _export(
        model,
        _file_target(path, ".onnx"),
        "onnx",
        backend="jax",
        output=output,
        labels=labels,
        input_range=input_range,
        tolerance=tolerance,
        import_modules=import_modules,
    )


def _export(
    model: keras.Model | str | PathLike,
    target: Path,
    format: str,
    *,
    backend: str,
    output: str | None,
    labels: Sequence[str] | None,
    input_range: tuple[float, float],
    tolerance: float | None,
    import_modules: Sequence[str],
    quantization: str | None = None,
    representative_data: Any = None,
    batch_size: int | None = None,
    input_dtype: str = "float32",
) -> ExportReport:
    """Convert, check and put in place; leave ``target`` as it is unless all of it succeeds."""
    started = time.perf_counter()
    _check_input_range(input_range)
    _check_no_text("import_modules", import_modules, "names of modules")
    _check_no_text("labels", labels, "names of the classes")
    if tolerance is None:
        tolerance = _FLOAT32_TOLERANCE if quantization is None else math.inf
    target.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target, so that the last step is a rename on one file system.
    with tempfile.TemporaryDirectory(
        prefix=f".{target.name}-", dir=target.parent, ignore_cleanup_errors=True
    ) as name:
        folder = Path(name).resolve()
        if not isinstance(model, keras.Model):
            for module in import_modules:
                importlib.import_module(module)
        prepared = prepare(model, output, folder)
        _check_labels(labels, prepared)
        images = None
        if representative_data is not None:
            images = read_images(representative_data, prepared.image_shape)
            _check_images(images, input_range, input_dtype)
        samples = choose_samples(
            images, prepared.image_shape, input_range, whole_numbers=input_dtype == "uint8"
        )
        expected = prepared.predict(samples)
        np.save(folder / "samples.npy", samples)
        if quantization in CALIBRATED:
            np.save(folder / "representative_data.npy", images)
        made = folder / "made" / target.name  # apart: a target may be named as a file of the job
        made.parent.mkdir()
        job = {
            "format": format,
            "folder": str(folder),  # for files that only the conversion needs
            "model": str(prepared.folder),  # a Keras archive, unzipped
            "modules": [*prepared.modules, *import_modules],  # to import before loading it
            "target": str(made),  # what to write
            "output_names": prepared.output_names,
            "samples": str(folder / "samples.npy"),  # images to run the result on
            "results": str(folder / "results.npz"),  # where its outputs go
            "metadata": _describe(
                prepared, labels, batch_size, input_dtype, input_range, quantization, expected
            ),
            "quantization": quantization,
            "representative_data": str(folder / "representative_data.npy"),
            "batch_size": batch_size,
            "input_dtype": input_dtype,
        }
        answer = run_conversion(job, folder, backend)
        with np.load(folder / "results.npz") as results:
            actual = [results[key] for key in results.files]
        difference, scale = _compare(actual, expected, tolerance, format)
        size = sum(file.stat().st_size for file in [made, *made.rglob("*")] if file.is_file())
        _put_in_place(made, target, folder)
    return ExportReport(
        path=target,
        format=format,
        size_bytes=size,
        max_abs_difference=difference,
        output_scale=scale,
        cosine=smallest_cosine(actual, expected),
        samples=len(samples),
        operators=answer["operators"],
        quantization=quantization,
        inputs=_signatures(answer["inputs"]),
        outputs=_signatures(answer["outputs"]),
        seconds=round(time.perf_counter() - started, 3),
        left_out=tuple(answer.get("left_out", ())),
    )


def _file_target(path: str | PathLike, suffix: str) -> Path:
    target = Path(path)
    if target.suffix != suffix:
        raise ValueError(f"path must end in {suffix!r}, received {str(target)!r}.")
    if target.is_dir():
        raise ValueError(f"{target} is a folder; give the name of a {suffix} file.")
    return target


def _check_batch_size(batch_size: Any) -> int | None:
    """Return the size as an int, of whichever library it comes."""
    if batch_size is None:
        return None
    number = None if isinstance(batch_size, bool) else positive_integer(batch_size)
    if number is None:
        raise ValueError(f"batch_size must be a positive int or None, received {batch_size!r}.")
    return number


def _check_no_text(argument: str, value: Any, content: str) -> None:
    """Raise ValueError for a text, which would be taken letter by letter."""
    if isinstance(value, str):
        raise ValueError(f"{argument} must be a sequence of {content}, received the str {value!r}.")


def _check_input_range(input_range: tuple[float, float]) -> None:
    numbers = np.asarray(input_range)
    if numbers.shape != (2,) or not np.isfinite(numbers).all() or numbers[0] >= numbers[1]:
        raise ValueError(
            f"input_range must be two numbers, the smaller one first, received {input_range!r}."
        )


def _check_images(images: np.ndarray, input_range: tuple[float, float], input_dtype: str) -> None:
    """Raise ValueError for images of another range, which would calibrate for another model."""
    low, high = input_range
    smallest, largest = float(images.min()), float(images.max())
    slack = 0 if input_dtype == "uint8" else _OVERSHOOT * (high - low)
    if not low - slack <= smallest <= largest <= high + slack:
        problem = f"must have values in input_range [{low:g}, {high:g}]"
    elif largest - smallest < _LEAST_VARIATION * (high - low):
        problem = f"must fill input_range [{low:g}, {high:g}] as photographs do"
    else:
        return
    raise ValueError(
        f"representative_data {problem}, received values in [{smallest:g}, {largest:g}]. Scale the "
        "images as the model expects them, or give its range in input_range."
    )


def _check_labels(labels: Sequence[str] | None, prepared: PreparedModel) -> None:
    if labels is None:
        return
    shapes = [tuple(tensor.shape[1:]) for tensor in prepared.model.outputs]
    if prepared.kind == "embedding" or shapes != [(len(labels),)]:
        raise ValueError(
            f"labels names {len(labels)} classes; the exported {prepared.kind} have the shape "
            f"{', '.join(map(str, shapes))} for one image."
        )


def _describe(
    prepared: PreparedModel,
    labels: Sequence[str] | None,
    batch_size: int | None,
    input_dtype: str,
    input_range: tuple[float, float],
    quantization: str | None,
    expected: list[np.ndarray],
) -> str:
    """Return the description that travels inside the file, as JSON."""
    channels = prepared.image_shape[-1]
    return json.dumps(
        {
            "model": prepared.model_name,
            "signature": SIGNATURE,
            "input": {
                "name": IMAGE,
                "shape": [batch_size, *prepared.image_shape],
                "dtype": input_dtype,
                "layout": "NHWC",
                "color_order": {1: "grayscale", 3: "RGB"}.get(channels),
                "value_range": [float(value) for value in input_range],
                "normalization": prepared.normalization,
            },
            "outputs": [
                {
                    "name": name,
                    "kind": prepared.kind,
                    "shape": [batch_size, *array.shape[1:]],
                    "l2_normalized": prepared.kind == "embedding",
                }
                for name, array in zip(prepared.output_names, expected, strict=True)
            ],
            "labels": None if labels is None else [str(label) for label in labels],
            "quantization": quantization,
            "keras_hybrid_version": __version__,
        }
    )


def _compare(
    actual: list[np.ndarray], expected: list[np.ndarray], tolerance: float, format: str
) -> tuple[float, float]:
    """Return difference and scale of the output that is furthest off; raise if that is too far.

    The scale is the largest expected value there; the largest of all where it is zero throughout.
    """
    if not all(np.isfinite(array).all() for array in expected):
        raise ExportError(
            "The model itself returns values that are not finite in float32, so an export could "
            "not be checked."
        )
    shapes = [array.shape for array in actual], [array.shape for array in expected]
    if shapes[0] != shapes[1]:
        raise ExportError(
            f"The exported {format} returns shapes {shapes[0]}, the model {shapes[1]}."
        )
    if not all(np.isfinite(array).all() for array in actual):
        raise ExportError(f"The exported {format} returns values that are not finite.")
    # Each output by its own scale: a small one must not hide beside a large one.
    scales = [float(np.abs(array).max()) for array in expected]
    measured = [
        (float(np.abs(one - other).max()), scale or max(scales))
        for one, other, scale in zip(actual, expected, scales, strict=True)
    ]
    difference, scale = max(measured, key=lambda pair: relative_difference(*pair))
    relative = relative_difference(difference, scale)
    if relative > tolerance:
        raise ExportError(
            f"The exported {format} differs from the model by {difference:.3g}, {relative:.2g} "
            f"of the largest value of that output; tolerance is {tolerance:g}. Nothing was written."
        )
    return difference, scale


def _put_in_place(made: Path, target: Path, folder: Path) -> None:
    """Rename what was made to the target; a folder in its place steps aside first."""
    if target.is_dir():
        former = folder / "former"
        target.rename(former)
        try:
            made.rename(target)
        except BaseException:  # Ctrl+C, too: what was there is not lost
            former.rename(target)
            raise
        shutil.rmtree(former, ignore_errors=True)
    else:
        made.replace(target)


def _signatures(tensors: list[list]) -> tuple[TensorSignature, ...]:
    return tuple(TensorSignature(name, tuple(shape), dtype) for name, shape, dtype in tensors)
