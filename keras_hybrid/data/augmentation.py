"""Augmentation of face crops: the same seed gives the same pictures on every backend.

Why this is numpy and not a chain of ``keras.layers.Random…``: a run that is resumed must see the
pictures it would have seen, so the draws have to be a pure function of a seed, and a data loader
works in threads beside the training step, where a layer's random state is shared. Keras's layers
draw from the backend's own generator (other numbers on every backend) and each of them resamples
the image again. Here all parameters come from ``numpy.random.default_rng(seed)``; flip, shift,
scale and rotation are composed into one affine map that is resampled once; brightness, contrast,
saturation and grey are composed into one 3 × 3 colour matrix. The result is the same to the last
bit on TensorFlow, JAX and PyTorch, and needs none of them.

Time for a batch of 64 images of 64 × 64 on one CPU core, in milliseconds:

=================================================  ==========  =====  =======
what                                               TensorFlow   JAX   PyTorch
=================================================  ==========  =====  =======
``keras.ops.image.affine_transform`` alone                6     47      71
RandomFlip, Translation, Zoom, Rotation layers           30    166     207
RandomColorJitter, Grayscale, Erasing layers             34     29      21
:class:`FaceAugmentation`, everything                       6      6       6
=================================================  ==========  =====  =======
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from keras_hybrid.data.landmarks import MIRRORED_ORDER, check_landmarks

__all__ = ["FaceAugmentation", "face_augmentation"]

_SUBPIXELS = 64  # bilinear weights are multiples of 1/64
_LANE = 21  # bits per colour in a packed pixel: 255 · 64 · 64 < 2²¹
_DRAWS = 13  # random numbers per image
_CHUNK_PIXELS = 1 << 14
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


@dataclasses.dataclass(frozen=True)
class FaceAugmentation:
    """Random flip, affine map, colour and erasing of a batch; see :func:`face_augmentation`.

    Attributes:
        flip: Whether half of the images are mirrored.
        shift: Largest shift, as a fraction of the image's height and width.
        scale: Largest relative change of size.
        rotation: Largest rotation in degrees.
        jitter: Largest relative change of brightness, contrast and saturation.
        grey: Probability that an image loses its colour.
        erasing: Probability that a rectangle is replaced by noise.
        seed: First element of every random key, or None.
    """

    flip: bool = True
    shift: float = 0.06
    scale: float = 0.10
    rotation: float = 8.0
    jitter: float = 0.2
    grey: float = 0.1
    erasing: float = 0.3
    seed: int | None = None

    moves_landmarks = True

    def __post_init__(self):
        for name, limit in (
            ("shift", 1),
            ("scale", 0.5),
            ("rotation", 180),
            ("jitter", 1),
            ("grey", 1),
            ("erasing", 1),
        ):
            if not 0 <= getattr(self, name) <= limit:
                raise ValueError(f"`{name}` must lie in [0, {limit}], got {getattr(self, name)!r}.")

    def __call__(
        self,
        images: np.ndarray,
        seed: int | Sequence[int] = 0,
        landmarks: np.ndarray | None = None,
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """Augment a batch.

        Args:
            images: (batch, height, width, 3) in [0, 255], uint8 or float. Floats are rounded to
                whole numbers.
            seed: Non-negative integer or several, fixing every draw: same seed and same shape,
                same result.
            landmarks: (batch, 5, 2) in pixels (:mod:`keras_hybrid.data.landmarks`), or None.

        Returns:
            uint8 (batch, height, width, 3), rounded once, at the end: a quarter of the bytes of
            float32 on their way to the device. With landmarks, which change nothing in the
            pictures: these and float32 (batch, 5, 2), where the pictures now show them. In a
            mirrored picture the left eye and mouth corner are those that were the right ones.

        Raises:
            ValueError: If the images are not a batch of RGB images, a seed is negative, or the
                landmarks are not five points for each image.
        """
        images = np.asarray(images)
        if images.ndim != 4 or images.shape[-1] != 3:
            raise ValueError(
                f"`images` must have shape (batch, height, width, 3), got {images.shape}."
            )
        key = [int(part) for part in np.atleast_1d(seed)]
        key = key if self.seed is None else [self.seed, *key]
        if any(part < 0 for part in key):
            raise ValueError(f"`seed` must hold non-negative integers, got {seed!r}.")
        if images.dtype != np.uint8:
            images = np.clip(np.rint(images), 0, 255).astype(np.uint8)

        # One column per parameter, drawn whether or not it is used: switching one transformation
        # off leaves the draws of the others as they were.
        generator = np.random.default_rng(key)
        draws = generator.random((len(images), _DRAWS), dtype=np.float32)
        output = np.empty(images.shape, np.uint8)
        # A few images at a time: what is in hand stays in the processor's cache.
        chunk = max(1, _CHUNK_PIXELS // max(1, images.shape[1] * images.shape[2]))
        for start in range(0, len(images), chunk):
            rows = slice(start, start + chunk)
            planes = self._warp(images[rows], draws[rows, :5])
            self._recolour(planes, draws[rows, 5:9])
            output[rows] = np.rint(planes, out=planes).transpose(0, 2, 3, 1)
        self._erase(output, draws[:, 9:13], generator)
        if landmarks is None:
            return output
        landmarks = check_landmarks(landmarks, len(images))
        return output, self._move(landmarks, draws[:, :5], *images.shape[1:3])

    def _move(
        self, landmarks: np.ndarray, draws: np.ndarray, height: int, width: int
    ) -> np.ndarray:
        """Where the warped pictures show the landmarks (n, 5, 2): the way back of the pixels."""
        matrices = self._matrices(draws, height, width)
        back = np.linalg.inv(matrices[:, :, :2])
        moved = np.einsum("nij,npj->npi", back, landmarks - matrices[:, None, :, 2])
        is_mirrored = np.linalg.det(back) < 0
        moved[is_mirrored] = moved[is_mirrored][:, MIRRORED_ORDER]
        return moved.astype(np.float32)

    def _matrices(self, draws: np.ndarray, height: int, width: int) -> np.ndarray:
        """Affine maps (n, 2, 3) from output pixel (x, y, 1) to input pixel (x, y)."""
        centred = draws.astype(np.float64) * 2 - 1
        angle = np.deg2rad(self.rotation) * centred[:, 0]
        size = 1 + self.scale * centred[:, 1]
        mirror = np.where(self.flip & (draws[:, 4] < 0.5), -1.0, 1.0)
        cosine, sine = np.cos(angle) / size, np.sin(angle) / size
        rows = np.empty((len(draws), 2, 3), np.float64)
        rows[:, 0, 0], rows[:, 0, 1] = mirror * cosine, mirror * sine
        rows[:, 1, 0], rows[:, 1, 1] = -sine, cosine
        centre = np.array([(width - 1) / 2, (height - 1) / 2])
        moved = self.shift * np.array([width, height]) * centred[:, 2:4]
        rows[:, :, 2] = centre - np.einsum("nij,nj->ni", rows[:, :, :2], centre + moved)
        return rows

    def _warp(self, images: np.ndarray, draws: np.ndarray) -> np.ndarray:
        """Resample once, bilinearly, mirrored at the border: float32 planes (n, 3, h, w)."""
        count, height, width, _ = images.shape
        planes = np.empty((count, 3, height, width), np.float32)
        if not (self.flip or self.shift or self.scale or self.rotation):
            planes[:] = images.transpose(0, 3, 1, 2)
            return planes
        # The three colours of a pixel travel in one 64-bit number, so that the four neighbours
        # cost four gathers and four products; a spare row and column keep neighbours in range.
        packed = np.zeros((count, height + 1, width + 1), np.int64)
        inner = packed[:, :height, :width]
        for channel in range(3):
            inner |= images[..., channel].astype(np.int64) << (_LANE * channel)

        # Fixed point: 16 binary places for the map, then 6 for the place in the image.
        matrices = np.rint(self._matrices(draws, height, width) * (1 << 16)).astype(np.int32)
        across, down = np.arange(width, dtype=np.int32), np.arange(height, dtype=np.int32)
        places = []
        for row, extent in ((0, width), (1, height)):
            place = (matrices[:, row, 0, None] * across)[:, None, :] + (
                matrices[:, row, 1, None] * down + (matrices[:, row, 2, None] + (1 << 9))
            )[:, :, None]
            place >>= 10
            places.append(_mirror(place, (extent - 1) * _SUBPIXELS))
        x, y = places
        stride = width + 1
        index = (y >> 6).astype(np.intp)
        index *= stride
        index += x >> 6
        index += (np.arange(count) * (height + 1) * stride)[:, None, None]
        x &= _SUBPIXELS - 1
        y &= _SUBPIXELS - 1
        both = x * y
        weight = _SUBPIXELS * x
        weight -= both
        flat = packed.ravel()
        mixed = flat[1:].take(index, mode="clip")
        mixed *= weight
        upper = flat.take(index)
        weight += _SUBPIXELS * y  # 64·64 − weight is now that of the upper left neighbour
        np.subtract(_SUBPIXELS * _SUBPIXELS, weight, out=weight)
        upper *= weight
        mixed += upper
        np.multiply(y, _SUBPIXELS, out=weight)
        weight -= both
        lower = flat[stride:].take(index, out=upper, mode="clip")
        lower *= weight
        mixed += lower
        lower = flat[stride + 1 :].take(index, out=upper, mode="clip")
        lower *= both
        mixed += lower
        for channel in range(3):
            planes[:, channel] = (mixed >> (_LANE * channel)) & ((1 << _LANE) - 1)
        planes *= 1.0 / (_SUBPIXELS * _SUBPIXELS)
        return planes

    def _recolour(self, planes: np.ndarray, draws: np.ndarray) -> None:
        """Brightness, contrast, saturation and grey in place, as one colour matrix per image."""
        if not (self.jitter or self.grey):
            return
        factors = 1 + self.jitter * (draws[:, :3] * 2 - 1)
        brightness, contrast, saturation = factors[:, 0], factors[:, 1], factors[:, 2]
        saturation = np.where(draws[:, 3] < self.grey, 0, saturation).astype(np.float32)
        mean = planes.mean(axis=(2, 3)) @ _LUMA
        gain = brightness * contrast
        offset = brightness * (1 - contrast) * mean
        # The matrix is a multiple of the identity plus equal rows of grey.
        grey = np.einsum("nchw,nc->nhw", planes, (gain * (1 - saturation))[:, None] * _LUMA)
        grey += offset[:, None, None]
        planes *= (gain * saturation)[:, None, None, None]
        planes += grey[:, None]
        np.clip(planes, 0, 255, out=planes)

    def _erase(self, images: np.ndarray, draws: np.ndarray, generator: np.random.Generator) -> None:
        """Fill rectangles of 2 … 15 % of the area with noise, in place."""
        height, width = images.shape[1:3]
        for image, (chance, area, aspect, place) in zip(images, draws, strict=True):
            if chance >= self.erasing:
                continue
            pixels = (0.02 + 0.13 * area) * height * width
            ratio = np.sqrt(0.4 * (2.5 / 0.4) ** aspect)
            tall = min(height, max(1, round(np.sqrt(pixels) * ratio)))
            wide = min(width, max(1, round(np.sqrt(pixels) / ratio)))
            # One draw places both edges: its leading and its trailing digits.
            top, rest = divmod(place * (height - tall + 1), 1)
            left = int(rest * (width - wide + 1))
            top = int(top)
            image[top : top + tall, left : left + wide] = generator.integers(
                0, 256, (tall, wide, 3), dtype=np.uint8
            )


def _mirror(place: np.ndarray, last: int) -> np.ndarray:
    """Reflect coordinates at 0 and ``last``, in place (the edge is not repeated)."""
    np.abs(place, out=place)
    if last == 0:
        place[:] = 0
    elif place.max(initial=0) > 2 * last:
        place %= 2 * last
    np.subtract(last, place, out=place)
    np.abs(place, out=place)
    return np.subtract(last, place, out=place)


def face_augmentation(
    flip: bool = True,
    shift: float = 0.06,
    scale: float = 0.10,
    rotation: float = 8.0,
    jitter: float = 0.2,
    grey: float = 0.1,
    erasing: float = 0.3,
    seed: int | None = None,
) -> FaceAugmentation:
    """Build the augmentation for aligned face crops.

    ```python
    augment = face_augmentation(rotation=5)
    images = augment(images, seed=(0, epoch, batch))   # uint8 (batch, height, width, 3)
    ```

    The call is thread-safe and stateless; ``seed`` fixes it completely, on every backend alike.
    With ``landmarks=`` it moves these with the pixels; see :meth:`FaceAugmentation.__call__`.

    Args:
        flip: Mirror half of the images.
        shift: Largest shift, as a fraction of the image's height and width.
        scale: Largest relative change of size, in [0, 0.5].
        rotation: Largest rotation in degrees. Pixels from outside are mirrored at the border.
        jitter: Largest relative change of brightness, contrast and saturation.
        grey: Probability that an image loses its colour.
        erasing: Probability that a rectangle of 2 … 15 % of the area is replaced by noise.
        seed: Put in front of the seed of every call, or None.

    Returns:
        A callable ``augment(images, seed) -> images``, uint8.

    Raises:
        ValueError: If a number is out of its range.
    """
    return FaceAugmentation(flip, shift, scale, rotation, jitter, grey, erasing, seed)
