"""Five landmarks of a face: reading them, and keeping them where they belong in the picture.

Landmarks are (x, y) in pixels, in the order image-left eye, image-right eye, nose, image-left and
image-right mouth corner. Whole numbers are the centres of pixels, so that an image of width w
reaches from x = −½ to w − ½. Everything in :mod:`keras_hybrid.data` and
:mod:`keras_hybrid.evaluation` has them so; what a model's second input ``landmarks`` takes is
:func:`normalize_landmarks` of them, which is done for it at the last moment.
"""

import os
from collections.abc import Mapping, Sequence

import numpy as np

from keras_hybrid.data.files import posix_name, read_table, some

__all__ = [
    "LANDMARK_COLUMNS",
    "MIRRORED_ORDER",
    "check_landmarks",
    "check_order",
    "landmark_problem",
    "mirror_landmarks",
    "normalize_landmarks",
    "parse_landmarks",
    "read_landmarks",
    "resize_landmarks",
]

LANDMARK_COLUMNS = tuple(f"{axis}{point}" for point in range(5) for axis in "xy")
MIRRORED_ORDER = (1, 0, 2, 4, 3)  # what is left in the mirror image was right
_SHAPE = (5, 2)
_FAR = 0.25  # of the image's side: a cropped chin may lie outside, another image's points do not


def read_landmarks(
    path: str | os.PathLike, files: Sequence[str], file_column: str = "file"
) -> np.ndarray:
    """Read the landmarks of files from a table.

    Args:
        path: Comma-separated, with a header: the file, and x0, y0 … x4, y4 in pixels of its image.
            It may lie in a zip archive: ``"faces.zip/index.csv"``.
        files: Which files, as the table names them; a leading ``images/`` does not matter.
        file_column: Column of the files.

    Returns:
        float32 (len(files), 5, 2).

    Raises:
        ValueError: If a column or one of the files is missing, a file has two rows with other
            landmarks, or a landmark is not a number.
    """
    columns, rows = read_table(path, "landmarks")
    missing = [name for name in (file_column, *LANDMARK_COLUMNS) if name not in columns]
    if missing:
        raise ValueError(
            f"`landmarks`: {path} has no column {some(missing, 11)}; "
            f"it has {', '.join(map(repr, columns)) or 'none'}."
        )
    wanted = {_key(name) for name in files}
    found: dict[str, np.ndarray] = {}
    for line, row in rows:
        key = _key(row[file_column] or "")
        if key not in wanted:
            continue
        where = f"{path}, line {line}"
        points = parse_landmarks([row], [where])[0]
        if not np.array_equal(found.setdefault(key, points), points, equal_nan=True):
            raise ValueError(f"{where}: {row[file_column]!r} has other landmarks further up.")
    lost = [name for name in files if _key(name) not in found]
    if lost:
        raise ValueError(
            f"`landmarks`: {path} has no row for {len(lost)} of {len(files)} files: {some(lost)}."
        )
    return np.array([found[_key(name)] for name in files], np.float32).reshape(-1, *_SHAPE)


def _key(name: str) -> str:
    return posix_name(name).removeprefix("images/")


def parse_landmarks(rows: Sequence[Mapping[str, str]], where: Sequence[str]) -> np.ndarray:
    """The landmark columns of a table's rows: float32 (n, 5, 2).

    Raises:
        ValueError: If a value is not a number; ``where`` is what the message calls its row.
    """
    landmarks = np.empty((len(rows), len(LANDMARK_COLUMNS)), np.float32)
    for position, (row, place) in enumerate(zip(rows, where, strict=True)):
        for column, name in enumerate(LANDMARK_COLUMNS):
            try:
                landmarks[position, column] = float(row[name] or "")
            except ValueError as error:
                raise ValueError(
                    f"{place}: landmark {name} is not a number ({row[name]!r})."
                ) from error
    return landmarks.reshape(-1, *_SHAPE)


def normalize_landmarks(landmarks: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
    """Landmarks as a model's input ``landmarks`` takes them.

    Args:
        landmarks: (…, 5, 2) in pixels.
        image_size: (height, width) of the image.

    Returns:
        float32 (…, 5, 2): ``(x + ½) / width`` and ``(y + ½) / height``, 0 at the image's upper left
        and 1 at its lower right corner.
    """
    height, width = image_size
    return ((np.asarray(landmarks) + 0.5) / (width, height)).astype(np.float32)


def resize_landmarks(landmarks: np.ndarray, zoom: np.ndarray) -> np.ndarray:
    """Landmarks (…, 5, 2) of an image whose width and height are multiplied by zoom (…, 2)."""
    return ((landmarks + 0.5) * np.asarray(zoom)[..., None, :] - 0.5).astype(np.float32)


def mirror_landmarks(landmarks: np.ndarray, width: int) -> np.ndarray:
    """Landmarks (…, 5, 2) of the mirror image; its left eye is the one that was right."""
    return np.asarray(landmarks)[..., MIRRORED_ORDER, :] * (-1, 1) + (width - 1, 0)


def landmark_problem(landmarks: np.ndarray, image_size: tuple[int, int]) -> str | None:
    """What is wrong with the landmarks (5, 2) of an image of (height, width), or None."""
    if not np.isfinite(landmarks).all():
        return "its landmarks are not finite"
    if np.ptp(landmarks, axis=0).max() <= 1:
        return (
            "its landmarks lie within one pixel of each other (pixels are needed, not fractions "
            "of the image)"
        )
    share = normalize_landmarks(landmarks, image_size)
    if share.min() < -_FAR or share.max() > 1 + _FAR:
        (left, top), (right, bottom) = landmarks.min(0), landmarks.max(0)
        height, width = image_size
        return (
            f"its landmarks, x {left:g} … {right:g} and y {top:g} … {bottom:g}, lie far outside "
            f"its {width}×{height} pixels"
        )
    return None


def check_order(landmarks: np.ndarray, owner: str) -> None:
    """Check that landmarks (n, 5, 2) begin with the eye on the image's left, not the person's.

    Raises:
        ValueError: If most are those of a mirrored face; ``owner`` is whose they are.
    """
    across = landmarks[:, 1] - landmarks[:, 0]
    down = landmarks[:, 3:].sum(1) - landmarks[:, :2].sum(1)
    is_mirrored = across[:, 0] * down[:, 1] < across[:, 1] * down[:, 0]
    if is_mirrored.sum() > len(landmarks) / 2:
        raise ValueError(
            f"Most landmarks of {owner} are those of a mirrored face: they must be image-left eye, "
            "image-right eye, nose, image-left and image-right mouth corner."
        )


def check_landmarks(
    landmarks: np.ndarray, count: int, image_size: tuple[int, int] | None = None
) -> np.ndarray:
    """Landmarks of ``count`` images as an array.

    Args:
        landmarks: (count, 5, 2) in pixels.
        count: Number of images.
        image_size: (height, width) of all of them, or None where it is not known.

    Returns:
        float32 (count, 5, 2).

    Raises:
        ValueError: If the shape is another one or an image's landmarks cannot be its own.
    """
    landmarks = np.asarray(landmarks)
    if landmarks.shape != (count, *_SHAPE) or landmarks.dtype.kind not in "iuf":
        raise ValueError(
            f"`landmarks` must be numbers of shape {(count, *_SHAPE)}: x and y of five points for "
            f"each image; got {landmarks.dtype} of shape {landmarks.shape}."
        )
    landmarks = landmarks.astype(np.float32)
    if image_size is not None:
        for row, points in enumerate(landmarks):
            problem = landmark_problem(points, image_size)
            if problem:
                raise ValueError(f"`landmarks` of image {row}: {problem}.")
    return landmarks
