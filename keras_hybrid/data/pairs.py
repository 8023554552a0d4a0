"""Verification pairs: which two images are compared, and whether they show the same person."""

import dataclasses
import math
import os
import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from keras_hybrid.data.files import (
    Folder,
    Zip,
    decode_image,
    is_image,
    open_files,
    read_text,
    resize_image,
    some,
)
from keras_hybrid.data.sources import ImageSource

__all__ = ["PairList", "make_pairs", "read_lfw_pairs"]

_LARGEST_FOLD = 2000  # images, of which two million pairs can be made


@dataclasses.dataclass(frozen=True)
class PairList:
    """Pairs of face images, each of one person or of two.

    Attributes:
        left: Name of each pair's first image.
        right: Name of each pair's second image.
        same: bool (pairs,): whether they show the same person.
        fold: int (pairs,): the cross-validation fold, 0 for a list without folds.
        reader: Reads an image by name: uint8 (height, width, 3).
        landmarks: Of each image by name, float32 (5, 2) in pixels of the image as it is read
            (:mod:`keras_hybrid.data.landmarks`), or None.
    """

    left: tuple[str, ...]
    right: tuple[str, ...]
    same: np.ndarray
    fold: np.ndarray
    reader: Any = dataclasses.field(repr=False, compare=False)
    landmarks: Mapping[str, np.ndarray] | None = dataclasses.field(
        default=None, repr=False, compare=False
    )

    def __len__(self) -> int:
        return len(self.left)

    @property
    def names(self) -> tuple[str, ...]:
        """Every image once, sorted by name."""
        return tuple(sorted({*self.left, *self.right}))

    @property
    def indices(self) -> tuple[np.ndarray, np.ndarray]:
        """For each pair the position in ``names`` of its first and of its second image."""
        place = {name: position for position, name in enumerate(self.names)}
        return (
            np.array([place[name] for name in self.left], np.int64),
            np.array([place[name] for name in self.right], np.int64),
        )

    def read(self, name: str) -> np.ndarray:
        """Read one image by name.

        Args:
            name: An element of ``left``, ``right`` or ``names``.

        Returns:
            uint8 (height, width, 3), RGB.

        Raises:
            UnreadableImageError: If it cannot be decoded.
        """
        return self.reader(name)

    def read_images(self, image_size: int | tuple[int, int] | None = None) -> np.ndarray:
        """Read every image of the pairs once, in the order of ``names``.

        ```python
        embeddings = embedder.predict(pairs.read_images(112))
        left, right = pairs.indices
        result = keras_hybrid.evaluation.verify(embeddings[left], embeddings[right], pairs.same)
        ```

        Args:
            image_size: Height and width to resize to, or None if all have one size.

        Returns:
            uint8 (len(names), height, width, 3).

        Raises:
            ValueError: If an image cannot be decoded, or sizes differ and no size is given: a
                protocol may not lose a pair.
        """
        images = []
        for name in self.names:
            image = self.read(name)
            images.append(image if image_size is None else resize_image(image, image_size))
            if images[-1].shape != images[0].shape:
                raise ValueError(
                    f"{name} is {image.shape[:2]}, {self.names[0]} {images[0].shape[:2]}: "
                    "give an `image_size`."
                )
        return np.stack(images)


def read_lfw_pairs(pairs: str | os.PathLike, images: str | os.PathLike) -> PairList:
    """Read a pair list of Labeled Faces in the Wild and find its images.

    Args:
        pairs: ``pairs.txt`` of View 2 (header "10<tab>300": folds of 300 pairs of the same person,
            then 300 of different people) or ``pairsDevTrain.txt``/``pairsDevTest.txt`` of View 1
            (header "1100"). It may lie in a zip archive: ``"lfw.zip/pairs.txt"``.
        images: Folder or .zip with NAME/NAME_0001.jpg, at whatever depth.

    Returns:
        The pairs, in the file's order.

    Raises:
        ValueError: If a line is malformed or an image is missing, naming the line: a protocol
            with pairs left out would give another figure.
    """
    where = str(pairs)
    lines = [line.rstrip() for line in read_text(pairs, "pairs").splitlines()]
    while lines and not lines[-1]:
        lines.pop()
    header = lines[0].split() if lines else []
    if not (len(header) in (1, 2) and all(re.fullmatch("[0-9]+", h) and int(h) for h in header)):
        raise ValueError(
            f"{where}, line 1: expected the number of pairs, or of folds and pairs, "
            f"got {lines[0] if lines else ''!r}."
        )
    folds, count = (1, int(header[0])) if len(header) == 1 else map(int, header)
    if len(lines) - 1 != folds * 2 * count:
        raise ValueError(
            f"{where}: the header {lines[0]!r} announces {folds * 2 * count} pairs, "
            f"but {len(lines) - 1} lines follow."
        )

    found = ImageFinder(images)

    def image(person: str, number: str, place: str) -> str:
        if not re.fullmatch("[0-9]+", number):
            raise ValueError(f"{place}: {number!r} is not the number of an image.")
        return found.name(f"{person}/{person}_{int(number):04d}.jpg", place)

    left, right, same, fold = [], [], [], []
    for position, line in enumerate(lines[1:]):
        place = f"{where}, line {position + 2}"
        is_same = position % (2 * count) < count
        # Names hold no blanks; some copies of the file have blanks for tabs.
        fields = line.split("\t") if "\t" in line else line.split()
        if len(fields) != (3 if is_same else 4):
            form = "NAME n1 n2 (same person)" if is_same else "NAME1 n1 NAME2 n2 (two people)"
            raise ValueError(f"{place}: expected {form}, got {line!r}.")
        other = fields[0] if is_same else fields[2]
        if not is_same and other == fields[0]:
            raise ValueError(f"{place}: expected two different people, got {line!r}.")
        left.append(image(fields[0], fields[1], place))
        right.append(image(other, fields[-1], place))
        same.append(is_same)
        fold.append(position // (2 * count))
    return PairList(
        tuple(left), tuple(right), np.array(same), np.array(fold, np.int32), found.reader
    )


class ImageFinder:
    """Finds the images that a list names in a folder or archive, at whatever depth.

    The suffix does not matter: aligned copies are often of another type.
    """

    def __init__(self, images: str | os.PathLike):
        self.reader = _Reader(open_files(images, "images"))
        self._names: dict[str, list[str]] = {}
        for name in self.reader.files.listing()[0]:
            if is_image(name):
                self._names.setdefault(PurePosixPath(name).stem, []).append(name)

    def name(self, wanted: str, place: str) -> str:
        """The one image called ``wanted``, in a folder of that name if it has one.

        Raises:
            ValueError: If there is none or more than one; ``place`` is where the list names it.
        """
        path = PurePosixPath(wanted)
        members = [
            name
            for name in self._names.get(path.stem, [])
            if path.parent.name in ("", PurePosixPath(name).parent.name)
        ]
        if len(members) != 1:
            problem = f"more than once: {some(members)}" if members else "missing"
            raise ValueError(f"{place}: image {wanted} of {self.reader.files.root} is {problem}.")
        return members[0]


@dataclasses.dataclass(frozen=True)
class _Reader:
    """Reads an image of a folder or archive by name."""

    files: Folder | Zip

    def __call__(self, name: str) -> np.ndarray:
        return decode_image(self.files.bytes(name), self.files.where(name))


def make_pairs(
    source: ImageSource, folds: int | None = None, per_fold: int | None = None, seed: int = 0
) -> PairList:
    """Draw verification pairs from labelled images, as a protocol for one's own identities.

    Each fold has ``per_fold`` pairs, half of one person and half of two, and identities of its own:
    no person is in two folds, so that a threshold is never judged on people it was chosen on.
    The identities must not be among those the model was trained on, or the figure flatters.

    Args:
        source: Images of at least ``2 · folds`` identities, ``folds`` of which have two or more.
        folds: Number of folds. ``None``: 10, or as many as there are identities for, at least 2.
        per_fold: Pairs in each fold, an even number. ``None``: 60, or as many as each fold has.
        seed: Of the draw.

    Returns:
        The pairs, fold by fold, with the source's landmarks; no pair is drawn twice.

    Raises:
        ValueError: If there are too few identities or images for that many different pairs.
    """
    generator = np.random.default_rng(seed)
    labels = np.asarray(source.labels)
    identities = generator.permutation(np.unique(labels))
    if folds is None:
        folds = possible_folds(labels, 10)
    if folds < 1 or (per_fold is not None and (per_fold < 2 or per_fold % 2)):
        raise ValueError(
            "`folds` must be at least 1 and `per_fold` a positive even number, got "
            f"folds={folds}, per_fold={per_fold}."
        )
    if len(identities) < 2 * folds:
        raise ValueError(
            f"{folds} folds need at least {2 * folds} identities, got {len(identities)}: give "
            f"{'fewer `folds`' if folds > 2 else 'more people'}."
        )
    images = dict(zip(*np.unique(labels, return_counts=True), strict=True))
    has_pair = np.array([images[person] > 1 for person in identities])
    if has_pair.sum() < folds:
        raise ValueError(
            f"{folds} folds need at least {folds} identities of two or more images, got "
            f"{has_pair.sum()}: give {'fewer `folds`' if folds > 2 else 'more images'}."
        )
    groups = []
    several = np.array_split(identities[has_pair], folds)
    single = np.array_split(identities[~has_pair], folds)[::-1]  # where fewer of the others are
    for group in map(np.concatenate, zip(several, single, strict=True)):
        # All pairs of a fold are listed, so of very many images some people stand for it.
        total = np.cumsum([images[person] for person in group])
        groups.append(group[: max(2, np.searchsorted(total, _LARGEST_FOLD, side="right"))])
    if per_fold is None:
        same_pairs = [sum(images[who] * (images[who] - 1) // 2 for who in g) for g in groups]
        all_pairs = [math.comb(sum(int(images[who]) for who in g), 2) for g in groups]
        fewest = min(min(a, b - a) for a, b in zip(same_pairs, all_pairs, strict=True))
        per_fold = 2 * max(1, min(30, int(fewest)))
    left, right, same, fold = [], [], [], []
    for number, group in enumerate(groups):
        rows = np.flatnonzero(np.isin(labels, group))
        if len(rows) > _LARGEST_FOLD:  # of two people: then some images stand for each
            drawn = [generator.permutation(rows[labels[rows] == person]) for person in group]
            rows = np.sort(np.concatenate([d[: _LARGEST_FOLD // len(group)] for d in drawn]))
        first, second = np.triu_indices(len(rows), 1)
        is_same = labels[rows[first]] == labels[rows[second]]
        for wanted in (True, False):
            candidates = np.flatnonzero(is_same == wanted)
            if len(candidates) < per_fold // 2:
                raise ValueError(
                    f"Fold {number} has only {len(candidates)} different pairs of "
                    f"{'one person' if wanted else 'two people'}, `per_fold`={per_fold} needs "
                    f"{per_fold // 2}: give fewer pairs or more images."
                )
            chosen = np.sort(generator.choice(candidates, per_fold // 2, replace=False))
            left += rows[first[chosen]].tolist()
            right += rows[second[chosen]].tolist()
            same += [wanted] * len(chosen)
            fold += [number] * len(chosen)
    names = [f"{row}:{path}" for row, path in enumerate(source.paths)]
    rows_by_name = {name: row for row, name in enumerate(names)}
    return PairList(
        tuple(names[row] for row in left),
        tuple(names[row] for row in right),
        np.array(same),
        np.array(fold),
        lambda name: source.read(rows_by_name[name]),
        None if source.landmarks is None else dict(zip(names, source.landmarks, strict=True)),
    )


def possible_folds(labels: np.ndarray, most: int) -> int:
    """How many folds, at least 2 and at most so many, there are people for in drawn pairs."""
    images = np.unique(labels, return_counts=True)[1]
    return max(2, min(most, len(images) // 2, int((images > 1).sum())))
