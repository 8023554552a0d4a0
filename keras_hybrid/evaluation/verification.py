"""Face verification: are these two photographs of one person?

The protocol is the one of Labeled Faces in the Wild, View 2: the pairs come in ten folds; the
decision threshold is chosen on nine of them and judged on the tenth, ten times over. The mean and
the standard deviation of the ten accuracies are reported. View 1 is for choosing between models:
find a threshold on its training pairs (:func:`best_threshold`) and judge it on its test pairs
(``verify(..., folds=1, threshold=...)``).

A pair's score is the cosine of the angle between its two embeddings, and a pair is accepted as
"same person" when ``score >= threshold``. Every figure is computed from all distinct scores,
never from a grid of thresholds, so it does not depend on how the scores are spread.

Sources:
    Huang, Ramesh, Berg, Learned-Miller, "Labeled Faces in the Wild: A Database for Studying Face
    Recognition in Unconstrained Environments", University of Massachusetts, TR 07-49, 2007.

    The accuracy, its population standard deviation and XNorm are defined as in insightface's
    ``verification.py``, which tries 400 thresholds 0.01 apart on squared distance; ours are exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import TYPE_CHECKING

import numpy as np

from keras_hybrid.data.files import resize_image
from keras_hybrid.data.landmarks import landmark_problem, resize_landmarks
from keras_hybrid.evaluation.inference import (
    embed_batches,
    model_image_size,
    model_takes_landmarks,
)

if TYPE_CHECKING:
    import keras
    from numpy.typing import ArrayLike

    from keras_hybrid.data import PairList

__all__ = [
    "RocCurve",
    "VerificationResult",
    "best_threshold",
    "cosine_scores",
    "evaluate_pairs",
    "roc_curve",
    "verify",
    "verify_scores",
]

_REPORTED_FARS = (1e-2, 1e-3, 1e-4)


@dataclass(frozen=True, eq=False)
class RocCurve:
    """The exact receiver operating characteristic: one point per distinct score.

    Attributes:
        far: False accept rate, the share of different-person pairs accepted; float64 (points,),
            from 0 to 1, never decreasing.
        tar: True accept rate, the share of same-person pairs accepted; float64 (points,), from 0
            to 1, never decreasing.
        thresholds: Score from which pairs are accepted at each point; float64 (points,),
            decreasing. The first is infinity, at which nothing is accepted.
        num_same: Number of same-person pairs.
        num_different: Number of different-person pairs: ``far`` moves in steps of one over it.
    """

    far: np.ndarray = field(repr=False)
    tar: np.ndarray = field(repr=False)
    thresholds: np.ndarray = field(repr=False)
    num_same: int
    num_different: int

    @property
    def auc(self) -> float:
        """Area under the curve: the chance that a same pair outscores a different one.

        Ties count one half, as in the Mann–Whitney statistic.
        """
        return float(np.sum(np.diff(self.far) * (self.tar[1:] + self.tar[:-1]) / 2))

    @property
    def eer(self) -> float:
        """Equal error rate: where FAR equals 1 − TAR, interpolated between neighbouring points."""
        excess = self.far - (1 - self.tar)  # rises from −1 to 1
        after = int(np.argmax(excess >= 0))
        before = after - 1
        share = -excess[before] / (excess[after] - excess[before])
        return float(self.far[before] + share * (self.far[after] - self.far[before]))

    def tar_at(self, far: float) -> float:
        """Return the highest true accept rate at which the false accept rate is at most ``far``.

        Nothing is interpolated: the rate belongs to a threshold that exists, and not one pair
        more than allowed is falsely accepted. With N different pairs, every ``far`` below 1/N
        asks for a threshold without a single false accept.

        Args:
            far: False accept rate in [0, 1].

        Raises:
            ValueError: If ``far`` is outside [0, 1].
        """
        if not 0 <= far <= 1:
            raise ValueError(f"far must be in [0, 1], got {far!r}.")
        return float(self.tar[np.searchsorted(self.far, far, side="right") - 1])


@dataclass(frozen=True, eq=False)
class VerificationResult:
    """What a verification protocol found. All rates are shares in [0, 1].

    Attributes:
        accuracy: Mean accuracy over the folds.
        accuracy_std: Standard deviation of the folds' accuracies: of the population
            (``numpy.std``, as insightface reports it), not of a sample.
        threshold: Mean of the folds' thresholds; the one to deploy.
        fold_accuracies: Each fold's accuracy, float64 (folds,).
        fold_thresholds: The threshold each fold was judged at, float64 (folds,).
        roc: The exact curve over all pairs.
        scores: Each pair's score, float64 (pairs,).
        same: Which pairs show one person, bool (pairs,).
        xnorm: Mean length of the embeddings before normalisation, insightface's XNorm: a sign of
            trouble where it drifts or explodes. None where only scores were known.
    """

    accuracy: float
    accuracy_std: float
    threshold: float
    fold_accuracies: np.ndarray = field(repr=False)
    fold_thresholds: np.ndarray = field(repr=False)
    roc: RocCurve = field(repr=False)
    scores: np.ndarray = field(repr=False)
    same: np.ndarray = field(repr=False)
    xnorm: float | None = None

    @property
    def auc(self) -> float:
        """Area under the ROC curve over all pairs."""
        return self.roc.auc

    @property
    def eer(self) -> float:
        """Equal error rate over all pairs."""
        return self.roc.eer

    def tar_at_far(self, far: float | Iterable[float]) -> float | dict[float, float]:
        """Return the true accept rate at a false accept rate, or at each of several.

        Args:
            far: One false accept rate in [0, 1], or an iterable of them.

        Returns:
            The rate, or a dict from false accept rate to it, largest first. See
            :meth:`RocCurve.tar_at` for what "at" means.

        Raises:
            ValueError: If a rate is outside [0, 1].
        """
        if isinstance(far, Iterable):
            return {rate: self.roc.tar_at(rate) for rate in sorted(far, reverse=True)}
        return self.roc.tar_at(far)

    def to_dict(self) -> dict[str, object]:
        """Return the figures as plain Python numbers, ready for JSON; scores are left out.

        ``"tar_at_far"`` has the rates that the pairs can show: one false accept among the pairs of
        two people is the lowest above none.
        """
        return {
            "accuracy": self.accuracy,
            "accuracy_std": self.accuracy_std,
            "threshold": self.threshold,
            "auc": self.auc,
            "eer": self.eer,
            "tar_at_far": {f"{far:g}": self.roc.tar_at(far) for far in self._reported_fars()},
            "xnorm": self.xnorm,
            "pairs": len(self.same),
            "same_pairs": self.roc.num_same,
            "different_pairs": self.roc.num_different,
            "fold_accuracies": self.fold_accuracies.tolist(),
            "fold_thresholds": self.fold_thresholds.tolist(),
        }

    def _reported_fars(self) -> list[float]:
        return [far for far in _REPORTED_FARS if far * self.roc.num_different >= 1]

    def __str__(self) -> str:
        """Return the figures in a few lines."""
        folds = len(self.fold_accuracies)
        if folds > 1:
            spread = f"{100 * self.accuracy:.2f} ± {100 * self.accuracy_std:.2f} % ({folds} folds)"
        else:
            spread = f"{100 * self.accuracy:.2f} %"
        lines = [
            ("accuracy", f"{spread}, threshold {self.threshold:.4f}"),
            ("AUC", f"{self.auc:.5f}"),
            ("EER", f"{100 * self.eer:.2f} %"),
            *(
                (f"TAR @ FAR {far:g}", f"{100 * self.roc.tar_at(far):.2f} %")
                for far in self._reported_fars()
            ),
            ("pairs", f"{self.roc.num_same:,} same, {self.roc.num_different:,} different"),
        ]
        if self.xnorm is not None:
            lines.append(("XNorm", f"{self.xnorm:.3f}"))
        return "\n".join(f"{name:<18} {value}" for name, value in lines)


def cosine_scores(embeddings_a: ArrayLike, embeddings_b: ArrayLike) -> np.ndarray:
    """Return the cosine between each embedding and its partner.

    Args:
        embeddings_a: Floats (pairs, dim), normalised or not.
        embeddings_b: Floats of the same shape.

    Returns:
        float64 (pairs,) in [-1, 1].

    Raises:
        ValueError: If the shapes differ or are not (pairs, dim), there are no pairs, or an
            embedding has a NaN or an infinity or is all zeros and so has no direction.
    """
    left, _ = _directions("embeddings_a", embeddings_a)
    right, _ = _directions("embeddings_b", embeddings_b)
    return _row_cosines(left, right)


def best_threshold(scores: ArrayLike, same: ArrayLike) -> float:
    """Return the threshold with the most pairs on the right side of it.

    The candidates are the midpoints between neighbouring distinct scores, and the two ends that
    accept everything and nothing: no other threshold decides differently. Among equally accurate
    candidates the one in the widest gap between scores wins, then the lowest.

    Args:
        scores: Floats (pairs,), higher for more alike.
        same: Bools or 0/1 (pairs,), true where the pair shows one person.

    Returns:
        The threshold; pairs with ``score >= threshold`` are accepted.

    Raises:
        ValueError: If there are no pairs, the shapes differ, a score is not finite, or the pairs
            are all same or all different.
    """
    return _best_threshold(*_check_scores(scores, same))


def roc_curve(scores: ArrayLike, same: ArrayLike) -> RocCurve:
    """Return the exact ROC curve of scored pairs.

    Args:
        scores: Floats (pairs,), higher for more alike.
        same: Bools or 0/1 (pairs,), true where the pair shows one person.

    Raises:
        ValueError: As :func:`best_threshold`.
    """
    return _roc_curve(*_check_scores(scores, same))


def verify(
    embeddings_a: ArrayLike,
    embeddings_b: ArrayLike,
    same: ArrayLike,
    folds: int | ArrayLike = 10,
    *,
    threshold: float | None = None,
) -> VerificationResult:
    """Run a verification protocol on pairs of embeddings.

    Args:
        embeddings_a: Floats (pairs, dim): the embedding of each pair's first image. Normalised
            here; give them raw for a meaningful ``xnorm``.
        embeddings_b: Floats (pairs, dim): of each pair's second image.
        same: Bools or 0/1 (pairs,), true where the pair shows one person.
        folds: Integers (pairs,), the fold each pair belongs to; or how many folds to make. In the
            latter case the same-person pairs, in their order, are cut into that many runs of
            equal length, and so are the different-person pairs. For a list in LFW's layout (every
            fold holds as many same as different pairs, one fold after the other) these are
            exactly the list's own folds, which are also insightface's; for a list sorted in any
            other way every fold still holds its share of both. With 1, or one id throughout, the
            threshold is chosen on the very pairs it is judged on, which flatters: give
            ``threshold``.
        threshold: A threshold chosen elsewhere, at which every fold is judged. By default each
            fold is judged at the best threshold of the other folds.

    Returns:
        The accuracies, the thresholds, the ROC curve and what follows from it.

    Raises:
        ValueError: If shapes disagree, there are no pairs, an embedding is not finite or is all
            zeros, all pairs are same or all are different, there are more folds than pairs of
            one kind, or the pairs outside a fold are all of one kind.

    Example:
        >>> result = verify(left, right, same, folds=10)  # doctest: +SKIP
        >>> result.accuracy, result.accuracy_std, result.tar_at_far(1e-3)  # doctest: +SKIP
    """
    left, norms_left = _directions("embeddings_a", embeddings_a)
    right, norms_right = _directions("embeddings_b", embeddings_b)
    result = verify_scores(_row_cosines(left, right), same, folds, threshold=threshold)
    return replace(result, xnorm=float((norms_left.mean() + norms_right.mean()) / 2))


def verify_scores(
    scores: ArrayLike,
    same: ArrayLike,
    folds: int | ArrayLike = 10,
    *,
    threshold: float | None = None,
) -> VerificationResult:
    """Run a verification protocol on scores of any kind, higher for more alike.

    Args:
        scores: Floats (pairs,).
        same: As :func:`verify`.
        folds: As :func:`verify`.
        threshold: As :func:`verify`.

    Returns:
        As :func:`verify`, with ``xnorm`` None.

    Raises:
        ValueError: As :func:`verify`, for the scores.
    """
    scores, same = _check_scores(scores, same)
    if threshold is not None and not (isinstance(threshold, Real) and math.isfinite(threshold)):
        raise ValueError(f"threshold must be a finite number or None, got {threshold!r}.")
    fold_of_pair = _fold_of_pair(folds, same)
    accuracies, thresholds = [], []
    fold_ids = np.unique(fold_of_pair)
    for fold in fold_ids:
        test = fold_of_pair == fold
        if threshold is not None:
            chosen = float(threshold)
        elif len(fold_ids) == 1:
            chosen = _best_threshold(scores, same)
        else:
            if np.all(same[~test]) or not np.any(same[~test]):
                raise ValueError(
                    f"The pairs outside fold {fold} are all of one kind, so no threshold can be "
                    "chosen on them: every other fold needs same and different pairs."
                )
            chosen = _best_threshold(scores[~test], same[~test])
        thresholds.append(chosen)
        accuracies.append(np.mean((scores[test] >= chosen) == same[test]))
    return VerificationResult(
        accuracy=float(np.mean(accuracies)),
        accuracy_std=float(np.std(accuracies)),
        threshold=float(np.mean(thresholds)),
        fold_accuracies=_frozen(np.array(accuracies, "float64")),
        fold_thresholds=_frozen(np.array(thresholds, "float64")),
        roc=_roc_curve(scores, same),
        scores=_frozen(scores.copy()),
        same=_frozen(same.copy()),
    )


def evaluate_pairs(
    model: keras.Model | Callable[[np.ndarray], object],
    pairs: PairList,
    flip: bool = False,
    batch_size: int = 64,
    image_size: int | tuple[int, int] | None = None,
    *,
    flip_mode: str = "sum",
    folds: int | ArrayLike | None = None,
    threshold: float | None = None,
) -> VerificationResult:
    """Verify a model on a list of image pairs. Each image is read and embedded once.

    Args:
        model: As for :func:`keras_hybrid.evaluation.embed`.
        pairs: A :class:`keras_hybrid.data.PairList`: names ``left`` and ``right``, bools ``same``,
            integers ``fold`` and ``read(name)``, which gives uint8 (height, width, 3). A model
            with a second input ``landmarks`` needs those of the list, too.
        flip: Whether to add the embedding of the mirrored image, as published figures mostly do.
        batch_size: Images per step.
        image_size: Side or (height, width) images are resized to (bilinear, antialiased), where
            they are not of that size already. By default the model's own input size; a model
            without one, or a plain callable, gets the images as they are.
        flip_mode: As for :func:`keras_hybrid.evaluation.embed`.
        folds: As :func:`verify`; by default the list's own. A list without folds (``fold`` 0
            throughout) has one: the threshold is chosen on the very pairs it is judged on, which
            flatters; give ``threshold``.
        threshold: As :func:`verify`.

    Returns:
        As :func:`verify`, with the model's true XNorm.

    Raises:
        ValueError: As :func:`verify`; or if the images differ in size and none was given; or if
            landmarks that the model takes are missing or cannot be those of their image.
        ImportError: If images have to be resized and Pillow is missing.
    """
    if len(pairs.left) == 0:
        raise ValueError("pairs is empty: nothing to verify.")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
    size = model_image_size(model) if image_size is None else _height_width(image_size)
    landmarks = None
    if model_takes_landmarks(model):
        landmarks = getattr(pairs, "landmarks", None)
        if landmarks is None:
            raise ValueError(
                f"Model {model.name!r} takes landmarks, and these pairs have none: "
                "keras_hybrid.data.read_pairs takes a table of them as `landmarks`, a command as "
                "--pairs-landmarks."
            )
    names = list(dict.fromkeys([*pairs.left, *pairs.right]))
    batch_size = min(batch_size, len(names))
    row = {name: index for index, name in enumerate(names)}
    batches = (
        _read_batch(pairs, names[start : start + batch_size], size, landmarks)
        for start in range(0, len(names), batch_size)
    )
    embeddings, norms = embed_batches(
        model, batches, batch_size=batch_size, flip=flip, flip_mode=flip_mode
    )
    result = verify(
        embeddings[[row[name] for name in pairs.left]],
        embeddings[[row[name] for name in pairs.right]],
        pairs.same,
        pairs.fold if folds is None else folds,
        threshold=threshold,
    )
    return replace(result, xnorm=float(norms.mean()))


def _read_batch(
    pairs: PairList,
    names: list[str],
    size: tuple[int, int] | None,
    landmarks: Mapping[str, np.ndarray] | None,
) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
    """Read images by name, and resize them together with their landmarks."""
    images, points = [], []
    for name in names:
        stored = pairs.read(name)
        images.append(stored if size is None else resize_image(stored, size))
        if landmarks is not None:
            problem = landmark_problem(landmarks[name], stored.shape[:2])
            if problem:
                raise ValueError(f"{name}: {problem}.")
            zoom = np.divide(images[-1].shape[1::-1], stored.shape[1::-1])
            points.append(resize_landmarks(landmarks[name], zoom))
    return _stack(images) if landmarks is None else (_stack(images), np.stack(points))


def _directions(name: str, embeddings: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Return embeddings as float64 unit rows, and the lengths they had."""
    rows = np.asarray(embeddings)
    if rows.ndim != 2:
        raise ValueError(f"{name} must have shape (pairs, dim), got {rows.shape}.")
    if rows.size == 0:
        raise ValueError(f"{name} is empty: its shape is {rows.shape}.")
    rows = rows.astype("float64")
    broken = ~np.all(np.isfinite(rows), axis=1)
    if broken.any():
        raise ValueError(
            f"{name} has NaN or infinite values in {broken.sum()} of {len(rows)} rows, "
            f"first in row {int(np.argmax(broken))}."
        )
    # Scaling by the largest entry first keeps the squares from over- and underflowing.
    largest = np.abs(rows).max(axis=1, keepdims=True)
    if not largest.all():
        raise ValueError(
            f"{name} has {int(np.sum(largest == 0))} of {len(rows)} rows that are all zeros, "
            f"first row {int(np.argmin(largest))}: they have no direction to compare."
        )
    scaled = rows / largest
    lengths = np.linalg.norm(scaled, axis=1, keepdims=True)
    return scaled / lengths, (lengths * largest)[:, 0]


def _row_cosines(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    if left.shape != right.shape:
        raise ValueError(
            "embeddings_a and embeddings_b must have the same shape (pairs, dim), got "
            f"{left.shape} and {right.shape}."
        )
    return np.clip(np.einsum("pd,pd->p", left, right), -1.0, 1.0)


def _check_scores(scores: ArrayLike, same: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Return scores as float64 and same as bool, both (pairs,), or say what is wrong with them."""
    scores, same = np.asarray(scores), np.asarray(same)
    if scores.ndim != 1 or same.shape != scores.shape:
        raise ValueError(
            "same must have one entry per pair, shape (pairs,): got scores of shape "
            f"{scores.shape} and same of shape {same.shape}."
        )
    if scores.size == 0:
        raise ValueError("There are no pairs to verify.")
    scores = scores.astype("float64")
    if not np.all(np.isfinite(scores)):
        raise ValueError(f"{int(np.sum(~np.isfinite(scores)))} scores are NaN or infinite.")
    if same.dtype != bool:
        if not np.isin(same, (0, 1)).all():
            raise ValueError("same must hold booleans, or 0 and 1.")
        same = same.astype(bool)
    if same.all() or not same.any():
        kind = "same" if same.all() else "different"
        raise ValueError(f"All {len(same)} pairs are {kind}-person pairs: both kinds are needed.")
    return scores, same


def _fold_of_pair(folds: int | ArrayLike, same: np.ndarray) -> np.ndarray:
    """Return each pair's fold; see ``verify`` for the rule."""
    given = np.asarray(folds)
    if not np.issubdtype(given.dtype, np.integer):
        raise ValueError(f"folds must be an integer or an array of integers, got {folds!r}.")
    if given.ndim:
        if given.shape != same.shape:
            raise ValueError(
                f"folds must have one id per pair, shape {same.shape}, got {given.shape}."
            )
        return given
    count = int(given)
    fewest = int(min(same.sum(), (~same).sum()))
    if not 1 <= count <= fewest:
        raise ValueError(
            f"folds must be between 1 and {fewest}, the number of pairs of the rarer kind, so "
            f"that every fold holds both; got {count}."
        )
    fold_of_pair = np.empty(len(same), "int64")
    for kind in (True, False):
        for fold, members in enumerate(np.array_split(np.flatnonzero(same == kind), count)):
            fold_of_pair[members] = fold
    return fold_of_pair


def _best_threshold(scores: np.ndarray, same: np.ndarray) -> float:
    values, index = np.unique(scores, return_inverse=True)
    same_at = np.bincount(index, weights=same, minlength=len(values))
    different_at = np.bincount(index, weights=~same, minlength=len(values))
    # Cutting below values[i] accepts values[i:]; the last cut accepts nothing.
    accepted_same = same.sum() - np.concatenate([[0], np.cumsum(same_at)])
    rejected_different = np.concatenate([[0], np.cumsum(different_at)])
    correct = accepted_same + rejected_different
    # Neighbouring floats have no number between them: then the upper score itself is the cut.
    middles = values[:-1] + np.diff(values) / 2
    middles = np.where(middles > values[:-1], middles, values[1:])
    cuts = np.concatenate([values[:1], middles, [np.nextafter(values[-1], np.inf)]])
    gaps = np.concatenate([[0.0], np.diff(values), [0.0]])
    best = np.flatnonzero(correct == correct.max())
    return float(cuts[best[np.argmax(gaps[best])]])


def _roc_curve(scores: np.ndarray, same: np.ndarray) -> RocCurve:
    values, index = np.unique(-scores, return_inverse=True)  # highest score first
    num_same = int(same.sum())
    num_different = len(same) - num_same
    true_accepts = np.cumsum(np.bincount(index, weights=same, minlength=len(values)))
    false_accepts = np.cumsum(np.bincount(index, weights=~same, minlength=len(values)))
    return RocCurve(
        far=_frozen(np.concatenate([[0.0], false_accepts / num_different])),
        tar=_frozen(np.concatenate([[0.0], true_accepts / num_same])),
        thresholds=_frozen(np.concatenate([[np.inf], -values])),
        num_same=num_same,
        num_different=num_different,
    )


def _frozen(array: np.ndarray) -> np.ndarray:
    array.setflags(write=False)
    return array


def _height_width(image_size: int | tuple[int, int]) -> tuple[int, int]:
    if isinstance(image_size, int | np.integer):
        return int(image_size), int(image_size)
    height, width = image_size
    return int(height), int(width)


def _stack(images: list[np.ndarray]) -> np.ndarray:
    shapes = {image.shape for image in images}
    if len(shapes) > 1:
        raise ValueError(
            f"The images differ in shape ({sorted(shapes)}): give image_size to resize them."
        )
    return np.stack(images)
