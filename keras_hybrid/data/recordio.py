"""RecordIO image sets, as MXNet's im2rec writes them and InsightFace publishes them, without MXNet.

Every number is little-endian.

- **.rec**: records one after the other. A record has one or more parts, each of the magic number
  0xced7230a (uint32), a uint32 with the part's place in its upper 3 bits (0 the only one, 1 the
  first, 2 a middle one, 3 the last) and its length in the lower 29, that many bytes, and padding to
  a multiple of 4 bytes. A writer ends a part where the content has the magic number at a multiple
  of 4 bytes, and leaves the number out; a reader puts it back between the parts.
- **Content of an image record**: flag (uint32), label (float32), id and id2 (uint64); flag > 0 is
  the number of float32 labels that follow and hold instead of the label, of which the first is the
  class; then the encoded image.
- **.idx**: a line ``key<TAB>offset`` for each record. The key is the record's id.
- **InsightFace** adds records without an image, with two labels each. That of key 0 holds the key
  after the last image and the key after the last record; images are 1 … first − 1. The records of
  identities from there on hold the range of keys of one identity each.
- **property**: ``classes,height,width``.

Sources: dmlc-core's ``recordio.h`` and ``recordio.cc``, MXNet's ``recordio.py``, InsightFace's
``face2rec2.py`` and ``arcface_torch/dataset.py``.
"""

import functools
import logging
import os
import struct
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from keras_hybrid.data.files import UnreadableImageError, decode_image, read_text, some
from keras_hybrid.data.sources import ImageSource

__all__ = ["RecordIOSource"]

_LOGGER = logging.getLogger(__name__)
_MAGIC = 0xCED7230A
_PART = struct.Struct("<II")
_LENGTH_BITS = 29
_LONGEST = (1 << _LENGTH_BITS) - 1
# The start of a record of one part; `first` is the first of several labels, if there are any.
_START = np.dtype(
    [
        ("magic", "<u4"),
        ("part", "<u4"),
        ("flag", "<u4"),
        ("label", "<f4"),
        ("id", "<u8"),
        ("id2", "<u8"),
        ("first", "<f4"),
    ]
)
_HEADER_SIZE = 24  # flag to id2
# Of an index's records, beyond which the index, or the file, is taken for the wrong one.
_MOST_DAMAGED = 0.1
_CHUNK = 1 << 16


class RecordIOSource(ImageSource):
    """A .rec file of labelled images.

    With InsightFace's record of key 0 the images are those it announces; without one, as im2rec
    writes, they are all records. Opening reads the records' first bytes only, not the images.
    Where there is a file ``property`` beside it, its number of classes is ``len(class_names)``.
    Otherwise labels 0, 1, 2 … are kept and labels with gaps are numbered in sorted order, as
    :class:`CSVSource` does. Reading is safe from threads and from forked or spawned processes.
    A damaged record within a file that has an index is reported and left out, as long as nine in
    ten are whole.

    Args:
        path: The .rec file, the same without its suffix, or a folder with train.rec. The index
            (train.idx) is used if it is there; without it the file is walked through once.
        split: For a folder: which file to read instead of train.rec, ``"val"`` for val.rec.
        classes: Number of classes where there is no ``property``: labels must lie in
            [0, classes) and are kept.

    Raises:
        ValueError: If the file or its index is cut off, either is damaged beyond that, a record
            that is announced is missing, a label is no class, or ``property`` is malformed. An
            image that cannot be decoded raises only when it is read.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        split: str | None = None,
        *,
        classes: int | None = None,
    ):
        path = _record_file(Path(path), split)
        classes = _number_of_classes(path.parent / "property", classes)
        if not path.stat().st_size:
            raise ValueError(f"{path} is empty.")
        data = np.asarray(np.memmap(path, np.uint8, "r"))
        index = path.with_suffix(".idx")
        keys = None
        if index.is_file():
            keys, offsets = _read_index(index, path, len(data))
        else:
            offsets = _walk(data, path)
        starts, sizes, is_whole = _read_starts(data, offsets, keys, path)
        if keys is None:
            keys = starts["id"].astype(np.int64)
            if len(np.unique(keys)) < len(keys):  # ids that nobody set
                keys = np.arange(len(keys))
        whole, damaged = np.flatnonzero(is_whole), keys[~is_whole]
        rows = whole[_image_rows(keys[whole], starts[whole], sizes[whole], damaged, path)]
        self._file = _File(path)
        self._keys = keys[rows]
        self._offsets = offsets[rows]
        labels = np.where(starts["flag"] > 0, starts["first"], starts["label"])[rows]
        self.labels, self.class_names = _number_labels(labels, classes, self._where)

    @functools.cached_property
    def paths(self) -> list[str]:
        """Where each image lies: the file and the record's key."""
        return [self._where(index) for index in range(len(self))]

    def _where(self, index: int) -> str:
        return f"{self._file.path}[{self._keys[index]}]"

    def encoded(self, index: int) -> bytes:
        """The image in a record; see :meth:`ImageSource.encoded`."""
        where = self._where(index)
        try:
            content = _read_record(self._file.read, int(self._offsets[index]))
            (flag,) = struct.unpack_from("<I", content)
        except OSError as error:
            raise UnreadableImageError(where, error.strerror or str(error)) from error
        except (ValueError, struct.error) as error:
            raise UnreadableImageError(where, str(error)) from error
        return content[_HEADER_SIZE + 4 * flag :]

    def read(self, index: int) -> np.ndarray:
        """Read one image; see :meth:`ImageSource.read`."""
        return decode_image(self.encoded(index), self._where(index))

    def stamps(self) -> Iterable[str]:
        """Size and time of the file, and each record's place in it."""
        status = self._file.path.stat()
        return (f"{status.st_size}/{status.st_mtime_ns}/{offset}" for offset in self._offsets)


class _File:
    """A file read at offsets; every thread and every process opens it for itself."""

    def __init__(self, path: Path):
        self.path = path
        self._local = threading.local()

    def __getstate__(self):
        return {"path": self.path}

    def __setstate__(self, state):
        self.__init__(state["path"])

    def read(self, offset: int, size: int) -> bytes:
        """Read bytes at an offset, fewer where the file ends."""
        # A handle inherited through fork shares its file position with the parent: never use it.
        if getattr(self._local, "process", None) != os.getpid():
            self._local.handle = _Handle(self.path)
            self._local.process = os.getpid()
        file = self._local.handle.file
        file.seek(offset)
        return file.read(size)


class _Handle:
    """An open file that is closed with the thread it belongs to."""

    def __init__(self, path: Path):
        self.file = path.open("rb")

    def __del__(self):
        if hasattr(self, "file"):
            self.file.close()


def _record_file(path: Path, split: str | None) -> Path:
    """The .rec file that a folder, a prefix or the file itself stands for."""
    if path.is_dir():
        file = path / f"{split or 'train'}.rec"
        if not file.is_file():
            found = some(sorted(other.name for other in path.glob("*.rec"))) or "no .rec file"
            raise ValueError(f"{path} has no {file.name}; it has {found}.")
        return file
    if split is not None:
        raise ValueError(f"`split`={split!r} belongs to a folder, not to {path}.")
    file = path if path.suffix.lower() == ".rec" else path.with_name(f"{path.name}.rec")
    if not file.is_file():
        raise ValueError(f"`path`: there is no file {file}.")
    return file


def _number_of_classes(path: Path, classes: int | None) -> int | None:
    """What ``property`` says, or ``classes`` where there is no such file."""
    if classes is not None and (not isinstance(classes, (int, np.integer)) or classes < 1):
        raise ValueError(f"`classes` must be a positive integer, got {classes!r}.")
    if not path.is_file():
        return None if classes is None else int(classes)
    fields = [field.strip() for field in read_text(path, "property").split(",")]
    if len(fields) != 3 or not all(field.isdecimal() and int(field) for field in fields):
        raise ValueError(f"{path}: expected 'classes,height,width', got {','.join(fields)[:80]!r}.")
    if classes is not None and classes != int(fields[0]):
        raise ValueError(f"`classes`={classes}, but {path} says {fields[0]}.")
    return int(fields[0])


def _read_index(index: Path, path: Path, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Keys and offsets of an .idx file, int64 each."""
    if not index.stat().st_size:
        raise ValueError(f"{index} is empty.")
    try:
        table = np.loadtxt(index, np.int64, delimiter="\t", ndmin=2, comments=None)
    except ValueError as error:
        raise ValueError(f"{index}: expected lines key<TAB>offset: {error}") from error
    if table.shape[1] != 2:
        raise ValueError(f"{index}: expected lines key<TAB>offset, got {table.shape[1]} columns.")
    keys, offsets = table[:, 0].copy(), table[:, 1].copy()
    present, counts = np.unique(keys, return_counts=True)
    if len(present) < len(keys):
        raise ValueError(f"{index}: more than one line has key {some(present[counts > 1])}.")
    wrong = np.flatnonzero((offsets < 0) | (offsets > size - _PART.size))
    if len(wrong):
        row = wrong[0]
        raise ValueError(
            f"{index}: key {keys[row]} points to byte {offsets[row]}, but {path} has {size} bytes."
        )
    return keys, offsets


def _walk(data: np.ndarray, path: Path) -> np.ndarray:
    """Offsets of all records, int64, from the first to the last."""
    offsets = []
    offset, is_open = 0, False
    while offset < len(data):
        if offset + _PART.size > len(data):
            break
        if not is_open:
            offsets.append(offset)
        try:
            length, is_open = _part(*_PART.unpack_from(data, offset), offset, is_open)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        offset += _padded(length)
    if offset != len(data) or is_open:
        last = len(offsets) - (offset > len(data) or is_open)
        raise ValueError(f"{path} is cut off: its {len(data)} bytes end within record {last}.")
    return np.array(offsets, np.int64)


def _padded(length: int) -> int:
    """Bytes that a part takes in the file."""
    return _PART.size + -(-length // 4) * 4


class _EndOfFile(ValueError):
    """A record goes on beyond the end of its file."""


def _part(magic: int, place_and_length: int, offset: int, is_open: bool) -> tuple[int, bool]:
    """A part's length, and whether another follows; ``is_open``: whether one came before."""
    if magic != _MAGIC:
        raise ValueError(
            f"no record at byte {offset}: {magic:#010x} is there, not the magic number {_MAGIC:#x}"
        )
    place = place_and_length >> _LENGTH_BITS
    if place not in ((2, 3) if is_open else (0, 1)):
        raise ValueError(f"byte {offset}: a part of kind {place} cannot stand there")
    return place_and_length & _LONGEST, place in (1, 2)


def _read_record(read: Callable[[int, int], bytes], offset: int) -> bytes:
    """A record's content, its parts joined."""
    parts, is_open = [], False
    while is_open or not parts:
        start = read(offset, _PART.size)
        if len(start) < _PART.size:
            raise _EndOfFile(f"the file ends at byte {offset + len(start)}, within the record")
        length, is_open = _part(*_PART.unpack(start), offset, is_open)
        taken = _padded(length) - _PART.size
        content = read(offset + _PART.size, taken)
        if len(content) < taken:
            raise _EndOfFile(f"the file ends within the {taken} bytes of the part at byte {offset}")
        parts.append(content[:length])
        offset += _padded(length)
    return struct.pack("<I", _MAGIC).join(parts)


def _read_starts(
    data: np.ndarray, offsets: np.ndarray, keys: np.ndarray | None, path: Path
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The records' first bytes (``_START``), the sizes of their images, and which are whole."""

    def name(row: int) -> str:
        return f"{path}, {'record' if keys is None else 'key'} {row if keys is None else keys[row]}"

    damaged: dict[int, str] = {}

    starts = np.empty(len(offsets), _START)
    content = starts.view(np.uint8).reshape(len(offsets), _START.itemsize)
    columns = np.arange(_START.itemsize)
    for first in range(0, len(offsets), _CHUNK):
        places = offsets[first : first + _CHUNK, None] + columns
        content[first : first + _CHUNK] = data[np.minimum(places, len(data) - 1)]

    lengths = (starts["part"] & _LONGEST).astype(np.int64)
    place = starts["part"] >> _LENGTH_BITS
    # What is not simply a record of one part is read whole, which finds everything wrong with it.
    is_plain = (starts["magic"] == _MAGIC) & (place == 0)
    is_plain &= offsets + _PART.size + -(-lengths // 4) * 4 <= len(data)
    for row in np.flatnonzero(~is_plain):
        try:
            record = _read_record(lambda at, size: data[at : at + size].tobytes(), offsets[row])
        except ValueError as error:
            is_cut_off = isinstance(error, _EndOfFile) and offsets[row] == offsets.max()
            if keys is None or is_cut_off:
                raise ValueError(f"{name(row)}: {error}.") from error
            damaged[int(row)] = str(error)
            lengths[row], starts["flag"][row] = _HEADER_SIZE, 0
            continue
        lengths[row] = len(record)
        content[row, _PART.size :] = np.frombuffer(
            record.ljust(_START.itemsize)[: _START.itemsize - _PART.size], np.uint8
        )
    sizes = lengths - _HEADER_SIZE - 4 * starts["flag"].astype(np.int64)
    for row in np.flatnonzero((lengths < _HEADER_SIZE) | (sizes < 0)):
        what = f" and {starts['flag'][row]} labels" if lengths[row] >= _HEADER_SIZE else ""
        damaged[int(row)] = f"{lengths[row]} bytes are too few for an image record's header{what}"
    is_whole = np.ones(len(offsets), bool)
    if damaged:
        row = min(damaged)
        if keys is None or len(damaged) > _MOST_DAMAGED * len(offsets):
            count = f"{len(damaged)} of {len(offsets)} records are damaged, of which with an index "
            count += f"{_MOST_DAMAGED:.0%} may be."
            raise ValueError(f"{name(row)}: {damaged[row]}. {count}")
        is_whole[list(damaged)] = False
        _LOGGER.warning(
            "%s: %d of %d records are damaged and left out: %s",
            path,
            len(damaged),
            len(offsets),
            some([f"key {keys[row]}, {damaged[row]}" for row in sorted(damaged)]),
        )
    return starts, sizes, is_whole


def _image_rows(
    keys: np.ndarray, starts: np.ndarray, sizes: np.ndarray, damaged: np.ndarray, path: Path
) -> np.ndarray:
    """Which records are images, in the order of their keys or, without a header, of the file.

    Args:
        keys: Of the whole records, as ``starts`` and ``sizes``.
        starts: Their first bytes.
        sizes: Bytes of their images.
        damaged: Keys of the records that are left out.
        path: The file.
    """
    is_range = (starts["flag"] == 2) & (sizes == 0)  # InsightFace's records without an image
    head = np.flatnonzero(is_range & (keys == 0))
    if not len(head):
        if is_range.any() and 0 in damaged:
            raise ValueError(f"{path}, key 0: the record that says which are images is damaged.")
        rows = np.flatnonzero(~is_range)
        if not len(rows):
            raise ValueError(f"{path} holds no image.")
        if is_range.any():
            _LOGGER.warning(
                "%s: %d records hold two labels and no image, and are left out",
                path,
                is_range.sum(),
            )
        return rows
    first = float(starts["first"][head[0]])
    count = len(keys) + len(damaged)
    if not (2 <= first <= count + 1 and first.is_integer()):
        raise ValueError(
            f"{path}, key 0: the header must hold the key after the last image, a whole number in "
            f"[2, {count + 1}] with {count} records, got {first:g}."
        )
    first = _exact(first, keys[is_range])
    order = np.argsort(keys, kind="stable")
    wanted = np.setdiff1d(np.arange(1, first), damaged)
    found = np.searchsorted(keys, wanted, sorter=order)
    rows = order[np.minimum(found, len(order) - 1)]
    missing = wanted[keys[rows] != wanted]
    if len(missing):
        raise ValueError(
            f"{path}: the header announces images 1 … {first - 1}, but there is no key "
            f"{some(missing)}."
        )
    return rows


def _exact(first: float, ranges: np.ndarray) -> int:
    """The key after the last image, of which a header holds the nearest float32.

    From 2²⁴ on not every whole number is one. ``ranges``: keys of the records without an image.
    """
    near = ranges[np.abs(ranges - int(first)) < np.spacing(np.float32(first))]
    return int(near.min()) if len(near) else int(first)


def _number_labels(
    labels: np.ndarray, classes: int | None, where: Callable[[int], str]
) -> tuple[np.ndarray, list[str]]:
    """Labels as int32 in 0 … classes − 1, and the classes' names."""
    is_class = (labels >= 0) & (labels < 2.0**31) & (labels == np.rint(labels))  # NaN is none
    wrong = np.flatnonzero(~is_class)
    if len(wrong):
        label = labels[wrong[0]]
        raise ValueError(f"{where(wrong[0])}: label {label:g} is not a whole number from 0 on.")
    present, numbers = np.unique(labels.astype(np.int64), return_inverse=True)
    if classes is None:
        return numbers.astype(np.int32), [str(label) for label in present]
    if present[-1] >= classes:
        row = int(np.argmax(labels))
        raise ValueError(f"{where(row)}: label {present[-1]} with {classes} classes.")
    if len(present) < classes:
        _LOGGER.warning(
            "%d of %d classes have no image: %s",
            classes - len(present),
            classes,
            some(np.setdiff1d(np.arange(classes), present)),
        )
    return labels.astype(np.int32), [str(label) for label in range(classes)]
