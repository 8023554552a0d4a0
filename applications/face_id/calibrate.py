"""Measure which similarity different people reach, and how often.

    python -m applications.face_id.calibrate --model model.tflite --detector yunet.onnx --data lfw/

Photographs of known people go the way that the server sends them (detection, alignment,
embedding); all pairs of them are compared. What a threshold costs is written beside the model, as
``model.tflite.calibration.json``, where the server finds it.
"""

import argparse
import json
import sys
import tempfile
from bisect import bisect_right
from collections import defaultdict
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import numpy as np

from applications.face_id.recogniser import Embedder, Recogniser
from applications.face_id.refusal import Refusal

__all__ = ["Calibration", "Point", "calibration_file", "choose", "embed_source", "measure"]

# Two photographs of different people are not so alike, one in two folders is.
_ONE_PHOTOGRAPH = 0.99
# Fewer errors than this say little of a rate: 30 are within 30 % of it, 9 times in 10 (Doddington).
_ERRORS = 30
_PHOTOGRAPHS_OF_A_PERSON = 4
_MOST_PHOTOGRAPHS = 10_000  # 50 million pairs, about 1 GB


class Point(NamedTuple):
    """What a threshold costs.

    Attributes:
        false_accepts: Share of the pairs of different people at or above the threshold.
        threshold: A cosine.
        true_accepts: Share of the pairs of one person at or above it.
    """

    false_accepts: float
    threshold: float
    true_accepts: float


@dataclass(frozen=True)
class Calibration:
    """What thresholds cost, as measured with one model.

    Attributes:
        model: The model's fingerprint.
        source: What it was measured on.
        people: How many people's photographs were compared.
        photographs: How many photographs.
        different_pairs: Pairs of different people among them.
        same_pairs: Pairs of one person.
        points: From the lowest rate of false accepts that the pairs can resolve upwards.
    """

    model: str
    source: str
    people: int
    photographs: int
    different_pairs: int
    same_pairs: int
    points: tuple[Point, ...]

    def at(self, false_accepts: float) -> Point:
        """The most permissive point with at most this rate of false accepts, or the strictest."""
        rates = [point.false_accepts for point in self.points]
        return self.points[max(0, bisect_right(rates, false_accepts) - 1)]

    def write(self, path: str | PathLike) -> None:
        """Write the file that :meth:`read` reads."""
        Path(path).write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: str | PathLike, model: str) -> "Calibration":
        """Read a calibration.

        Args:
            path: The file.
            model: Fingerprint of the model that it must belong to.

        Raises:
            ValueError: If it is no calibration, or one of another model.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            points = tuple(Point(*map(float, point)) for point in content.pop("points"))
            calibration = cls(**content, points=points)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{path} is not a calibration: {error}") from error
        if not points:
            raise ValueError(f"{path} is not a calibration: it has no points.")
        if not np.isfinite(points).all():
            raise ValueError(f"{path} is not a calibration: it has numbers that are not finite.")
        if calibration.model != model:
            raise ValueError(
                f"{path} was measured with another model: thresholds of one model mean nothing to "
                "another. Run python -m applications.face_id.calibrate again."
            )
        return calibration


def calibration_file(model: str | PathLike) -> Path:
    """Where the calibration of a model lies if nothing else is said."""
    return Path(f"{model}.calibration.json")


def measure(embeddings: np.ndarray, labels: np.ndarray, model: str, source: str) -> Calibration:
    """Compare all pairs of photographs.

    Args:
        embeddings: float32 (n, dim), each of length 1.
        labels: Integers (n,): whom each photograph shows.
        model: The model's fingerprint.
        source: What the photographs are called.

    Raises:
        ValueError: If nobody has two photographs, or the pairs of different people are too few.
    """
    from keras_hybrid.evaluation import roc_curve

    labels = np.asarray(labels)
    num_same, num_different = _count_pairs(labels, source)
    first, second = np.triu_indices(len(labels), 1)
    same = labels[first] == labels[second]
    curve = roc_curve((embeddings @ embeddings.T)[first, second], same)
    lowest = _ERRORS / num_different
    rates = np.geomspace(lowest, 0.1, 1 + int(np.ceil(10 * np.log10(0.1 / lowest))))
    rows = np.searchsorted(curve.far, rates * (1 + 1e-9), side="right") - 1
    # Where the best scores of different people are tied, the strictest rate is above the lowest;
    # none at all is no rate.
    rows = np.unique(np.maximum(rows, np.searchsorted(curve.far, 0, side="right")))
    return Calibration(
        model,
        source,
        len(np.unique(labels)),
        len(labels),
        num_different,
        num_same,
        tuple(
            Point(float(curve.far[i]), float(curve.thresholds[i]), float(curve.tar[i]))
            for i in rows
        ),
    )


def _count_pairs(labels: np.ndarray, source: str) -> tuple[int, int]:
    """Return how many pairs are of one person and of two; raise ValueError if too few are."""
    counts = np.unique(labels, return_counts=True)[1]
    num_same = int((counts * (counts - 1) // 2).sum())
    num_different = len(labels) * (len(labels) - 1) // 2 - num_same
    if num_same < _ERRORS or num_different < 100 * _ERRORS:
        raise ValueError(
            f"{source} gives {num_same} pairs of one person and {num_different} of different "
            f"people; at least {_ERRORS} and {100 * _ERRORS} are needed: more people, and two or "
            "more photographs of some."
        )
    return num_same, num_different


def main(arguments: list[str] | None = None) -> int:
    """Measure and write; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m applications.face_id.calibrate", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--model", type=Path, required=True, help="a .tflite or .keras file")
    parser.add_argument("--detector", type=Path, required=True, help="YuNet's .onnx file")
    parser.add_argument(
        "--data",
        required=True,
        help="photographs of people who will not be enrolled: a folder or .zip with a folder for "
        "each person, a .csv, .npz, .rec or tfds:NAME",
    )
    parser.add_argument("--images", help="for a .csv: the folder or .zip of its files")
    parser.add_argument(
        "--photographs",
        type=_count,
        default=2000,
        metavar="N",
        help=f"2 to {_MOST_PHOTOGRAPHS:,} (default: 2000, which make 2 million pairs)",
    )
    parser.add_argument("--seed", type=_seed, default=0, help="which of them (default: 0)")
    parser.add_argument("--out", type=Path, help="default: MODEL.calibration.json")
    given = parser.parse_args(arguments)
    out = given.out or calibration_file(given.model)
    try:
        if given.out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
        if out.parent.is_dir():  # without it there is no model either, which is said below
            tempfile.TemporaryFile(dir=out.parent).close()  # what cannot be written is said first
        calibration = _calibrate(given)
        calibration.write(out)
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(
        f"{calibration.photographs} photographs of {calibration.people} people, "
        f"{calibration.different_pairs:,} pairs of different people, "
        f"{calibration.same_pairs:,} of one person"
    )
    strictest = calibration.points[0]
    if strictest.threshold > _ONE_PHOTOGRAPH:
        print(
            f"note: {strictest.false_accepts:.2g} of the pairs of different people have a "
            f"similarity above {_ONE_PHOTOGRAPH}. Is one photograph in several people's folders?",
            file=sys.stderr,
        )
    print("false accepts  threshold  true accepts")
    for point in dict.fromkeys(calibration.at(rate) for rate in (1e-2, 1e-3, 1e-4, 0)):
        rate, threshold, true_accepts = point
        print(f"{rate:<13.2g}  {threshold:9.4f}  {true_accepts:12.2%}")
    print(f"Written: {out}")
    return 0


def _count(text: str) -> int:
    if not text.isdecimal() or not 2 <= int(text) <= _MOST_PHOTOGRAPHS:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 2 to {_MOST_PHOTOGRAPHS:,}")
    return int(text)


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not 0 or a positive integer")
    return int(text)


def _calibrate(given: argparse.Namespace) -> Calibration:
    from keras_hybrid.data import FaceDetector, open_source

    recogniser = Recogniser(FaceDetector(given.detector), Embedder(given.model))
    source = open_source(given.data, images=given.images)
    rows = choose(source.labels, given.photographs, given.seed)
    _count_pairs(np.asarray(source.labels)[rows], given.data)  # before all are embedded
    embeddings, labels, skipped = embed_source(recogniser, source, rows)
    if skipped:
        print(f"{skipped} photographs left out: no readable face.", file=sys.stderr)
    if not embeddings.size:
        raise ValueError(f"No face was found in {given.data}.")
    return measure(embeddings, labels, recogniser.embedder.fingerprint, Path(given.data).name)


def choose(labels: np.ndarray, count: int, seed: int) -> list[int]:
    """Choose photographs: people in random order, a few of each, until there are enough.

    Args:
        labels: Integers (n,): whom each photograph shows.
        count: How many to choose at most.
        seed: Of the order.

    Returns:
        Their rows.
    """
    rows_of = defaultdict(list)
    for row in np.random.default_rng(seed).permutation(len(labels)):
        rows_of[int(labels[row])].append(int(row))
    return [row for rows in rows_of.values() for row in rows[:_PHOTOGRAPHS_OF_A_PERSON]][:count]


def embed_source(
    recogniser: Recogniser, source, rows: list[int]
) -> tuple[np.ndarray, np.ndarray, int]:
    """Embed the largest face of each photograph.

    Args:
        recogniser: What the server uses.
        source: A source of :func:`keras_hybrid.data.open_source`.
        rows: Which of its photographs.

    Returns:
        float32 (n, dim); integers (n,), the labels; and how many photographs have no readable face.
    """
    from keras_hybrid.data import UnreadableImageError

    crops, labels = [], []
    for row in rows:
        try:
            image = source.read(row)
            face = recogniser.faces(image)[0]
        except (UnreadableImageError, Refusal):
            continue
        if recogniser.is_too_small(face):
            continue
        crops.append(recogniser.crop(image, face))
        labels.append(int(source.labels[row]))
    embeddings = recogniser.embed(crops) if crops else np.empty((0, 0), np.float32)
    return embeddings, np.array(labels), len(rows) - len(labels)


if __name__ == "__main__":
    sys.exit(main())
