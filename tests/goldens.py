"""Reads the parity files: deterministic weights, one input, the output that must come out."""

import json
import pathlib

import numpy as np
import pytest

FOLDER = pathlib.Path(__file__).resolve().parents[2] / "shared" / "goldens"


def _uniform(start: int, count: int) -> np.ndarray:
    index = np.arange(start, start + count, dtype=np.uint64) & np.uint64(0xFFFFFFFF)
    x = index.astype(np.uint32)
    x ^= x >> np.uint32(16)
    x *= np.uint32(0x7FEB352D)
    x ^= x >> np.uint32(15)
    x *= np.uint32(0x846CA68B)
    x ^= x >> np.uint32(16)
    return x.astype(np.float64) / 2**31 - 1.0


class Golden:
    """One parity file.

    Attributes:
        weights: Name in the original implementation → float32 array in PyTorch layout.
        input: float32, (batch, height, width, channels).
        extra: Further inputs, in the file's order.
        output: The expected values, flat.
    """

    def __init__(self, name: str):
        path = FOLDER / f"{name}.json"
        if not path.exists():
            pytest.skip(f"parity file {path} is not here")
        self.spec = json.loads(path.read_text())
        offset = self.spec.get("hash_offset", 0)
        counter = offset
        self.weights = {}
        for kind in ("params", "buffers"):
            for weight_name, shape in self.spec[kind]:
                count = int(np.prod(shape))
                value = self._fill(weight_name, shape, _uniform(counter, count), kind)
                self.weights[weight_name] = value.reshape(shape).astype("float32")
                counter += count
        shape = self.spec["input_shape"]
        x = _uniform(2**31 + offset, int(np.prod(shape))).reshape(shape).astype("float32")
        self.input = x.transpose(0, 2, 3, 1)
        extra = self.spec.get("extra") or {}
        self.extra = [np.array(value, "float32") for value in extra.values()]
        self.output = np.array(self.spec["output"], "float64")

    def _fill(self, name, shape, v, kind):
        if kind == "buffers":
            return 0.3 * v if name.endswith("running_mean") else 1 + 0.5 * v
        if "pos" in name or "cls" in name:
            return v
        if len(shape) >= 2:
            fan_in = max(1, int(np.prod(shape[1:])))
            return v * np.sqrt(3 * self.spec["gain"] / fan_in)
        return 1 + 0.3 * v if name.endswith("weight") else 0.3 * v

    def error(self, output) -> float:
        """Relative L2 distance of a model's output (NHWC or flat) from the expected one."""
        y = np.asarray(output, "float64")
        if y.ndim == 4:
            y = y.transpose(0, 3, 1, 2)
        y = y.reshape(-1)[:: self.spec.get("output_stride", 1)]
        assert y.shape == self.output.shape
        return float(np.linalg.norm(y - self.output) / np.linalg.norm(self.output))
