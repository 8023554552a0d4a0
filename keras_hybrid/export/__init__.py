"""Export a trained model to SavedModel, LiteRT or ONNX, from any Keras backend.

Every function writes the file, loads it again, runs it and returns an :class:`ExportReport` that
says how far its answers are from the model's own. Nothing is written where the export fails.

A conversion runs in a process of its own, with the backend that the format needs (TensorFlow for
SavedModel and LiteRT, JAX for ONNX), so it does not matter which backend or precision policy the
model was trained with. ``pip install "keras-hybrid[export]"`` installs what the formats need;
this package itself imports without any of it.
"""

from keras_hybrid.export.formats import to_litert, to_onnx, to_saved_model
from keras_hybrid.export.litert_model import LiteRTModel
from keras_hybrid.export.metadata import read_metadata
from keras_hybrid.export.process import ExportError
from keras_hybrid.export.report import ExportReport, TensorSignature

__all__ = [
    "ExportError",
    "ExportReport",
    "LiteRTModel",
    "TensorSignature",
    "read_metadata",
    "to_litert",
    "to_onnx",
    "to_saved_model",
]
