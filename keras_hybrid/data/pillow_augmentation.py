"""Augmentation of each image on its own with Pillow: random resized crops, and RandAugment.

Keras has no random resized crop, and its RandAugment draws one sequence of operations for a whole
batch. Drawing them for each image, as the papers do, is quicker with Pillow than with Keras's or
KerasCV's layers (``benchmarks/rand_augment.py``), gives the same pictures on every backend, and is
a function of the seed.
"""

import functools
import math
from collections.abc import Callable, Sequence

import numpy as np

__all__ = ["RandAugment", "RandomResizedCrop"]

_MAX_MAGNITUDE = 10.0


class _EachImage:
    """An augmentation of bytes, image by image, as a function of (images, seed)."""

    thread_safe = True
    tag: int  # keeps the draws of two augmentations with one seed apart

    def __call__(self, images: np.ndarray, seed: int | Sequence[int] = 0) -> np.ndarray:
        """Augment a batch.

        Args:
            images: (batch, height, width, 3) in [0, 255], uint8, or float, which is rounded.
            seed: Non-negative integer or several, fixing every draw.

        Returns:
            A new array of the same shape and dtype, of whole numbers in [0, 255].

        Raises:
            ImportError: If Pillow is not installed.
            ValueError: If images are not of this shape.
        """
        images = np.asarray(images)
        if images.ndim != 4 or images.shape[-1] != 3:
            raise ValueError(
                f"`images` must be (batch, height, width, 3), got shape {images.shape}."
            )
        pixels = images
        if images.dtype != np.uint8:
            pixels = np.clip(np.rint(images), 0, 255).astype(np.uint8)
        generator = np.random.default_rng([self.tag, *np.atleast_1d(seed)])
        return self._change(pixels, generator).astype(images.dtype, copy=False)

    def _change(self, pixels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Return new pixels of the same shape, uint8."""
        raise NotImplementedError


class RandAugment(_EachImage):
    """A few operations on each image, drawn from fifteen, all of one strength.

    Source: RandAugment (Cubuk et al. 2020, https://arxiv.org/abs/1909.13719) with the strengths of
    timm's ``rand-m9-mstd0.5-inc1``, which DeiT and CCT train with and where a larger magnitude
    changes more. At magnitude 10, with a random sign where there is one: rotation by 30°, shear by
    0.3, shift by 0.45 of the side; brightness, contrast, colour and sharpness changed by 0.9; no
    bits kept (posterize; 4 at magnitude 0), all levels inverted (solarize), 110 added to the darker
    half. Stretching contrast, equalizing and inverting have no strength.

    ```python
    images, labels = keras_hybrid.data.synthetic_identities(10, 4)
    changed = keras_hybrid.data.RandAugment(magnitude=9)(images, seed=0)
    ```

    Args:
        num_ops: Operations drawn for each image, with replacement.
        magnitude: In [0, 10].
        magnitude_std: Standard deviation of the magnitude of each operation, which is clipped to
            [0, 10]. The paper has none.
        probability: With which a drawn operation is applied. The paper has the identity among its
            operations instead.
        fill: Colour of what comes in from outside the image.

    Raises:
        ValueError: If a number is out of its range; the message names it.
    """

    tag = 0x5A

    def __init__(
        self,
        num_ops: int = 2,
        magnitude: float = 9.0,
        magnitude_std: float = 0.5,
        probability: float = 0.5,
        fill: Sequence[int] = (128, 128, 128),
    ):
        for name, value, limit in (
            ("num_ops", num_ops, 15),
            ("magnitude", magnitude, _MAX_MAGNITUDE),
            ("magnitude_std", magnitude_std, _MAX_MAGNITUDE),
            ("probability", probability, 1),
        ):
            if not 0 <= value <= limit:
                raise ValueError(f"`{name}` must lie in [0, {limit:g}], got {value!r}.")
        if len(fill) != 3 or not all(0 <= value <= 255 for value in fill):
            raise ValueError(f"`fill` must be a colour, three numbers in [0, 255], got {fill!r}.")
        self.num_ops = num_ops
        self.magnitude = magnitude
        self.magnitude_std = magnitude_std
        self.probability = probability
        self.fill = tuple(int(value) for value in fill)

    def _change(self, pixels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        from PIL import Image

        operations = _operations()
        shape = (len(pixels), self.num_ops)
        kinds = generator.integers(len(operations), size=shape)
        is_applied = generator.uniform(size=shape) < self.probability
        levels = generator.normal(self.magnitude, self.magnitude_std, size=shape)
        levels = np.clip(levels, 0, _MAX_MAGNITUDE) / _MAX_MAGNITUDE
        signs = generator.choice([-1.0, 1.0], size=shape)
        resampling = generator.choice(_resampling(), size=shape)
        changed = pixels.copy()
        for i, applied in enumerate(is_applied):
            if not applied.any():
                continue
            image = Image.fromarray(pixels[i])
            for j in np.flatnonzero(applied):
                moving = {"resample": int(resampling[i, j]), "fillcolor": self.fill}
                image = operations[kinds[i, j]](image, levels[i, j], signs[i, j], moving)
            changed[i] = np.asarray(image)
        return changed


class RandomResizedCrop(_EachImage):
    """A random part of each image, resized to the whole image's size.

    Source: Szegedy et al. 2015 (https://arxiv.org/abs/1409.4842, section 6), as ImageNet recipes
    have it. The part's edges may lie between pixels.

    Args:
        scale: Smallest and largest share of the image's area.
        ratio: Smallest and largest ratio of the part's width to its height, relative to the
            image's; the logarithm is uniform.

    Raises:
        ValueError: If a range is empty or out of bounds; the message names it.
    """

    tag = 0xC4

    def __init__(
        self,
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
    ):
        if not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError(f"`scale` must rise within (0, 1], got {scale!r}.")
        if not 0 < ratio[0] <= ratio[1]:
            raise ValueError(f"`ratio` must rise and be positive, got {ratio!r}.")
        self.scale = tuple(scale)
        self.ratio = tuple(ratio)

    def _change(self, pixels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        from PIL import Image

        count, height, width, _ = pixels.shape
        area = generator.uniform(*self.scale, size=count)
        ratio = np.exp(generator.uniform(*map(math.log, self.ratio), size=count))
        # A part that would be wider or taller than the image is cut there.
        widths = width * np.minimum(1, np.sqrt(area * ratio))
        heights = height * np.minimum(1, np.sqrt(area / ratio))
        lefts, tops = generator.uniform(size=(2, count)) * (width - widths, height - heights)
        boxes = np.stack([lefts, tops, lefts + widths, tops + heights], axis=-1)
        boxes = np.minimum(boxes, (width, height, width, height))
        resampling = generator.choice(_resampling(), size=count)
        cropped = np.empty_like(pixels)
        for i, box in enumerate(boxes.tolist()):
            image = Image.fromarray(pixels[i])
            cropped[i] = image.resize((width, height), resample=int(resampling[i]), box=tuple(box))
        return cropped


def _resampling() -> list[int]:
    """Return the interpolations that are drawn from, as timm's recipes do."""
    from PIL import Image

    return [int(Image.Resampling.BILINEAR), int(Image.Resampling.BICUBIC)]


@functools.cache
def _operations() -> tuple[Callable, ...]:
    """Functions of (image, level in [0, 1], sign, keywords of what moves pixels)."""
    from PIL import ImageEnhance, ImageOps

    def enhance(kind):
        return lambda image, level, sign, moving: kind(image).enhance(1 + sign * 0.9 * level)

    return (
        lambda image, level, sign, moving: ImageOps.autocontrast(image),
        lambda image, level, sign, moving: ImageOps.equalize(image),
        lambda image, level, sign, moving: ImageOps.invert(image),
        lambda image, level, sign, moving: image.rotate(30 * sign * level, **moving),
        _posterize,
        lambda image, level, sign, moving: ImageOps.solarize(image, 256 - int(256 * level)),
        _add_to_darker_half,
        enhance(ImageEnhance.Color),
        enhance(ImageEnhance.Contrast),
        enhance(ImageEnhance.Brightness),
        enhance(ImageEnhance.Sharpness),
        # Each pixel (x, y) of the result is read at (a·x + b·y + c, d·x + e·y + f).
        lambda image, level, sign, moving: _affine(image, 1, 0.3 * sign * level, 0, **moving),
        lambda image, level, sign, moving: _affine(image, 1, 0, 0, 0.3 * sign * level, **moving),
        lambda image, level, sign, moving: _affine(
            image, 1, 0, 0.45 * sign * level * image.width, **moving
        ),
        lambda image, level, sign, moving: _affine(
            image, 1, 0, 0, 0, 1, 0.45 * sign * level * image.height, **moving
        ),
    )


def _affine(image, a, b=0.0, c=0.0, d=0.0, e=1.0, f=0.0, **moving):
    from PIL import Image

    return image.transform(image.size, Image.Transform.AFFINE, (a, b, c, d, e, f), **moving)


def _posterize(image, level, sign, moving):
    from PIL import ImageOps

    bits = 4 - int(4 * level)
    return ImageOps.posterize(image, bits) if bits else image.point(lambda value: 0)


def _add_to_darker_half(image, level, sign, moving):
    added = int(110 * level)
    return image.point(lambda value: min(255, value + added) if value < 128 else value)
