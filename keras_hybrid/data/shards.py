"""Labelled images in a few large files: written once from any source, read at random.

A folder of shards holds

- ``images-00000-of-00016.array_record`` …: ArrayRecord files, whose records are encoded images
  (JPEG, PNG, …) in the source's order, one in each group and not compressed again;
- ``shards.npz``: labels, landmarks if there are any, and, as JSON, the layout's version, the files
  with their numbers of images and bytes, the classes' and the images' names. It is written last: a
  folder without it is not complete.

ArrayRecord is the format of Grain and TensorFlow Datasets: https://github.com/google/array_record
"""

import contextlib
import dataclasses
import functools
import json
import logging
import os
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from keras_hybrid.data.files import (
    UnreadableImageError,
    decode_image,
    empty_folder,
    encode_image,
    resize_image,
    save_arrays,
    size_pair,
    some,
)
from keras_hybrid.data.landmarks import resize_landmarks
from keras_hybrid.data.sources import ImageSource

__all__ = ["ShardSource", "write_shards"]

_LOGGER = logging.getLogger(__name__)
_INDEX = "shards.npz"
_VERSION = 1
_FILES = "images-*-of-*.array_record"
_IMAGES_PER_SHARD = 10_000
_IMAGES_AT_ONCE = 256  # encoded images that a writer keeps in memory


def is_sharded(folder: Path) -> bool:
    """Whether a folder holds shards, complete or not."""
    return (folder / _INDEX).is_file() or next(folder.glob(_FILES), None) is not None


class ShardSource(ImageSource):
    """Images that :func:`write_shards` has written.

    Opening reads the index and the files' ends, not the images. Several images are read at once,
    each file by a thread of its own. Reading is safe from threads and from forked or spawned
    processes.

    Args:
        root: The folder.
        split: Name of a sub-folder to read instead (``"train"``), or None.

    Raises:
        ImportError: If array-record is not installed.
        ValueError: If writing was not finished, a file is missing, cut off or damaged, or the
            layout's version is another one. An image whose record is damaged raises
            :class:`UnreadableImageError` when it is read.
    """

    def __init__(self, root: str | os.PathLike, split: str | None = None):
        data_source, _ = _import_array_record()
        root = Path(root) / (split or "")
        header, self.labels, self.landmarks = _read_index(root)
        self.class_names = header["class_names"]
        self._names = header["names"]
        self._shards = [_Shard(**shard) for shard in header["shards"]]
        self._ends = np.cumsum([shard.images for shard in self._shards])
        self._files = [root / shard.file for shard in self._shards]
        for path, shard in zip(self._files, self._shards, strict=True):
            if not path.is_file():
                raise ValueError(f"{root}: the shard {shard.file} is missing.")
            if path.stat().st_size != shard.bytes:
                raise ValueError(
                    f"{path} is cut off or another file: it has {path.stat().st_size} bytes, "
                    f"{_INDEX} says {shard.bytes}."
                )
        try:
            self._records = data_source(self._files)
        except RuntimeError as error:
            raise ValueError(f"{root}: a shard is damaged: {error}") from error
        if not len(self._records) == self._ends[-1] == len(self.labels) == len(self._names):
            raise ValueError(
                f"{root}: the shards hold {len(self._records)} images, {_INDEX} tells of "
                f"{len(self.labels)}."
            )

    @functools.cached_property
    def paths(self) -> list[str]:
        """Where each image lies: the file, the record's number and the name it was written from."""
        return [self._where(index) for index in range(len(self))]

    def _where(self, index: int) -> str:
        shard = int(np.searchsorted(self._ends, index, "right"))
        record = index - (self._ends[shard] - self._shards[shard].images)
        return f"{self._files[shard]}[{record}] ({self._names[index]})"

    def encoded(self, index: int) -> bytes:
        """An image's record; see :meth:`ImageSource.encoded`."""
        try:
            return self._records[index]
        except RuntimeError as error:
            raise UnreadableImageError(self._where(index), str(error)) from error

    def read(self, index: int) -> np.ndarray:
        """Read one image; see :meth:`ImageSource.read`."""
        return decode_image(self.encoded(index), self._where(index))

    def read_many(self, indices: Sequence[int]) -> Iterator[np.ndarray | UnreadableImageError]:
        """Read several images' records at once; see :meth:`ImageSource.read_many`."""
        try:
            contents = self._records.__getitems__(indices) if len(indices) else []
        except RuntimeError:  # one by one, the damaged record is found
            yield from super().read_many(indices)
            return
        for index, content in zip(indices, contents, strict=True):
            try:
                yield decode_image(content, self._where(index))
            except UnreadableImageError as error:
                yield error

    def stamps(self) -> Iterable[str]:
        """Size and time of each image's file, and its place in it."""
        for path, shard in zip(self._files, self._shards, strict=True):
            status = path.stat()
            for record in range(shard.images):
                yield f"{status.st_size}/{status.st_mtime_ns}/{record}"


@dataclasses.dataclass(frozen=True)
class _Shard:
    """A file of the folder, the number of its images and of its bytes."""

    file: str
    images: int
    bytes: int


def write_shards(
    source: ImageSource,
    folder: str | os.PathLike,
    shards: int | None = None,
    *,
    image_size: int | tuple[int, int] | None = None,
    quality: int | None = None,
    workers: int = 1,
) -> ShardSource:
    """Write a source's images, in its order, into a folder of a few large files.

    Encoded images are kept byte for byte; each is decoded once, to see that it can be. Unreadable
    images are left out and reported with their paths, then their number. The index comes last, so
    that a folder in which writing was interrupted is refused by :class:`ShardSource`.

    Args:
        source: Where the images are.
        folder: A new or empty folder.
        shards: Number of files; None: one for every 10,000 images.
        image_size: Side, or (height, width), that images of another size are resized to, and their
            landmarks with them, as :func:`load_arrays` would; None keeps all sizes.
        quality: Of JPEG, in [1, 100], for images that have to be encoded, because they are resized
            or come from arrays; None: PNG, which keeps every pixel.
        workers: Threads that read, decode and encode.

    Returns:
        The folder's source.

    Raises:
        ImportError: If array-record is not installed.
        ValueError: If the source has no image, none of a class could be read, the folder holds
            something else, or an argument is out of range.
    """
    _, writer = _import_array_record()
    if not len(source):
        raise ValueError(f"`source`={source!r} has no image.")
    shards = -(-len(source) // _IMAGES_PER_SHARD) if shards is None else shards
    for name, value, highest in (
        ("shards", shards, len(source)),
        ("workers", workers, None),
        ("quality", 100 if quality is None else quality, 100),
    ):
        if not isinstance(value, int) or value < 1 or (highest and value > highest):
            limits = f"in [1, {highest}]" if highest else "of at least 1"
            raise ValueError(f"`{name}` must be an integer {limits}, got {value!r}.")
    size = None if image_size is None else size_pair(image_size)
    folder = empty_folder(folder)

    paths = list(source.paths)
    written, kept, zoom = [], [], []
    with ThreadPoolExecutor(workers) as pool:
        for number, rows in enumerate(np.array_split(np.arange(len(source)), shards)):
            path = folder / f"images-{number:05d}-of-{shards:05d}.array_record"
            before = len(kept)
            # A group of one image can be read alone; images are compressed as they are.
            with contextlib.closing(writer(str(path), "group_size:1,uncompressed")) as file:
                for begin in range(0, len(rows), _IMAGES_AT_ONCE):
                    some_rows = rows[begin : begin + _IMAGES_AT_ONCE].tolist()
                    prepared = pool.map(
                        lambda row: _prepare(source, row, paths[row], size, quality), some_rows
                    )
                    for row, result in zip(some_rows, prepared, strict=True):
                        if isinstance(result, UnreadableImageError):
                            _LOGGER.warning("skipped %s", result)
                            continue
                        content, scale = result
                        file.write(content)
                        kept.append(row)
                        zoom.append(scale)
            written.append(_Shard(path.name, len(kept) - before, path.stat().st_size))
    if len(kept) < len(source):
        _LOGGER.warning(
            "%d of %d images could not be read and are left out",
            len(source) - len(kept),
            len(source),
        )
    kept = np.array(kept, np.int64)
    lost = np.setdiff1d(source.labels, source.labels[kept])
    if len(lost):
        names = some([source.class_names[label] for label in lost])
        raise ValueError(f"No image of {len(lost)} classes could be read: {names}.")

    common = os.path.commonprefix(paths).rfind("/") + 1  # noqa: RUF071  up to a whole folder
    header = {
        "version": _VERSION,
        "shards": [dataclasses.asdict(shard) for shard in written],
        "class_names": list(source.class_names),
        "names": [paths[row][common:] for row in kept],
    }
    arrays = {
        "header": np.frombuffer(json.dumps(header).encode(), np.uint8),
        "labels": source.labels[kept],
    }
    if source.landmarks is not None:
        landmarks = source.landmarks[kept]
        arrays["landmarks"] = landmarks if size is None else resize_landmarks(landmarks, zoom)
    save_arrays(folder / _INDEX, arrays)
    return ShardSource(folder)


def _prepare(
    source: ImageSource, row: int, path: str, size: tuple[int, int] | None, quality: int | None
) -> tuple[bytes, tuple[float, float]] | UnreadableImageError:
    """An encoded image and how much wider and higher it has become, or why there is none."""
    try:
        content = source.encoded(row)
        image = source.read(row) if content is None else decode_image(content, path)
    except UnreadableImageError as error:
        return error
    height, width = image.shape[:2] if size is None else size
    zoom = width / image.shape[1], height / image.shape[0]
    if content is None or zoom != (1, 1):
        content = encode_image(resize_image(image, (height, width)), quality)
    return content, zoom


def _read_index(root: Path) -> tuple[dict, np.ndarray, np.ndarray | None]:
    """Header, labels and landmarks of a folder of shards."""
    path = root / _INDEX
    if not path.is_file():
        if root.is_dir() and is_sharded(root):
            raise ValueError(
                f"{root} has shards but no {_INDEX}: writing them was interrupted. Remove the "
                "folder and write it again."
            )
        raise ValueError(f"`root`: there are no shards in {root}; {_INDEX} is missing.")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        header = json.loads(arrays["header"].tobytes())
    except (zipfile.BadZipFile, ValueError, KeyError, EOFError, OSError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if header["version"] != _VERSION:
        raise ValueError(
            f"{path} has version {header['version']!r} of the layout; this release of "
            f"keras_hybrid reads version {_VERSION}."
        )
    return header, arrays["labels"], arrays.get("landmarks")


def _import_array_record():
    """ArrayRecord's reader of many files and its writer."""
    try:
        from array_record.python.array_record_data_source import ArrayRecordDataSource
        from array_record.python.array_record_module import ArrayRecordWriter
    except ImportError as error:
        raise ImportError(
            "Shards need array-record, which there is for Linux and for macOS on Apple silicon: "
            "pip install 'keras-hybrid[shards]'"
        ) from error
    return ArrayRecordDataSource, ArrayRecordWriter
