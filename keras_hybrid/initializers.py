"""Initial weights drawn by NumPy: the same on every backend, with nothing to compile.

Keras has the backend draw, which makes a seed mean other weights on each, and JAX compile every
shape of every distribution before a model is there. These draw on the host and hand the numbers
over. What they are called and take is Keras's; `docs/performance.md` has what they save.
"""

import functools
import math

import keras
import numpy as np
from keras import ops

__all__ = ["RandomNormal", "RandomUniform", "VarianceScaling"]

# Above this count the backend draws: only it can draw a sharded tensor in parts on its devices.
LARGEST = 2**24


@functools.cache
def _normal_levels() -> np.ndarray:
    """Return 65,536 equally likely values of mean 0 and variance 1, the normal's quantiles.

    A table read by 16 random bits costs a fifth of computing each normal number. It ends at 4.3
    standard deviations, beyond which a normal distribution has two of 100,000 numbers.
    """
    grid, step = np.linspace(0, 4.5, 2**14, retstep=True)
    density = np.exp(-(grid**2) / 2) / math.sqrt(2 * math.pi)
    mass = np.append(0, np.cumsum((density[1:] + density[:-1]) / 2 * step))
    above = np.interp((np.arange(2**15) + 0.5) / 2**16, mass, grid)
    values = np.concatenate([-above[::-1], above])
    return (values / values.std()).astype("float32")


def _drawn_here(initializer: keras.initializers.Initializer, shape: tuple[int, ...]) -> bool:
    """Return whether NumPy draws: not from a `SeedGenerator`, whose state is the backend's."""
    return isinstance(initializer.seed, int) and math.prod(shape) <= LARGEST


def _generator(seed: int, shape: tuple[int, ...]) -> np.random.Generator:
    """Return a generator for one tensor: with equal seeds, other shapes begin otherwise."""
    return np.random.Generator(np.random.SFC64([seed % 2**64, *shape]))


def _moved(values: np.ndarray, factor: float, offset: float, dtype):
    """Return ``values * factor + offset`` as the backend's tensor, without another copy."""
    values *= np.float32(factor)
    if offset:
        values += np.float32(offset)
    return ops.convert_to_tensor(values, dtype or keras.config.floatx())


def _normal(shape, mean: float, stddev: float, seed: int, dtype):
    values = _normal_levels().take(
        _generator(seed, shape).integers(2**16, size=shape, dtype="uint16")
    )
    return _moved(values, stddev, mean, dtype)


def _uniform(shape, low: float, high: float, seed: int, dtype):
    values = _generator(seed, shape).random(size=shape, dtype="float32")
    return _moved(values, high - low, low, dtype)


@keras.saving.register_keras_serializable(package="keras_hybrid")
class RandomNormal(keras.initializers.RandomNormal):
    """Draws from a normal distribution without a cut, as `torch.nn.init.normal_` does.

    The numbers are 65,536 equally likely levels of it, the outermost at 4.3 standard deviations.
    With the same seed and shape they are the same on every backend. Above 2²⁴ numbers, or where
    ``seed`` is a `keras.random.SeedGenerator`, it is Keras's own initializer.

    Args:
        mean: Mean of the numbers.
        stddev: Their standard deviation.
        seed: An integer, or None for one that `keras.utils.set_random_seed` decides. The same
            object draws the same numbers each time, and so does its ``clone()`` unless it is None.

    Example:
        >>> keras.layers.Dense(8, kernel_initializer=kh.initializers.RandomNormal(stddev=0.02))
    """

    def __call__(self, shape, dtype=None):
        if not _drawn_here(self, shape):
            return super().__call__(shape, dtype)
        return _normal(shape, float(self.mean), float(self.stddev), self.seed, dtype)


@keras.saving.register_keras_serializable(package="keras_hybrid")
class RandomUniform(keras.initializers.RandomUniform):
    """Draws from a uniform distribution, as `torch.nn.init.uniform_` does.

    With the same seed and shape the numbers are the same on every backend. Above 2²⁴ numbers, or
    where ``seed`` is a `keras.random.SeedGenerator`, it is Keras's own initializer.

    Args:
        minval: The smallest number.
        maxval: What no number reaches, up to rounding.
        seed: As of `RandomNormal`.
    """

    def __call__(self, shape, dtype=None):
        if not _drawn_here(self, shape):
            return super().__call__(shape, dtype)
        return _uniform(shape, float(self.minval), float(self.maxval), self.seed, dtype)


@keras.saving.register_keras_serializable(package="keras_hybrid")
class VarianceScaling(keras.initializers.VarianceScaling):
    """Draws with a variance of ``scale`` over the number of a unit's inputs, outputs or their mean.

    ``VarianceScaling(2.0, "fan_out", "untruncated_normal")`` is He et al. 2015 as PyTorch's
    `kaiming_normal_` has it, ``VarianceScaling(1.0, "fan_avg", "uniform")`` Glorot and Bengio 2010.
    With the same seed and shape the numbers are the same on every backend. With a truncated normal
    distribution, given axes, above 2²⁴ numbers, or where ``seed`` is a
    `keras.random.SeedGenerator`, it is Keras's own initializer.

    Args:
        scale: Factor of the variance.
        mode: ``"fan_in"``, ``"fan_out"`` or ``"fan_avg"``.
        distribution: ``"truncated_normal"``, ``"untruncated_normal"`` or ``"uniform"``.
        seed: As of `RandomNormal`.

    Raises:
        ValueError: If an argument is none of these.
    """

    def __call__(self, shape, dtype=None):
        others = self.distribution == "truncated_normal" or self.input_axes or self.output_axes
        if others or not _drawn_here(self, shape):
            return super().__call__(shape, dtype)
        inputs, outputs = (shape[-2], shape[-1]) if len(shape) > 1 else (math.prod(shape),) * 2
        window = math.prod(shape[:-2])
        fan = {"fan_in": inputs, "fan_out": outputs, "fan_avg": (inputs + outputs) / 2}[self.mode]
        variance = self.scale / max(1.0, fan * window)
        if self.distribution == "uniform":
            limit = math.sqrt(3 * variance)
            return _uniform(shape, -limit, limit, self.seed, dtype)
        return _normal(shape, 0.0, math.sqrt(variance), self.seed, dtype)
