"""The description that travels inside an exported file, and how to read it back.

It says what a program on a phone has to know before it can feed an image: the size, the colour
order and the value range of the input, what the outputs are and, where given, the names of the
classes. Per format it lies where the
format keeps such things: a LiteRT metadata buffer named ``keras_hybrid``, an ONNX
``metadata_props`` entry of that name, and ``assets.extra/keras_hybrid.json`` in a SavedModel.
"""

import json
from os import PathLike
from pathlib import Path
from typing import Any

from keras_hybrid.export.process import require

METADATA_NAME = "keras_hybrid"
SAVED_MODEL_METADATA = Path("assets.extra", f"{METADATA_NAME}.json")


def read_metadata(path: str | PathLike) -> dict[str, Any]:
    """Read the description that an export of this package left in its file.

    Args:
        path: A ``.tflite`` or ``.onnx`` file, or the folder of a SavedModel.

    Returns:
        A dictionary with the keys

        - ``model``: the model's name,
        - ``signature``: the name to call it by, ``"serving_default"`` (ONNX has no such names),
        - ``input``: ``name``, ``shape`` (the batch is ``None`` where it is free), ``dtype``,
          ``layout`` ("NHWC"), ``color_order`` ("RGB", "grayscale" or ``None``), ``value_range``
          to feed, and ``normalization``, the ``scale`` and ``offset`` that the model itself then
          applies, numbers or one for each channel (``None`` where no single layer does, or where
          that cannot be told): there is nothing to do before feeding,
        - ``outputs``: for each ``name``, ``kind`` ("embedding", "cosines", "probabilities", or
          "predictions" for what is not known more closely), ``shape`` and ``l2_normalized``,
        - ``labels``: names of the classes in the order of the scores, or ``None``,
        - ``quantization`` and ``keras_hybrid_version``.

    Raises:
        FileNotFoundError: If there is no such file or folder.
        ValueError: If the file was not written by this package, or is damaged.
        ImportError: If ``ai-edge-litert`` (for ``.tflite``) or ``onnx`` (for ``.onnx``) is
            missing.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"There is no file or folder {path}.")
    suffix = path.suffix.lower()
    if suffix == ".tflite":
        text = _read_litert(path)
    elif suffix == ".onnx":
        text = _read_onnx(path)
    else:
        file = path / SAVED_MODEL_METADATA
        text = file.read_text(encoding="utf-8") if file.is_file() else None
    if text is None:
        raise ValueError(f"{path} holds no {METADATA_NAME!r} metadata.")
    return json.loads(text)


def _read_litert(path: Path) -> str | None:
    require("ai_edge_litert", purpose="Reading a .tflite file")
    from ai_edge_litert import schema_py_generated as schema

    content = path.read_bytes()
    if content[4:8] != b"TFL3":
        raise ValueError(f"{path} is not a LiteRT file.")
    try:
        model = schema.Model.GetRootAs(content)
        for index in range(model.MetadataLength()):
            entry = model.Metadata(index)
            if entry.Name() == METADATA_NAME.encode():
                return model.Buffers(entry.Buffer()).DataAsNumpy().tobytes().decode("utf-8")
    except Exception as error:  # a damaged file sends the reader anywhere
        raise ValueError(f"{path} is damaged: {error}") from error
    return None


def _read_onnx(path: Path) -> str | None:
    require("onnx", purpose="Reading an .onnx file")
    import onnx
    from google.protobuf.message import DecodeError  # onnx comes with protobuf

    try:
        properties = onnx.load(path, load_external_data=False).metadata_props
    except DecodeError as error:
        raise ValueError(f"{path} is not an ONNX file, or is damaged: {error}") from error
    return next((entry.value for entry in properties if entry.key == METADATA_NAME), None)
