"""The verification sets that face recognition is compared on, and their files.

Each is a list of image pairs cut into folds: a threshold is chosen on all folds but one and judged
on that one (:mod:`keras_hybrid.evaluation.verification`). InsightFace packs them as ``.bin`` files
of aligned 112×112 crops; those of the LFW family have lists of their own, too.
"""

import dataclasses
import os
import re
from pathlib import Path

import numpy as np

from keras_hybrid.data.bin_pairs import read_bin
from keras_hybrid.data.files import is_image, read_text
from keras_hybrid.data.landmarks import check_order, read_landmarks
from keras_hybrid.data.opening import open_source
from keras_hybrid.data.pairs import (
    ImageFinder,
    PairList,
    make_pairs,
    possible_folds,
    read_lfw_pairs,
)

__all__ = [
    "VerificationSet",
    "list_verification_sets",
    "read_pairs",
    "read_verification_set",
    "verification_set_info",
]


@dataclasses.dataclass(frozen=True)
class VerificationSet:
    """What is known of a verification set.

    Attributes:
        name: Its name in papers.
        same: Number of pairs of one person.
        different: Number of pairs of two people.
        folds: Number of folds.
        protocol: What it tests, in one sentence.
        reference: The paper.
        url: Where its makers offer it.
        pair_list: Name of its own list of pairs, or None where only the ``.bin`` is read.
    """

    name: str
    same: int
    different: int
    folds: int
    protocol: str
    reference: str
    url: str
    pair_list: str | None = None

    @property
    def pairs(self) -> int:
        """Number of pairs."""
        return self.same + self.different


_SETS = (
    VerificationSet(
        "LFW",
        3000,
        3000,
        10,
        "View 2 of photographs of people in the news, found by a frontal face detector.",
        "Huang, Ramesh, Berg, Learned-Miller, Labeled Faces in the Wild: A Database for Studying "
        "Face Recognition in Unconstrained Environments, University of Massachusetts, TR 07-49, "
        "2007",
        "http://vis-www.cs.umass.edu/lfw/",
        "pairs.txt",
    ),
    VerificationSet(
        "SLLFW",
        3000,
        3000,
        10,
        "LFW's pairs of one person, and pairs of two people who look alike, chosen by people.",
        "Deng, Hu, Zhang, Chen, Guo, Fine-grained Face Verification: FGLFW Database, Baselines, "
        "and Human-DCMN Partnership, Pattern Recognition 66, 2017",
        "http://www.whdeng.cn/SLLFW/index.html",
        "pair_SLLFW.txt",
    ),
    VerificationSet(
        "CALFW",
        3000,
        3000,
        10,
        "LFW's people at different ages; pairs of two people are of one sex and race.",
        "Zheng, Deng, Hu, Cross-Age LFW: A Database for Studying Cross-Age Face Recognition in "
        "Unconstrained Environments, arXiv:1708.08197, 2017",
        "http://whdeng.cn/CALFW/index.html",
        "pairs_CALFW.txt",
    ),
    VerificationSet(
        "CPLFW",
        3000,
        3000,
        10,
        "LFW's people in different poses; pairs of two people are of one sex and race.",
        "Zheng, Deng, Cross-Pose LFW: A Database for Studying Cross-Pose Face Recognition in "
        "Unconstrained Environments, Beijing University of Posts and Telecommunications, TR 18-01, "
        "2018",
        "http://www.whdeng.cn/CPLFW/index.html",
        "pairs_CPLFW.txt",
    ),
    VerificationSet(
        "TALFW",
        3000,
        3000,
        10,
        "LFW's pairs with images changed by a transferable attack, so that networks mistake them.",
        "Zhong, Deng, Towards Transferable Adversarial Attack against Deep Face Recognition, IEEE "
        "Transactions on Information Forensics and Security, 2020, arXiv:2004.05790",
        "https://github.com/zhongyy/Face-Transformer",
    ),
    VerificationSet(
        "CFP-FP",
        3500,
        3500,
        10,
        "A frontal face against a profile, of 500 well-known people.",
        "Sengupta, Chen, Castillo, Patel, Chellappa, Jacobs, Frontal to Profile Face Verification "
        "in the Wild, WACV 2016",
        "http://www.cfpw.io/",
    ),
    VerificationSet(
        "AgeDB-30",
        3000,
        3000,
        10,
        "Pairs 30 years apart, of AgeDB's collection with hand-made age labels.",
        "Moschoglou, Papaioannou, Sagonas, Deng, Kotsia, Zafeiriou, AgeDB: The First Manually "
        "Collected, In-the-Wild Age Database, CVPR Workshops 2017",
        "https://ibug.doc.ic.ac.uk/resources/agedb/",
    ),
)


def list_verification_sets() -> list[str]:
    """Names of the verification sets whose protocol is known here."""
    return [known.name for known in _SETS]


def verification_set_info(name: str) -> VerificationSet:
    """What is known of a verification set.

    Args:
        name: A name of :func:`list_verification_sets`; capitals, hyphens and underscores do not
            matter (``"cfp_fp"``).

    Returns:
        Its numbers, protocol, paper and address.

    Raises:
        ValueError: If the name is not known.
    """

    def plain(text: str) -> str:
        return re.sub(r"[-_ ]", "", text).lower()

    for known in _SETS:
        if plain(known.name) == plain(name):
            return known
    raise ValueError(
        f"`name`={name!r} is no verification set; known: {', '.join(list_verification_sets())}."
    )


def read_verification_set(
    name: str,
    path: str | os.PathLike,
    images: str | os.PathLike | None = None,
    *,
    landmarks: str | os.PathLike | None = None,
) -> PairList:
    """Read a verification set and compare it with its protocol.

    Args:
        name: As for :func:`verification_set_info`.
        path: InsightFace's ``.bin``; or for LFW, SLLFW, CALFW and CPLFW the makers' own list, as
            :func:`read_pairs` takes it.
        images: For a list: the folder or .zip of its images, aligned as the model's training
            images were.
        landmarks: As :func:`read_pairs`.

    Returns:
        The pairs.

    Raises:
        ValueError: If the file cannot be read, or its pairs are not as many as the protocol has.
    """
    known = verification_set_info(name)
    if known.pair_list is None and Path(path).suffix.lower() != ".bin":
        raise ValueError(f"{known.name} is read from a .bin file, got {path}.")
    pairs = read_pairs(path, images, folds=known.folds, landmarks=landmarks)
    same = int(pairs.same.sum())
    for what, found, expected in (
        ("pairs", len(pairs), known.pairs),
        ("pairs of one person", same, known.same),
        ("folds", len(np.unique(pairs.fold)), known.folds),
    ):
        if found != expected:
            raise ValueError(f"{known.name} has {expected} {what}, but {path} has {found}.")
    return pairs


def read_pairs(
    pairs: str | os.PathLike,
    images: str | os.PathLike | None = None,
    *,
    folds: int = 10,
    landmarks: str | os.PathLike | None = None,
) -> PairList:
    """Read verification pairs, in whichever of the known forms they come.

    Args:
        pairs: One of

            - InsightFace's ``.bin`` (:func:`read_bin`), which holds its images;
            - LFW's ``pairs.txt``, or a list in its form (:func:`read_lfw_pairs`);
            - ``pairs_CALFW.txt`` or ``pairs_CPLFW.txt``: two lines for a pair, each of a file's
              name and a number, 0 for two people and another one for one person;
            - ``pair_SLLFW.txt``: two lines for a pair, each NAME/NAME_0001.jpg, of one person where
              the folders are the same;
            - a folder or .zip with a folder for each of some people that the model was not trained
              on, of whom pairs are drawn (:func:`make_pairs`).

            A list may lie in a zip archive: ``"lfw.zip/pairs.txt"``.
        images: For a list: the folder or .zip of its images, at whatever depth and of whatever
            image type.
        folds: Number of folds of a ``.bin`` and of a list of two lines for a pair, and the largest
            of drawn pairs. Of a list the pairs of one person are cut into that many runs, and so
            are those of two people: the makers' own folds, where a list goes fold by fold.
        landmarks: For a list: a table of its images' landmarks, for models that take them, as
            :func:`read_landmarks` takes it: files as they lie in the folder or .zip.

    Returns:
        The pairs, in the file's order.

    Raises:
        ValueError: If the file is of none of these forms, or an image is missing or ambiguous, or
            has no landmarks, or most of these are those of a mirrored face.
    """
    if landmarks is not None:
        found = read_pairs(pairs, images, folds=folds)
        points = read_landmarks(landmarks, found.names)
        check_order(points, str(landmarks))
        return dataclasses.replace(found, landmarks=dict(zip(found.names, points, strict=True)))
    if holds_images(pairs):
        if images is not None:
            raise ValueError(f"`images`={str(images)!r}: {pairs} holds its images itself.")
        if Path(pairs).suffix.lower() == ".bin":
            return read_bin(pairs, folds)
        people = open_source(pairs)
        return make_pairs(people, possible_folds(people.labels, folds))
    if images is None:
        raise ValueError(f"`images`: the folder or .zip of the images of {pairs} is needed.")
    lines = [line.split() for line in read_text(pairs, "pairs").splitlines()]
    while lines and not lines[-1]:
        lines.pop()
    if not (lines and lines[0] and is_image(lines[0][0])):
        return read_lfw_pairs(pairs, images)
    return _read_line_by_line(str(pairs), lines, images, folds)


def holds_images(pairs: str | os.PathLike) -> bool:
    """Tell whether what pairs come from has their images, too: a .bin, a folder or a .zip."""
    return Path(pairs).suffix.lower() in (".bin", ".zip") or Path(pairs).is_dir()


def _read_line_by_line(
    where: str, lines: list[list[str]], images: str | os.PathLike, folds: int
) -> PairList:
    """Read a list with a line for each image, and two lines for a pair."""
    if len(lines) % 2:
        raise ValueError(f"{where}: two lines make a pair, but there are {len(lines)} lines.")
    width = len(lines[0])
    form = "NAME/IMAGE.jpg" if width == 1 else "IMAGE.jpg NUMBER"
    found = ImageFinder(images)
    names, same = [], []
    for row, fields in enumerate(lines):
        place = f"{where}, line {row + 1}"
        is_number = width == 1 or (len(fields) == 2 and fields[1].isdecimal())
        has_person = width == 2 or (len(fields) == 1 and fields[0].count("/") == 1)
        if len(fields) != width or width > 2 or not (is_number and has_person):
            raise ValueError(f"{place}: expected {form}, got {' '.join(fields)!r}.")
        names.append(found.name(fields[0], place))
        if row % 2:
            before = lines[row - 1]
            if width == 2 and fields[1] != before[1]:
                raise ValueError(
                    f"{place}: the lines of a pair have numbers {before[1]} and {fields[1]}."
                )
            one_folder = fields[0].partition("/")[0] == before[0].partition("/")[0]
            same.append(int(fields[1]) != 0 if width == 2 else one_folder)
    same = np.array(same)
    fold = np.empty(len(same), np.int32)
    for kind in (True, False):
        rows = np.flatnonzero(same == kind)
        if not 1 <= folds <= len(rows):
            raise ValueError(
                f"{where} has {len(rows)} pairs of {'one person' if kind else 'two people'}, too "
                f"few for {folds} folds."
            )
        for number, run in enumerate(np.array_split(rows, folds)):
            fold[run] = number
    return PairList(tuple(names[0::2]), tuple(names[1::2]), same, fold, found.reader)
