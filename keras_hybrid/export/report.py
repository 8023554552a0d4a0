"""What an export returns: where the file lies, what it holds and how far it is from the model."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class TensorSignature:
    """Name, shape and type of one input or output of an exported model.

    Attributes:
        name: The name under which the tensor is fed or fetched.
        shape: Its shape; ``None`` for a dimension that is free, as the batch may be.
        dtype: Its NumPy type name, ``"float32"`` or ``"uint8"``.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str


@dataclass(frozen=True)
class ExportReport:
    """An exported model, as measured after loading it again.

    Attributes:
        path: The file, or the folder of a SavedModel.
        format: ``"saved_model"``, ``"litert"`` or ``"onnx"``.
        size_bytes: Size of the file, or of all files in the folder.
        max_abs_difference: Largest absolute difference between the exported file's output and the
            float32 model's, over all samples; of several outputs that of the one for which
            ``relative_difference`` is largest. For a model with a mixed-precision policy the
            float32 model is the same weights computed in float32, on the model's own backend.
        output_scale: Largest absolute value of that output of the model, to read
            ``max_abs_difference`` against; of all outputs where that one is zero throughout.
        cosine: Smallest cosine similarity, over samples and outputs, between the exported file's
            output and the model's.
        samples: Number of images compared.
        operators: How often the file uses each operator, sorted by name.
        quantization: ``None``, ``"float16"``, ``"dynamic"``, ``"int8"`` or ``"int8_cpu"``.
        inputs: The inputs of the file.
        outputs: The outputs of the file.
        seconds: Duration of the whole export, the check included.
        left_out: Indices of the representative images that an int8 file was calibrated without,
            since they drive a layer far beyond the others.
    """

    path: Path
    format: str
    size_bytes: int
    max_abs_difference: float
    output_scale: float
    cosine: float
    samples: int
    operators: Mapping[str, int]
    quantization: str | None
    inputs: tuple[TensorSignature, ...]
    outputs: tuple[TensorSignature, ...]
    seconds: float
    left_out: tuple[int, ...] = ()

    @property
    def relative_difference(self) -> float:
        """``max_abs_difference`` as a fraction of ``output_scale``."""
        return relative_difference(self.max_abs_difference, self.output_scale)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain types that ``json.dump`` accepts."""
        values = asdict(self)
        return values | {
            "path": str(self.path),
            "operators": dict(self.operators),
            "inputs": [asdict(tensor) for tensor in self.inputs],
            "outputs": [asdict(tensor) for tensor in self.outputs],
        }


def relative_difference(difference: float, scale: float) -> float:
    """Return ``difference / scale``, and 0 for two outputs that are zero throughout."""
    return 0.0 if difference == 0 else difference / max(scale, np.finfo(np.float32).tiny)


def smallest_cosine(actual: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> float:
    """Return the smallest row-wise cosine similarity between two lists of outputs.

    Args:
        actual: Arrays ``(batch, ...)``.
        expected: Arrays of the same shapes.

    Returns:
        The smallest cosine between corresponding rows, each flattened. Two rows of zeros agree
        (1); a row of zeros and another row do not (0).
    """
    smallest = 1.0
    for one, other in zip(actual, expected, strict=True):
        a = one.reshape(len(one), -1).astype(np.float64)
        b = other.reshape(len(other), -1).astype(np.float64)
        norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        both_zero = ~a.any(axis=1) & ~b.any(axis=1)
        cosines = np.where(both_zero, 1.0, (a * b).sum(axis=1) / np.where(norms > 0, norms, 1.0))
        smallest = min(smallest, float(cosines.min()))
    return smallest
