"""Who resembles whom: the most confused identities, and embeddings laid out on a plane."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_hybrid.evaluation.classification import unit_embeddings

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = ["ConfusedPair", "Projection", "most_confused_pairs", "project_embeddings"]

SIMILARITIES = ("max", "mean")
METHODS = ("pca", "tsne")
_ROWS_AT_ONCE = 2048


@dataclass(frozen=True)
class ConfusedPair:
    """Two identities that an embedder takes for alike.

    Attributes:
        first: Label of the one that sorts first.
        second: Label of the other.
        similarity: Of the identities, in [-1, 1]: the largest or the mean cosine over all pairs of
            an image of ``first`` and one of ``second``.
        first_image: Row of the image of ``first`` in the pair of images with the largest cosine.
        second_image: Row of the image of ``second`` in that pair.
    """

    first: Any
    second: Any
    similarity: float
    first_image: int
    second_image: int


@dataclass(frozen=True, eq=False)
class Projection:
    """Embeddings on a plane (or a line, or in space).

    Attributes:
        points: float32 (n, dimensions).
        method: ``"pca"`` or ``"tsne"``.
        explained_variance: For PCA each dimension's share of the variance, in [0, 1]; else None.
    """

    points: np.ndarray
    method: str
    explained_variance: tuple[float, ...] | None = None


def most_confused_pairs(
    embeddings: ArrayLike, labels: ArrayLike, n: int = 10, similarity: str = "max"
) -> list[ConfusedPair]:
    """Find the pairs of different identities whose embeddings have the highest cosine.

    Every image is compared with every other, in blocks: 10⁵ images of width 512 are 5 · 10⁹
    cosines, of which 4 · 10⁶ are in memory at a time.

    Args:
        embeddings: Floats (images, dim), normalised or not.
        labels: The identity on each image, (images,): integers or strings.
        n: How many pairs, at least 1.
        similarity: How two identities' images become one number. ``"max"``: the largest cosine,
            which decides about a false accept, and which one bad label can cause. ``"mean"``: the
            mean over all pairs of images, which tells identities that are alike throughout.

    Returns:
        The pairs, most similar first, then in the order of their labels; fewer than ``n`` if the
        identities have no more. Images of one identity are never a pair.

    Raises:
        ValueError: If shapes disagree, there are no embeddings, one is not finite or all zeros,
            or ``n`` or ``similarity`` has no meaning.
    """
    if similarity not in SIMILARITIES:
        raise ValueError(f"similarity must be one of {SIMILARITIES}, got {similarity!r}.")
    if not isinstance(n, int | np.integer) or isinstance(n, bool) or n < 1:
        raise ValueError(f"n must be a positive integer, got {n!r}.")
    rows = unit_embeddings(embeddings, labels).astype("float32")
    people, person = np.unique(np.asarray(labels), return_inverse=True)
    order = np.argsort(person, kind="stable")
    rows, person = rows[order], person[order]
    begins = np.searchsorted(person, np.arange(len(people) + 1))
    if similarity == "max":
        best = _highest(rows, person, n)
    else:
        # A mean of products is a product of means.
        means = np.add.reduceat(rows, begins[:-1], axis=0) / np.diff(begins)[:, np.newaxis]
        best = _highest(means, np.arange(len(people)), n)
    people = people.tolist()  # plain Python labels, whatever the array's dtype
    pairs = []
    for first, second, score in best:
        images = [slice(begins[who], begins[who + 1]) for who in (first, second)]
        row, column = _closest(rows[images[0]], rows[images[1]])
        pairs.append(
            ConfusedPair(
                first=people[first],
                second=people[second],
                similarity=float(np.clip(score, -1, 1)),
                first_image=int(order[begins[first] + row]),
                second_image=int(order[begins[second] + column]),
            )
        )
    return pairs


def project_embeddings(
    embeddings: ArrayLike,
    method: str = "pca",
    dimensions: int = 2,
    seed: int = 0,
    perplexity: float = 30.0,
) -> Projection:
    """Lay embeddings out on a plane, so that what is near in angle is near.

    Each embedding is divided by its length first. The squared distance of two unit vectors is
    2 − 2 cos, so distances order pairs as cosines do.

    Args:
        embeddings: Floats (n, dim), normalised or not.
        method: ``"pca"``: the linear view with the largest variance; distances in it are never
            larger than the true ones. ``"tsne"`` (van der Maaten & Hinton 2008): neighbours stay
            neighbours; the sizes of clusters and the distances between them mean nothing.
        dimensions: Of the result: 1, 2 or 3.
        seed: Of the random numbers; the same seed gives the same points.
        perplexity: Of t-SNE, about the number of neighbours a point cares for. At most a third of
            the points can be, and of few points no more are taken.

    Returns:
        The points, in the order of the embeddings.

    Raises:
        ValueError: If there are fewer than 3 embeddings, they are not (n, dim), one is not finite
            or all zeros, or an argument has no meaning.
        ImportError: If scikit-learn is missing.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {METHODS}, got {method!r}.")
    if dimensions not in (1, 2, 3):
        raise ValueError(f"dimensions must be 1, 2 or 3, got {dimensions!r}.")
    rows = unit_embeddings(embeddings, np.zeros(np.shape(embeddings)[:1]))
    if len(rows) < 3 or rows.shape[1] < dimensions:
        raise ValueError(
            f"A projection needs at least 3 embeddings of at least {dimensions} numbers, got the "
            f"shape {rows.shape}."
        )
    try:
        from sklearn.decomposition import PCA
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise ImportError(
            "Projections need scikit-learn: pip install 'keras-hybrid[face]'."
        ) from error
    if method == "pca":
        pca = PCA(dimensions, svd_solver="full", random_state=seed)
        points = pca.fit_transform(rows)
        explained = tuple(float(share) for share in np.nan_to_num(pca.explained_variance_ratio_))
        return Projection(points.astype("float32"), method, explained)
    if not perplexity > 0:
        raise ValueError(f"perplexity must be positive, got {perplexity!r}.")
    tsne = TSNE(
        dimensions,
        perplexity=min(perplexity, (len(rows) - 1) / 3),
        init="pca",
        random_state=seed,
    )
    return Projection(tsne.fit_transform(rows).astype("float32"), method)


def _highest(rows: np.ndarray, groups: np.ndarray, n: int) -> list[tuple[int, int, float]]:
    """Return the ``n`` pairs of groups with the largest product of two rows, largest first.

    Args:
        rows: float32 (rows, dim).
        groups: The group of each row, ascending.
        n: How many.
    """
    best: dict[tuple[int, int], float] = {}
    starts = range(0, len(rows), _ROWS_AT_ONCE)
    for above in starts:
        for beside in range(above, len(rows), _ROWS_AT_ONCE):
            vertical, horizontal = (slice(at, at + _ROWS_AT_ONCE) for at in (above, beside))
            products = rows[vertical] @ rows[horizontal].T
            firsts, at_first = np.unique(groups[vertical], return_index=True)
            seconds, at_second = np.unique(groups[horizontal], return_index=True)
            scores = np.maximum.reduceat(products, at_first, axis=0)
            scores = np.maximum.reduceat(scores, at_second, axis=1)
            scores[firsts[:, np.newaxis] >= seconds] = -np.inf
            # A pair that n others of its block outrank is not among the n best of all, nor is one
            # below the n-th so far.
            floor = min(best.values()) if len(best) == n else -np.inf
            flat = np.flatnonzero((scores >= floor) & np.isfinite(scores))
            values = scores.ravel()[flat]
            if len(flat) > n:
                kept = values >= np.partition(values, -n)[-n]
                flat, values = flat[kept], values[kept]
            for place in flat[np.argsort(-values, kind="stable")[:n]]:
                i, j = divmod(int(place), len(seconds))
                pair = int(firsts[i]), int(seconds[j])
                best[pair] = max(best.get(pair, -np.inf), float(scores[i, j]))
            best = dict(sorted(best.items(), key=lambda item: (-item[1], item[0]))[:n])
    return [(*pair, score) for pair, score in best.items()]


def _closest(left: np.ndarray, right: np.ndarray) -> tuple[int, int]:
    """Return the rows of ``left`` and of ``right`` with the largest product."""
    found = (-np.inf, 0, 0)
    for above in range(0, len(left), _ROWS_AT_ONCE):
        for beside in range(0, len(right), _ROWS_AT_ONCE):
            products = (
                left[above : above + _ROWS_AT_ONCE] @ right[beside : beside + _ROWS_AT_ONCE].T
            )
            row, column = np.unravel_index(products.argmax(), products.shape)
            if products[row, column] > found[0]:
                found = (float(products[row, column]), above + int(row), beside + int(column))
    return found[1:]
