"""The ranges of an int8 file's activations: those that quantize them with the least error.

The converter takes as a tensor's range all values that it saw. Where a few of them lie far out,
256 levels spread over all are too coarse for the others. Clipping those few costs less than it
gains, up to some limit, which is searched for here tensor by tensor: the range of least mean
squared error (Nagel et al. 2021, "A White Paper on Neural Network Quantization", arXiv:2106.08295,
section 3.1).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from ai_edge_litert.interpreter import Interpreter

from keras_hybrid.export import litert_file
from keras_hybrid.export.preparation import IMAGE, SIGNATURE

__all__: list[str] = []

_STEPS = 255
# The fractions of the converter's range that are tried, at each of its ends.
_FRACTIONS = (1.0, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05)
_SAMPLE = 2**16  # values of a tensor that are looked at


@dataclass(frozen=True)
class Observation:
    """What a calibrated file computed of some images, in float32.

    Attributes:
        samples: Values of each tensor that has a range, by the tensor's index; drawn at random
            from a large tensor, as many of each image.
        outputs: Its outputs by name, for each image.
    """

    samples: dict[int, np.ndarray]
    outputs: list[dict[str, np.ndarray]]


def observe(calibrated: bytes, inputs: Sequence[np.ndarray]) -> Observation:
    """Run a calibrated file.

    Args:
        calibrated: A LiteRT file in float32 with the smallest and largest value of each tensor, as
            TensorFlow's converter calibrates it.
        inputs: What it takes at each call, of one image.

    Returns:
        What it computed.
    """
    graph = litert_file.unpack(calibrated).subgraphs[0]
    ranged = [
        index
        for operator in graph.operators
        for index in operator.outputs
        if (stated := graph.tensors[index].quantization) is not None and stated.min is not None
    ]
    interpreter = Interpreter(model_content=calibrated, experimental_preserve_all_tensors=True)
    share = _SAMPLE // len(inputs)
    generator = np.random.default_rng(0)
    samples: dict[int, list[np.ndarray]] = {index: [] for index in ranged}
    outputs = []
    for x in inputs:
        outputs.append(_call(interpreter, x))
        for index in ranged:
            values = interpreter.get_tensor(index).ravel()
            if values.size > share:
                values = values[generator.integers(0, values.size, share)]
            samples[index].append(values)
    return Observation({k: np.concatenate(v) for k, v in samples.items()}, outputs)


def with_least_error_ranges(calibrated: bytes, observation: Observation) -> bytes:
    """Return a calibrated file with the ranges of least error in place of the widest."""
    model = litert_file.unpack(calibrated)
    for index, values in observation.samples.items():
        stated = model.subgraphs[0].tensors[index].quantization
        low, high = least_error_range(values, float(stated.min[0]), float(stated.max[0]))
        stated.min, stated.max = np.float32([low]), np.float32([high])
    return litert_file.pack(model)


def least_error_range(values: np.ndarray, low: float, high: float) -> tuple[float, float]:
    """Return the range within another one that quantizes values with the least squared error.

    Args:
        values: Values of a tensor, a float32 array (values,).
        low: Smallest value of the range that is narrowed.
        high: Its largest value.

    Returns:
        The ends of the range, ``low <= 0 <= high`` as LiteRT's quantization has it.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    if not 0 < high - low < np.inf:
        return low, high
    ranges = [(low * f, high * f) for f in _FRACTIONS]
    for _ in range(3):
        # Of ranges that are equally good the first, the widest of them.
        lower, upper = found = min(ranges, key=lambda ends: squared_error(values, *ends))
        ranges = [found]
        ranges += [(low * f, upper) for f in _FRACTIONS] + [(lower, high * f) for f in _FRACTIONS]
    return found


def squared_error(values: np.ndarray, low: float, high: float) -> float:
    """Return the mean squared error of values in int8.

    Args:
        values: A float32 array (values,).
        low: Lower end of the range that 256 levels are spread over, at most 0.
        high: Its upper end, at least 0 and above ``low``.
    """
    scale = np.float32((high - low) / _STEPS)
    zero = np.round(-low / scale)
    levels = np.clip(np.round(values / scale) + zero, 0, _STEPS)
    return float(np.mean(np.square((levels - zero) * scale - values)))


def output_error(
    content: bytes, inputs: Sequence[np.ndarray], expected: Sequence[dict[str, np.ndarray]]
) -> float:
    """Return how far a file's outputs are from others where they are furthest.

    Args:
        content: A LiteRT file.
        inputs: What it takes at each call.
        expected: The outputs by name that are asked for at each call.

    Returns:
        The sum of squared differences as a fraction of the sum of squares of what is asked for,
        the largest of all calls and outputs; infinite where the file answers with what is no
        number.
    """
    interpreter = Interpreter(model_content=content)
    tiny = np.finfo("float32").tiny
    errors = [
        np.sum(np.square(answer[name] - output)) / max(np.sum(np.square(output)), tiny)
        for x, outputs in zip(inputs, expected, strict=True)
        for answer in [_call(interpreter, x)]
        for name, output in outputs.items()
    ]
    return float(np.nan_to_num(np.max(errors), nan=np.inf))


def _call(interpreter: Interpreter, x: np.ndarray) -> dict[str, np.ndarray]:
    """Run a file's signature on what it takes, and return its outputs by name."""
    return interpreter.get_signature_runner(SIGNATURE)(**{IMAGE: x})
