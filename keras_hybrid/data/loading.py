"""From a source into memory: every image decoded and resized once, and kept in a cache file."""

import dataclasses
import hashlib
import json
import logging
import os
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from keras_hybrid.data.files import (
    UnreadableImageError,
    resize_image,
    save_arrays,
    size_pair,
    some,
)
from keras_hybrid.data.landmarks import (
    check_order,
    landmark_problem,
    resize_landmarks,
)
from keras_hybrid.data.sources import ImageSource

__all__ = ["LoadedImages", "load_arrays"]

_LOGGER = logging.getLogger(__name__)
_CACHE_FORMAT = "keras_hybrid image cache 1"


@dataclasses.dataclass(frozen=True)
class LoadedImages:
    """A source in memory.

    Attributes:
        images: uint8 (n, height, width, 3), RGB.
        labels: int32 (n,).
        class_names: Names of the classes.
        skipped: (name, reason) of every image that could not be read.
        kept: int64 (n,): where in the source each image comes from.
        landmarks: float32 (n, 5, 2) in pixels of the resized images, or None.
    """

    images: np.ndarray
    labels: np.ndarray
    class_names: list[str]
    skipped: list[tuple[str, str]]
    kept: np.ndarray
    landmarks: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)


def load_arrays(
    source: ImageSource,
    image_size: int | tuple[int, int],
    cache: str | os.PathLike | None = None,
    workers: int = 1,
    landmarks: bool = False,
    every_class: bool = True,
) -> LoadedImages:
    """Decode and resize every image of a source once; its landmarks, if it has any, move along.

    Unreadable images are left out; each is reported with its path, then their number.

    Args:
        source: Where the images are.
        image_size: Side, or (height, width), of the result; antialiased bilinear, proportions are
            not kept.
        cache: File to keep the result in (.npz format, whatever its name). It is used again as long
            as the source's names, labels and files and ``image_size`` are the same, rebuilt
            otherwise, and replaced in one step, so that an interrupted run leaves no half a file.
        workers: Decoding threads.
        landmarks: Whether landmarks are needed: an image whose own are not finite or lie far
            outside of it is then left out like an unreadable one.
        every_class: Whether every class must keep an image. Without, one that loses all of them
            keeps its name and number; of the source one image must be readable.

    Returns:
        The images.

    Raises:
        ValueError: If no image of a class (without ``every_class``: of any) could be read,
            landmarks are needed and the source has none or those of mirrored faces, or an argument
            is out of range.
    """
    height, width = size_pair(image_size)
    needed = needed_landmarks(source) if landmarks else None
    if not isinstance(workers, int) or workers < 1:
        raise ValueError(f"`workers` must be a positive integer, got {workers!r}.")
    content = f"{_CACHE_FORMAT}\n{source.fingerprint()}\n{height}x{width}"
    content += "\nlandmarks" if landmarks else ""
    fingerprint = hashlib.sha256(content.encode()).hexdigest()
    if cache is not None:
        loaded = _read_cache(Path(cache), fingerprint, source)
        if loaded is not None:
            _check_classes(source, loaded.kept, loaded.skipped, every_class)
            return loaded

    images = np.empty((len(source), height, width, 3), np.uint8)
    zoom = np.ones((len(source), 2), np.float32)

    def decode(index: int) -> tuple[str, str] | None:
        try:
            image = read_image(source, index, needed)
        except UnreadableImageError as error:
            return error.path, error.reason
        zoom[index] = width / image.shape[1], height / image.shape[0]
        images[index] = resize_image(image, (height, width))
        return None

    if workers == 1:
        problems = [decode(index) for index in range(len(source))]
    else:
        with ThreadPoolExecutor(workers) as pool:
            problems = list(pool.map(decode, range(len(source))))

    skipped = [problem for problem in problems if problem is not None]
    for path, reason in skipped:
        _LOGGER.warning("skipped %s: %s", path, reason)
    _report_skipped(len(skipped), len(source))
    kept = np.array([i for i, problem in enumerate(problems) if problem is None], np.int64)
    _check_classes(source, kept, skipped, every_class)
    moved = None
    if source.landmarks is not None:
        moved = resize_landmarks(source.landmarks, zoom)[kept]
    if skipped:  # close the gaps in place: a copy would double the memory
        for place, index in enumerate(kept):
            images[place] = images[index]
        images = images[: len(kept)]
    loaded = LoadedImages(
        images,
        source.labels[kept],
        list(source.class_names),
        skipped,
        kept,
        moved,
    )
    if cache is not None:
        _write_cache(Path(cache), fingerprint, loaded)
    return loaded


def needed_landmarks(source: ImageSource) -> np.ndarray:
    """The source's landmarks.

    Raises:
        ValueError: If it has none, or most are those of a mirrored face.
    """
    if source.landmarks is None:
        raise ValueError(
            f"{source!r} has no landmarks: a .csv needs columns x0, y0 … x4, y4, or the option "
            "`landmarks` with another table that has them (keras-hybrid evaluate: --landmarks "
            "TABLE; training: --data-options landmarks=TABLE)."
        )
    check_order(source.landmarks, repr(source))
    return source.landmarks


def read_image(source: ImageSource, index: int, landmarks: np.ndarray | None) -> np.ndarray:
    """An image, which is unreadable also where landmarks are given that cannot be its own."""
    return checked_image(source.read(index), source, index, landmarks)


def checked_image(
    image: np.ndarray | UnreadableImageError,
    source: ImageSource,
    index: int,
    landmarks: np.ndarray | None,
) -> np.ndarray:
    """An image that ``source`` has read, or the error that says why it is of no use."""
    if isinstance(image, UnreadableImageError):
        raise image
    if landmarks is not None:
        problem = landmark_problem(landmarks[index], image.shape[:2])
        if problem:
            raise UnreadableImageError(source.paths[index], problem)
    return image


def _check_classes(
    source: ImageSource, kept: np.ndarray, skipped: list[tuple[str, str]], every_class: bool
) -> None:
    """Raise ValueError where classes are lost that must not be."""
    lost = np.setdiff1d(source.labels, source.labels[kept])
    if len(lost) and (every_class or not len(kept)):
        names = [source.class_names[label] for label in lost]
        raise ValueError(
            f"No image of {len(names)} classes could be read: {some(names)}. "
            f"The first failure: {skipped[0][0]}: {skipped[0][1]}."
        )


def _report_skipped(count: int, total: int) -> None:
    if count:
        _LOGGER.warning("%d of %d images could not be read and are left out", count, total)


def _read_cache(path: Path, fingerprint: str, source: ImageSource) -> LoadedImages | None:
    """The cached images if they are those of the fingerprint."""
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if str(arrays["fingerprint"]) != fingerprint:
                _LOGGER.info("%s belongs to other images and is rebuilt", path)
                return None
            skipped = [(name, reason) for name, reason in json.loads(str(arrays["skipped"]))]
            loaded = LoadedImages(
                arrays["images"],
                arrays["labels"],
                list(source.class_names),
                skipped,
                arrays["kept"],
                arrays["landmarks"] if "landmarks" in arrays.files else None,
            )
    except (zipfile.BadZipFile, zlib.error, ValueError, KeyError, EOFError, OSError) as error:
        _LOGGER.warning("%s is damaged and is rebuilt: %s", path, error)
        return None
    _report_skipped(len(skipped), len(source))
    return loaded


def _write_cache(path: Path, fingerprint: str, loaded: LoadedImages) -> None:
    """Write a cache file in one step."""
    arrays = {
        "fingerprint": np.array(fingerprint),
        "skipped": np.array(json.dumps(loaded.skipped)),
        "images": loaded.images,
        "labels": loaded.labels,
        "kept": loaded.kept,
    }
    if loaded.landmarks is not None:
        arrays["landmarks"] = loaded.landmarks
    save_arrays(path, arrays)
