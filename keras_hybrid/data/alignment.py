"""Aligned face crops from five landmarks.

Landmarks are (x, y) in pixels, in the order image-left eye, image-right eye, nose, image-left and
image-right mouth corner. Whole numbers are the centres of pixels: (0, 0) is the centre of the first
one, as in OpenCV and in the detectors and crops of InsightFace.

Sources:
    Umeyama, "Least-Squares Estimation of Transformation Parameters Between Two Point Patterns",
    IEEE Transactions on Pattern Analysis and Machine Intelligence 13(4), 1991.

    The template is that of ArcFace (InsightFace's ``face_align.py``).
"""

import zlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from keras_hybrid.data.files import UnreadableImageError, import_pillow, size_pair
from keras_hybrid.data.sources import ImageSource

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = ["AlignedSource", "align_face", "face_template", "similarity_transform"]

_TEMPLATE_SIZE = 112
_TEMPLATE = np.array(
    [
        (38.2946, 51.6963),
        (73.5318, 51.5014),
        (56.0252, 71.7366),
        (41.5493, 92.3655),
        (70.7299, 92.2041),
    ]
)


def face_template(image_size: int = _TEMPLATE_SIZE) -> np.ndarray:
    """Where ArcFace's crops have the five landmarks.

    Args:
        image_size: Side of the crop. The template of 112×112 is multiplied by ``image_size / 112``,
            as InsightFace does for multiples of 112.

    Returns:
        float64 (5, 2): x, y of each landmark, in pixels of the crop.

    Raises:
        ValueError: If the size is not a positive integer.
    """
    return _TEMPLATE * (_side(image_size) / _TEMPLATE_SIZE)


def similarity_transform(points: "ArrayLike", target: "ArrayLike") -> np.ndarray:
    """The similarity that brings points closest to a target, by least squares.

    It minimises Σ |s R pᵢ + t − qᵢ|² over scales s > 0, rotations R (no reflection) and
    translations t, as Umeyama (1991) does.

    Args:
        points: Floats (n, 2), n ≥ 2.
        target: Floats (n, 2): where each point should come to lie.

    Returns:
        float64 (2, 3): [s R | t], so that ``matrix @ (x, y, 1)`` is the point transformed.

    Raises:
        ValueError: If the shapes do not fit, a number is not finite, or no one similarity is best:
            the points or the target coincide, or every rotation fits equally well.
    """
    points, target = np.asarray(points, np.float64), np.asarray(target, np.float64)
    for argument, array in (("points", points), ("target", target)):
        if array.ndim != 2 or array.shape[1] != 2 or len(array) < 2:
            raise ValueError(f"`{argument}` must have shape (n, 2), n ≥ 2, got {array.shape}.")
        if not np.isfinite(array).all():
            raise ValueError(f"`{argument}` must be finite, got {array.tolist()}.")
    if points.shape != target.shape:
        raise ValueError(
            f"`points` and `target` must be as many, got {len(points)} and {len(target)}."
        )
    matrices, is_determined, _ = _umeyama(points[None], target)
    if not is_determined[0]:
        raise ValueError(
            "No one similarity brings `points` closest to `target`: those coincide, these do, or "
            f"every rotation fits equally well; got {points.tolist()}, {target.tolist()}."
        )
    return matrices[0]


def _umeyama(points: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Similarities of points (batch, n, 2); which are determined; where a mirror fits better."""
    count = len(target)
    centre, target_centre = points.mean(1), target.mean(0)
    spread, target_spread = points - centre[:, None], target - target_centre
    variance = (spread**2).sum((1, 2)) / count
    covariance = target_spread.T @ spread / count
    left, singular, right = np.linalg.svd(covariance)
    is_mirrored = np.linalg.det(left) * np.linalg.det(right) < 0
    sign = np.where(is_mirrored, -1.0, 1.0)  # no reflection: the direction that fits less is turned
    fit = singular[:, 0] + sign * singular[:, 1]
    # Rounding leaves about 1e-16 of what was subtracted or cancelled.
    magnitude = np.maximum(np.abs(points).max((1, 2)), np.abs(target).max())
    widths = np.sqrt(variance), np.sqrt((target_spread**2).sum() / count)
    is_determined = np.minimum(*widths) > 1e-10 * magnitude
    is_determined &= fit > 1e-10 * singular[:, 0]
    scale = fit / np.where(is_determined, variance, 1.0)
    left[:, :, 1] *= sign[:, None]
    matrices = scale[:, None, None] * (left @ right)
    shift = target_centre[:, None] - matrices @ centre[:, :, None]
    return np.concatenate([matrices, shift], axis=2), is_determined, is_mirrored


def align_face(
    image: np.ndarray,
    landmarks: "ArrayLike",
    image_size: int = _TEMPLATE_SIZE,
    antialias: bool = False,
) -> np.ndarray:
    """Cut a face out of a photograph so that its landmarks lie where ArcFace's crops have them.

    Pixels are interpolated bilinearly, as in InsightFace's crops. Without ``antialias`` a face
    several times as large as the crop is sampled coarsely, as there.

    Args:
        image: uint8 (height, width, 3), RGB.
        landmarks: Floats (5, 2), x and y in pixels of the image; see the module for their order.
        image_size: Side of the crop.
        antialias: Whether squares of pixels are averaged first where the face is two or more times
            as large as the crop.

    Returns:
        uint8 (image_size, image_size, 3), black where the photograph ends.

    Raises:
        ValueError: If an argument is not as described, or the landmarks fit no face:
            see :func:`similarity_transform`.
        ImportError: If Pillow is not installed.
    """
    landmarks = np.asarray(landmarks, np.float64)
    if landmarks.shape != _TEMPLATE.shape:
        raise ValueError(f"`landmarks` must have shape (5, 2), got {landmarks.shape}.")
    if not np.isfinite(landmarks).all():
        raise ValueError(f"`landmarks` must be finite, got {landmarks.tolist()}.")
    matrices, is_determined, _ = _umeyama(landmarks[None], face_template(image_size))
    if not is_determined[0]:
        raise ValueError(f"`landmarks` fit no face, got {landmarks.tolist()}.")
    if antialias:
        image, matrices[0] = _reduced(_checked(image), matrices[0])
    return _warp(image, matrices[0], image_size)


def _reduced(image: np.ndarray, matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The image with squares of pixels averaged, as the crop needs them; the matrix from there."""
    factor = int(1 / np.hypot(*matrix[:, 0]))
    if factor < 2:
        return image, matrix
    # Whole numbers are the centres of pixels: x = factor · (x' + 1/2) − 1/2.
    shift = matrix[:, :2] @ np.full(2, factor / 2 - 0.5) + matrix[:, 2]
    smaller = np.asarray(import_pillow().fromarray(image).reduce(factor))
    return smaller, np.column_stack([factor * matrix[:, :2], shift])


def _checked(image: np.ndarray) -> np.ndarray:
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(
            f"`image` must be uint8 (height, width, 3), got {image.dtype} of shape {image.shape}."
        )
    return image


def _warp(image: np.ndarray, matrix: np.ndarray, image_size: int) -> np.ndarray:
    """The crop that a similarity from the image's pixels to the crop's makes."""
    image = _checked(image)
    pillow = import_pillow()
    back = np.linalg.inv(matrix[:, :2])
    # Pillow's whole numbers are the corners of pixels, half a pixel from their centres.
    shift = 0.5 - back @ (matrix[:, 2] + 0.5)
    corners = back @ (np.array([(0, 1, 0, 1), (0, 0, 1, 1)]) * image_size) + shift[:, None]
    ends = image.shape[1::-1]
    left, top = np.clip(np.floor(corners.min(1)) - 2, 0, ends).astype(int)
    right, bottom = np.clip(np.ceil(corners.max(1)) + 2, 0, ends).astype(int)
    crop = np.zeros((image_size, image_size, 3), np.float32)
    if left == right or top == bottom:
        return crop.astype(np.uint8)
    coefficients = np.column_stack([back, shift - (left, top)]).ravel().tolist()
    for channel in range(3):  # in floats: Pillow rounds bytes downwards
        part = image[top:bottom, left:right, channel].astype(np.float32)
        crop[..., channel] = pillow.fromarray(part).transform(
            (image_size, image_size),
            pillow.Transform.AFFINE,
            coefficients,
            pillow.Resampling.BILINEAR,
        )
    return np.rint(crop).astype(np.uint8)


def _side(image_size: int) -> int:
    if np.ndim(image_size):
        raise ValueError(f"`image_size` must be a positive integer, got {image_size!r}.")
    return size_pair(image_size)[0]


class AlignedSource(ImageSource):
    """Another source's photographs, aligned by their landmarks when they are read.

    Where the landmarks of an image are not finite or fit no face, reading it raises
    :class:`UnreadableImageError`, so that it is skipped and counted like a broken image.

    Args:
        source: A source with ``landmarks``, such as a :class:`CSVSource` with columns x0 … y4.
        image_size: Side of the crops.
        antialias: As of :func:`align_face`; True, as in the programs that show a trained model
            faces, whose crops are then those of the training.

    Attributes:
        landmarks: float32 (n, 5, 2) in pixels of the crops; NaN where they fit no face.

    Raises:
        ValueError: If the source has no landmarks, most are those of a mirrored face (the first
            must be the eye on the image's left, not the person's), or an argument is not as
            described.
    """

    def __init__(
        self, source: ImageSource, image_size: int = _TEMPLATE_SIZE, antialias: bool = True
    ):
        if source.landmarks is None:
            raise ValueError(
                f"`source`={source!r} has no landmarks to align by: a .csv needs columns x0, y0 … "
                "x4, y4."
            )
        self.source = source
        self.image_size = _side(image_size)
        self.antialias = antialias
        self.labels = source.labels
        self.class_names = source.class_names
        points = source.landmarks.astype(np.float64)
        self._is_face = np.isfinite(points).all((1, 2))
        points[~self._is_face] = 0.0
        self._matrices, is_determined, is_mirrored = _umeyama(
            points, face_template(self.image_size)
        )
        self._is_face &= is_determined
        if is_mirrored[self._is_face].sum() > self._is_face.sum() / 2:
            raise ValueError(
                f"Most landmarks of {source!r} are those of a mirrored face: they must be "
                "image-left eye, image-right eye, nose, image-left and image-right mouth corner."
            )
        rotated = points @ self._matrices[:, :, :2].transpose(0, 2, 1)
        aligned = rotated + self._matrices[:, None, :, 2]
        self.landmarks = np.where(self._is_face[:, None, None], aligned, np.nan).astype(np.float32)

    @property
    def paths(self) -> list[str]:
        """Where each photograph lies."""
        return self.source.paths

    def read(self, index: int) -> np.ndarray:
        """Read one image; see :meth:`ImageSource.read`."""
        if not self._is_face[index]:
            raise UnreadableImageError(self.paths[index], "its landmarks fit no face")
        image, matrix = self.source.read(index), self._matrices[index]
        if self.antialias:
            image, matrix = _reduced(_checked(image), matrix)
        return _warp(image, matrix, self.image_size)

    def stamps(self) -> Iterable[str]:
        """The other source's stamps, with what the crop depends on."""
        for stamp, points in zip(self.source.stamps(), self.source.landmarks, strict=True):
            yield f"{stamp}/{self.image_size}/{self.antialias}/{zlib.crc32(points.tobytes())}"
