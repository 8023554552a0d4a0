"""Image sources: random access to labelled images, wherever they lie.

A source knows its labels at once and reads an image when it is asked for:

- ``len(source)``, ``source.labels`` (int32), ``source.class_names``, ``source.paths`` (for
  messages), ``source.landmarks`` (float32 (n, 5, 2) or None);
- ``source.read(index)``: uint8 (height, width, 3), RGB, upright.

What a photograph collection brings is dealt with here: grey, CMYK, palette and transparent images
become RGB, EXIF rotation is applied, and a file that cannot be decoded raises
:class:`UnreadableImageError`, which :func:`keras_hybrid.data.load_arrays` and
:class:`keras_hybrid.data.Batches` report once and skip. Mistakes that would spoil a training run
stop when the source is opened.
"""

import functools
import hashlib
import logging
import os
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from keras_hybrid.data.files import (
    CROPS_TABLE,
    IMAGE_SUFFIXES,
    Folder,
    UnreadableImageError,
    Zip,
    archive_of,
    composed,
    decode_image,
    is_image,
    open_files,
    posix_name,
    read_table,
    some,
)
from keras_hybrid.data.landmarks import LANDMARK_COLUMNS, parse_landmarks, read_landmarks

__all__ = ["CSVSource", "FolderSource", "ImageSource", "Subset", "ZipSource", "split_source"]

_LOGGER = logging.getLogger(__name__)
# Of the images, how many in folders of folders make these other than identities.
_NESTED_SHARE = 0.9
_NUMBER_COLUMN = "label_number"  # of `write_crops`: the number of the label's folder


class ImageSource(ABC):
    """Random access to labelled images.

    Attributes:
        labels: int32 (n,), in 0 … len(class_names) − 1.
        class_names: The classes' names.
        paths: Where each image lies, for messages.
        landmarks: float32 (n, 5, 2) in pixels of the image as stored, or None.
    """

    labels: np.ndarray
    class_names: list[str]
    paths: Sequence[str]
    landmarks: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} images, {len(self.class_names)} classes)"

    @abstractmethod
    def read(self, index: int) -> np.ndarray:
        """Read one image.

        Args:
            index: Which one, from 0.

        Returns:
            uint8 (height, width, 3), RGB.

        Raises:
            UnreadableImageError: If the image cannot be decoded.
        """

    def encoded(self, index: int) -> bytes | None:
        """The file of one image (JPEG, PNG, …) as it is stored, or None if there is none.

        Raises:
            UnreadableImageError: If it cannot be read.
        """
        return None

    def read_many(self, indices: Sequence[int]) -> Iterator[np.ndarray | UnreadableImageError]:
        """Read several images, of which only the encoded ones are in memory at once.

        Args:
            indices: Which ones.

        Yields:
            For each, in this order, what :meth:`read` returns or the error that it raises.
        """
        for index in indices:
            try:
                yield self.read(index)
            except UnreadableImageError as error:
                yield error

    def stamps(self) -> Iterable[str]:
        """For each image, a text that changes when the image is replaced."""
        return ("" for _ in range(len(self)))

    def fingerprint(self) -> str:
        """Hash of what a cache of decoded images depends on: names, labels, landmarks, stamps."""
        digest = hashlib.sha256()
        # A file's name need not be text: what is not arrives as surrogates.
        digest.update("\0".join(self.class_names).encode(errors="surrogatepass"))
        digest.update(np.ascontiguousarray(self.labels).tobytes())
        if self.landmarks is not None:
            digest.update(np.ascontiguousarray(self.landmarks).tobytes())
        for path, stamp in zip(self.paths, self.stamps(), strict=True):
            digest.update(f"{path}\0{stamp}\n".encode(errors="surrogatepass"))
        return digest.hexdigest()


class _FileSource(ImageSource):
    """Images that are files of a folder or members of a zip archive."""

    _files: Folder | Zip
    _names: list[str]

    @functools.cached_property
    def paths(self) -> list[str]:
        """Where each image lies."""
        return [self._files.where(name) for name in self._names]

    def encoded(self, index: int) -> bytes:
        """The file or member; see :meth:`ImageSource.encoded`."""
        return self._files.bytes(self._names[index])

    def read(self, index: int) -> np.ndarray:
        """Read one image; see :meth:`ImageSource.read`."""
        return decode_image(self.encoded(index), self._files.where(self._names[index]))

    def stamps(self) -> Iterable[str]:
        """Size and time of each file, or size and checksum of each member."""
        return map(self._files.stamp, self._names)


class FolderSource(_FileSource):
    """A folder per identity.

    Identities are numbered in the order of their sorted names. A common leading folder is fine
    (``root/images/NAME/*.jpg``); images deeper than an identity's folder belong to it. Hidden files
    and :func:`write_crops`'s ``index.csv`` are ignored; other files that are no images are reported
    in one line.

    Args:
        root: The folder.
        split: Name of a sub-folder to read instead (``"train"``), or None.

    Raises:
        ValueError: If there is no image, an identity has none, or the split does not exist.
    """

    def __init__(self, root: str | os.PathLike, split: str | None = None):
        root = Path(root)
        if not root.is_dir():
            raise ValueError(f"`root`: there is no folder {root}.")
        self._files = Folder(root)
        self._names, self.labels, self.class_names = _by_identity(self._files, split)


class ZipSource(_FileSource):
    """A zip archive with a folder per identity, laid out as :class:`FolderSource` takes it.

    Reading is safe from threads and from forked processes.

    Args:
        path: The archive.
        split: Name of a folder in it to read alone (``"train"``), or None.

    Raises:
        ValueError: If it is no zip archive, holds no image, or an identity or the split is empty.
    """

    def __init__(self, path: str | os.PathLike, split: str | None = None):
        path = Path(path)
        if not path.is_file():
            raise ValueError(f"`path`: there is no file {path}.")
        self._files = Zip(path)
        self._names, self.labels, self.class_names = _by_identity(self._files, split)


def _by_identity(files: Folder | Zip, split: str | None) -> tuple[list[str], np.ndarray, list]:
    """Names, labels and class names of a folder per identity."""
    names, folders = files.listing()
    images = [PurePosixPath(name) for name in names if is_image(name)]
    if not images:
        raise ValueError(
            f"{files.root} holds no image; expected a folder per identity with files of type "
            f"{', '.join(sorted(IMAGE_SUFFIXES))}."
        )

    # The folder that holds the identities: below whatever the images have in common, but for a
    # stray one that lies higher than most.
    counts = Counter(len(image.parts) for image in images)
    usual = min(counts, key=lambda length: (-counts[length], length))
    # Folders of images beside folders of folders: some people's photographs are sorted once more.
    higher = [image for image in images if 1 < len(image.parts) < usual]
    if len({*(i.parent for i in higher)}) > 1 and len(higher) > (1 - _NESTED_SHARE) * len(images):
        usual = min(len(image.parts) for image in higher)
    parents = [image.parent.parts for image in images if len(image.parts) >= usual]
    depth = 0
    while depth < usual - 2 and len({parts[depth] for parts in parents}) == 1:
        depth += 1
    lead = parents[0][:depth]
    if split is not None:
        levels = [p for p in (lead[:-1], lead) if "/".join((*p, split)) in folders]
        if not levels:
            found = sorted({parts[depth] for parts in parents if len(parts) > depth})
            raise ValueError(
                f"`split`={split!r}: {files.root} has no such folder; it has {some(found)}."
            )
        lead = (*levels[0], split)
        depth = len(lead)
        images = [image for image in images if image.parts[:depth] == lead]
        if not images:
            raise ValueError(f"`split`={split!r}: that folder of {files.root} holds no image.")

    chosen = [
        image for image in images if len(image.parts) > depth + 1 and image.parts[:depth] == lead
    ]
    nested = [image for image in chosen if len(image.parts) > depth + 2]
    if chosen and len(nested) >= _NESTED_SHARE * len(chosen):
        found = sorted({image.parts[depth] for image in nested})
        raise ValueError(
            f"{files.root} holds folders of folders ({some(found)}): choose one of them by `split`."
        )
    if not chosen:
        raise ValueError(
            f"{files.root} holds images but no folder per identity; expected NAME/IMAGE.jpg."
        )
    class_names = _class_names({image.parts[depth] for image in chosen}, files.root)
    identities = {PurePosixPath(f) for f in folders if PurePosixPath(f).parts[:depth] == lead}
    empty = sorted(
        folder.name
        for folder in identities
        if len(folder.parts) == depth + 1 and composed(folder.name) not in class_names
    )
    if empty:
        raise ValueError(
            f"Every identity needs an image, but {len(empty)} of {files.root} have none: "
            f"{some(empty)}. Remove these folders."
        )
    taken = {str(image) for image in chosen}
    strays = {str(image) for image in images} - taken
    others = [
        name
        for name in names
        if name not in taken and (name in strays or PurePosixPath(name).parts[:depth] == lead)
    ]
    others = [name for name in others if PurePosixPath(name) != PurePosixPath(*lead, CROPS_TABLE)]
    if others:
        _LOGGER.warning(
            "%s: %d file(s) skipped, no images in an identity's folder: %s",
            files.root,
            len(others),
            some(others),
        )
    number = {name: label for label, name in enumerate(class_names)}
    labels = np.array([number[composed(image.parts[depth])] for image in chosen], np.int32)
    return [str(image) for image in chosen], labels, class_names


def _class_names(folders: set[str], root: os.PathLike) -> list[str]:
    """The names of the identities in their order: the same wherever the folders come from."""
    names = sorted({composed(folder) for folder in folders})
    if len(names) < len(folders):
        counts = Counter(composed(folder) for folder in folders)
        twice = some([name for name in names if counts[name] > 1])
        raise ValueError(
            f"{root} has two folders for {twice}, whose names differ in how letters with accents "
            "are stored alone. Put them together."
        )
    return names


class CSVSource(_FileSource):
    """A table of files and labels, with an optional split and optional landmarks.

    Labels are whole numbers or names. Numbers 0, 1, 2 … are kept. Names, and numbers with gaps
    (identity numbers), are numbered in sorted order over **all** rows, so that every split of the
    table has the same numbering; ``class_names`` keeps what the table says. Unless every label is
    plainly a number (``7``, neither ``007`` nor ``7.0``), all are names, sorted as
    :class:`FolderSource` sorts folders. A column ``label_number`` beside ``label``, which
    :func:`write_crops` writes, says which number each label has; numbers that are left out close
    up. Columns x0, y0 … x4, y4 (two eyes, nose, two mouth corners, in pixels of the image) become
    ``landmarks``.

    Args:
        path: The table: comma-separated, with a header. It may lie in a zip archive:
            ``"faces.zip/index.csv"``.
        images: Folder or .zip that the files are relative to; by default the table's own. Files may
            lie below a folder ``images/`` of it.
        file_column: Column of the files.
        label_column: Column of the labels.
        split_column: Column of the splits, read if ``split`` is given.
        split: Value of the split column to keep, or None for all rows (with a warning where the
            column is there and has several values).
        classes: If given, labels must be whole numbers and be exactly 0 … classes − 1.
        landmarks: Another table that has the landmarks of these files, as :func:`read_landmarks`
            takes it; by default the table's own columns are read, if they are there.

    Raises:
        ValueError: If a column, the split or every image is missing, a row has more or fewer values
            than the header, a label is empty, negative or out of range or does not fit its
            ``label_number``, a file has two labels or landmarks, or landmarks are not numbers or,
            with ``landmarks``, missing for a file.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        images: str | os.PathLike | None = None,
        *,
        file_column: str = "file",
        label_column: str = "label",
        split_column: str = "split",
        split: str | None = None,
        classes: int | None = None,
        landmarks: str | os.PathLike | None = None,
    ):
        path = Path(path)
        needed = {"file_column": file_column, "label_column": label_column}
        if split is not None:
            needed["split_column"] = split_column
        columns, rows, where = _read_rows(path, needed, split_column)
        labels, self.class_names = _number_rows(columns, rows, where, label_column, classes)
        keep = np.arange(len(rows))
        if split is not None:
            keep = np.array([i for i in keep if rows[i][split_column].strip() == split], int)
            if not len(keep):
                found = sorted({row[split_column].strip() for row in rows})
                raise ValueError(
                    f"`split`={split!r}: {path} has no such rows; it has {some(found)}."
                )
        elif len(found := sorted({row.get(split_column, "").strip() for row in rows})) > 1:
            _LOGGER.warning(
                "%s: rows of all splits are read (column %r: %s); choose one by `split`.",
                path,
                split_column,
                some(found),
            )
        self.labels = labels[keep]
        self.landmarks = None
        if landmarks is not None:
            files = [rows[i][file_column] for i in keep]
            self.landmarks = read_landmarks(landmarks, files, file_column)
        elif set(LANDMARK_COLUMNS) <= set(columns):
            self.landmarks = parse_landmarks([rows[i] for i in keep], [where[i] for i in keep])

        self._files = open_files(archive_of(path) if images is None else images, "images")
        self._names = _stored_names([rows[i][file_column] for i in keep], self._files)
        if all(self._files.size(name) < 0 for name in self._names):
            raise ValueError(
                f"`images`: none of the {len(keep)} files of {path} is in {self._files.root}; "
                f"the first would be {self._files.where(self._names[0])}."
            )


def read_labels(path: str | os.PathLike) -> list[str]:
    """Return the names of a table's classes as `CSVSource` numbers them, without its images."""
    columns, rows, where = _read_rows(
        path, {"file_column": "file", "label_column": "label"}, "split"
    )
    return _number_rows(columns, rows, where, "label", None)[1]


def _read_rows(path, needed: dict[str, str], split_column: str):
    """Return the columns of a table, its rows without repetition, and where each stands."""
    columns, listed = read_table(path, "path")
    for argument, column in needed.items():
        if column not in columns:
            raise ValueError(
                f"`{argument}`={column!r}: {path} has no such column; "
                f"it has {', '.join(map(repr, columns)) or 'none'}."
            )
    rows, lines, file_column = [], [], needed["file_column"]
    for line, row in listed:
        if None in row.values():
            raise ValueError(f"{path}, line {line}: fewer values than columns.")
        if any(row.get(None, ())):
            raise ValueError(
                f"{path}, line {line}: more values than columns; put a value that has a comma "
                'in it between quotation marks: "Smith, Anna".'
            )
        rows.append(row | {file_column: posix_name(row[file_column])})
        lines.append(line)
    if not rows:
        raise ValueError(f"{path} has a header but no rows.")
    told = (needed["label_column"], split_column, _NUMBER_COLUMN, *LANDMARK_COLUMNS)
    rows, lines = _without_repetition(rows, lines, file_column, told, path)
    return columns, rows, [f"{path}, line {line}" for line in lines]


def _number_rows(columns, rows, where, label_column: str, classes: int | None):
    """Return the labels of a table's rows and the names of all classes."""
    texts = [composed(row[label_column].strip()) for row in rows]
    if label_column == "label" and _NUMBER_COLUMN in columns:
        numbers = [row[_NUMBER_COLUMN].strip() for row in rows]
        return _numbered_as_told(texts, numbers, where, classes)
    return number_labels(texts, where, classes)


def _stored_names(names: Sequence[str], files: Folder | Zip) -> list[str]:
    """A table's files as they are stored: perhaps below ``images/``, or their accents apart."""
    places = ((prefix, name) for name in names for prefix in ("", "images/"))
    prefix = next((prefix for prefix, name in places if files.size(prefix + name) >= 0), "")
    names = [prefix + name for name in names]
    if all(files.size(name) >= 0 for name in names):
        return names
    # macOS stores é as e and an accent; most tables have it as one character.
    stored = {composed(name): name for name in files.listing()[0]}
    return [name if files.size(name) >= 0 else stored.get(composed(name), name) for name in names]


def _without_repetition(rows, lines, file_column, told, path):
    """Drop repeated rows; a file of which they tell two things is an error."""
    seen: dict[str, int] = {}
    kept = []
    for position, row in enumerate(rows):
        first = seen.setdefault(row[file_column], position)
        if first == position:
            kept.append(position)
            continue
        for column in told:
            if row.get(column) != rows[first].get(column):
                raise ValueError(
                    f"{path}: {row[file_column]!r} has {column} {rows[first][column]!r} in line "
                    f"{lines[first]} and {row[column]!r} in line {lines[position]}."
                )
    if len(kept) < len(rows):
        _LOGGER.warning("%s: %d repeated rows skipped", path, len(rows) - len(kept))
    return [rows[i] for i in kept], [lines[i] for i in kept]


def number_labels(
    texts: Sequence[str], where: Sequence[str], classes: int | None
) -> tuple[np.ndarray, list[str]]:
    """Labels and class names from a column of numbers or names."""
    _check_filled(texts, where)
    # Folders 7 and 007 are two people: only what is plainly a number, and fits int64, is one.
    form = r"0|-?[1-9][0-9]{0,17}" if classes is None else r"[+-]?[0-9]{1,18}"
    others = [i for i, text in enumerate(texts) if not re.fullmatch(form, text)]
    if others and classes is not None:
        raise ValueError(f"{where[others[0]]}: label {texts[others[0]]!r} is not a whole number.")
    if others:
        names = sorted(set(texts))
        number = {name: label for label, name in enumerate(names)}
        return np.array([number[text] for text in texts], np.int32), names
    numbers = np.array([int(text) for text in texts], np.int64)
    worst = int(np.argmin(numbers))
    if numbers[worst] < 0:
        raise ValueError(f"{where[worst]}: label {texts[worst]} is negative.")
    if classes is not None:
        check_range(numbers, classes, where)
    present, labels = np.unique(numbers, return_inverse=True)
    return labels.astype(np.int32), [str(number) for number in present]


def _numbered_as_told(
    texts: Sequence[str], numbers: Sequence[str], where: Sequence[str], classes: int | None
) -> tuple[np.ndarray, list[str]]:
    """Labels and class names from a column of names and one of their numbers."""
    _check_filled(texts, where)
    number_of: dict[str, int] = {}
    name_of: dict[int, str] = {}
    for text, number, place in zip(texts, numbers, where, strict=True):
        if not re.fullmatch("[0-9]{1,18}", number):
            raise ValueError(f"{place}: {_NUMBER_COLUMN} {number!r} is not a whole number from 0.")
        first = number_of.setdefault(text, int(number))
        name = name_of.setdefault(int(number), text)
        if (name, first) != (text, int(number)):
            further_up = f"{text!r} has {first}" if name == text else f"{number} is {name!r}"
            raise ValueError(
                f"{place}: label {text!r} has {_NUMBER_COLUMN} {number}, but further up "
                f"{further_up}: each label needs a number of its own."
            )
    if classes is not None:
        check_range(np.array([number_of[text] for text in texts]), classes, where)
    present = sorted(name_of)
    labels = np.searchsorted(present, [number_of[text] for text in texts])
    return labels.astype(np.int32), [name_of[number] for number in present]


def _check_filled(texts: Sequence[str], where: Sequence[str]) -> None:
    for text, place in zip(texts, where, strict=True):
        if not text:
            raise ValueError(f"{place}: the label is empty.")


def check_range(
    labels: np.ndarray, classes: int | None, where: Sequence[str], advice: str = ""
) -> None:
    """Labels must be exactly 0 … classes − 1 (classes: as many as there are, if None)."""
    count = int(labels.max()) + 1 if classes is None else classes
    worst = int(np.argmax(labels))
    if labels[worst] >= count:
        raise ValueError(f"{where[worst]}: label {labels[worst]} with `classes`={count}.")
    missing = np.setdiff1d(np.arange(count), labels)
    if len(missing):
        raise ValueError(
            f"Labels must be 0 … {count - 1} without a gap, but no image has label "
            f"{some(missing.tolist())}{advice}."
        )


class Subset(ImageSource):
    """Some images of another source, with its numbering of classes.

    Args:
        source: The other source.
        indices: Which images, in this order.

    Raises:
        ValueError: If an index is out of range.
    """

    def __init__(self, source: ImageSource, indices: Sequence[int]):
        indices = np.asarray(indices, np.int64)
        if len(indices) and not (indices.min() >= 0 and indices.max() < len(source)):
            raise ValueError(
                f"`indices` must lie in [0, {len(source)}), got {indices.min()} … {indices.max()}."
            )
        self.source = source
        self.indices = indices
        self.labels = source.labels[indices]
        self.class_names = source.class_names
        self.landmarks = None if source.landmarks is None else source.landmarks[indices]

    @functools.cached_property
    def paths(self) -> list[str]:
        """Where each image lies."""
        paths = self.source.paths
        return [paths[i] for i in self.indices]

    def read(self, index: int) -> np.ndarray:
        """Read one image; see :meth:`ImageSource.read`."""
        return self.source.read(int(self.indices[index]))

    def encoded(self, index: int) -> bytes | None:
        """One image's file; see :meth:`ImageSource.encoded`."""
        return self.source.encoded(int(self.indices[index]))

    def read_many(self, indices: Sequence[int]) -> Iterator[np.ndarray | UnreadableImageError]:
        """Read several images; see :meth:`ImageSource.read_many`."""
        return self.source.read_many(self.indices[indices].tolist())

    def stamps(self) -> Iterable[str]:
        """The other source's stamps."""
        stamps = list(self.source.stamps())
        return (stamps[i] for i in self.indices)


def split_source(source: ImageSource, fraction: float, seed: int = 0) -> tuple[Subset, Subset]:
    """Split a source at random within every class, deterministically.

    Args:
        source: What to split.
        fraction: Share of each class's images that goes to the second part, in (0, 1). Of two or
            more images at least one goes to each part; a single image stays in the first.
        seed: Chooses the split.

    Returns:
        ``(train, test)``, each in the source's order.

    Raises:
        ValueError: If the fraction is not in (0, 1).
    """
    if not 0 < fraction < 1:
        raise ValueError(f"`fraction` must lie in (0, 1), got {fraction!r}.")
    in_test = np.zeros(len(source), bool)
    for drawn in _drawn_by_class(source, seed):
        if len(drawn) > 1:
            count = min(max(round(fraction * len(drawn)), 1), len(drawn) - 1)
            in_test[drawn[:count]] = True
    return Subset(source, np.flatnonzero(~in_test)), Subset(source, np.flatnonzero(in_test))


def sample_per_class(source: ImageSource, number: int, seed: int = 0) -> Subset:
    """Draw at most ``number`` images of each class at random, deterministically.

    Args:
        source: What to draw from.
        number: Images of a class; a class that has fewer keeps all of them.
        seed: Chooses the images. A larger ``number`` adds to those of a smaller one.

    Returns:
        The drawn images, in the source's order.

    Raises:
        ValueError: If ``number`` is not positive.
    """
    if number < 1:
        raise ValueError(f"`number` must be positive, got {number!r}.")
    drawn = [members[:number] for members in _drawn_by_class(source, seed)]
    return Subset(source, np.sort(np.concatenate([np.zeros(0, np.int64), *drawn])))


def _drawn_by_class(source: ImageSource, seed: int) -> Iterator[np.ndarray]:
    """Yield each class's indices in a random order of its own."""
    if seed < 0:
        raise ValueError(f"`seed` must be 0 or a positive integer, got {seed!r}.")
    by_label = np.argsort(source.labels, kind="stable")
    borders = np.flatnonzero(np.diff(source.labels[by_label])) + 1
    for members in np.split(by_label, borders):
        if len(members):
            label = int(source.labels[members[0]])
            yield np.random.default_rng([seed, label]).permutation(members)
