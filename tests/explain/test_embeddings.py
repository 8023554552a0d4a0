"""The most confused identities, and projections."""

import itertools
import sys

import keras
import numpy as np
import pytest

import keras_hybrid as kh
from keras_hybrid.explain import embeddings as module

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "torch", reason="no model takes part: tested on PyTorch"
)


def crowd(people=12, images=5, dim=8, seed=0):
    """Embeddings of different lengths round a centre for each person, in random order."""
    generator = np.random.default_rng(seed)
    labels = generator.permutation(np.repeat(np.arange(people), images) * 10)
    centres = generator.normal(size=(people, dim))
    rows = centres[labels // 10] + generator.normal(0, 0.4, (len(labels), dim))
    return rows * generator.uniform(0.1, 9, (len(labels), 1)), labels


def by_brute_force(rows, labels, similarity):
    """All pairs of identities with their similarity and closest images, most similar first."""
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    found = []
    for first, second in itertools.combinations(np.unique(labels).tolist(), 2):
        cosines = {
            (i, j): float(rows[i] @ rows[j])
            for i in np.flatnonzero(labels == first)
            for j in np.flatnonzero(labels == second)
        }
        values = list(cosines.values())
        score = max(values) if similarity == "max" else sum(values) / len(values)
        found.append((score, first, second, *max(cosines, key=cosines.get)))
    return sorted(found, reverse=True)


@pytest.mark.parametrize("similarity", ["max", "mean"])
@pytest.mark.parametrize("rows_at_once", [4, 7, 1000])
def test_most_confused_pairs_are_those_of_brute_force(monkeypatch, similarity, rows_at_once):
    monkeypatch.setattr(module, "_ROWS_AT_ONCE", rows_at_once)
    rows, labels = crowd()
    pairs = kh.explain.most_confused_pairs(rows, labels, 9, similarity=similarity)
    expected = by_brute_force(rows, labels, similarity)[:9]
    assert [p.similarity for p in pairs] == pytest.approx([e[0] for e in expected], abs=1e-5)
    assert [(p.first, p.second, p.first_image, p.second_image) for p in pairs] == [
        e[1:] for e in expected
    ]


def test_all_pairs_come_if_more_are_asked_for_and_names_may_be_strings():
    rows, labels = crowd(4)
    names = np.array(["d", "c", "b", "a"])[labels // 10]
    pairs = kh.explain.most_confused_pairs(rows, names, 100)
    assert len(pairs) == 6
    assert all(p.first < p.second for p in pairs)
    for pair in pairs:
        assert (names[pair.first_image], names[pair.second_image]) == (pair.first, pair.second)


def test_labels_may_be_objects():
    rows, _ = crowd(3, images=1)
    names = ["bob", "ann", "cat"]
    pairs = kh.explain.most_confused_pairs(rows, np.array(names, dtype=object))
    assert pairs == kh.explain.most_confused_pairs(rows, names)
    assert {type(name) for pair in pairs for name in (pair.first, pair.second)} == {str}


@pytest.mark.parametrize("rows_at_once", [3, 100])
def test_ties_are_in_the_order_of_the_labels(monkeypatch, rows_at_once):
    monkeypatch.setattr(module, "_ROWS_AT_ONCE", rows_at_once)
    alike = np.ones((10, 4))
    pairs = kh.explain.most_confused_pairs(alike, np.arange(10) // 2, 5)
    assert [(p.first, p.second) for p in pairs] == [(0, 1), (0, 2), (0, 3), (0, 4), (1, 2)]
    assert all(p.similarity <= 1 for p in pairs)


def test_one_person_is_no_pair():
    assert kh.explain.most_confused_pairs(np.eye(3), [7, 7, 7]) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": [0, 1]}, r"embeddings must have shape \(n, dim\).*labels \(n,\)"),
        ({"embeddings": np.zeros((3, 2))}, "embeddings has rows with NaN"),
        ({"n": 0}, "n must be a positive integer, got 0"),
        ({"similarity": "median"}, r"similarity must be one of \('max', 'mean'\), got 'median'"),
    ],
)
def test_wrong_arguments_of_pairs_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        kh.explain.most_confused_pairs(
            **{"embeddings": np.eye(3), "labels": [0, 1, 2], **arguments}
        )


# projections


@pytest.fixture
def _needs_scikit_learn():
    pytest.importorskip("sklearn")


@pytest.mark.usefixtures("_needs_scikit_learn")
def test_pca_is_the_singular_value_decomposition_of_the_centred_unit_vectors():
    rows, _ = crowd()
    result = kh.explain.project_embeddings(rows)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    left, values, _ = np.linalg.svd(unit - unit.mean(axis=0), full_matrices=False)
    assert result.points.shape == (60, 2) and result.points.dtype == np.float32
    np.testing.assert_allclose(np.abs(result.points), np.abs(left * values)[:, :2], atol=1e-5)
    shares = values**2 / (values**2).sum()
    assert result.explained_variance == pytest.approx(shares[:2], abs=1e-6)


@pytest.mark.usefixtures("_needs_scikit_learn")
@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_projections_depend_on_the_seed_and_the_directions_only(method):
    rows, _ = crowd()
    first = kh.explain.project_embeddings(rows, method, seed=3)
    again = kh.explain.project_embeddings(rows, method, seed=3)
    np.testing.assert_array_equal(first.points, again.points)
    lengths = 2.0 ** np.arange(60).reshape(60, 1) / 2**30  # exact in floating point
    stretched = kh.explain.project_embeddings(rows * lengths, method, seed=3)
    np.testing.assert_allclose(first.points, stretched.points, atol=1e-4)
    assert first.method == method


@pytest.mark.usefixtures("_needs_scikit_learn")
def test_tsne_keeps_people_together_and_takes_few_points():
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 10)
    rows = np.eye(16)[labels] + generator.normal(0, 0.02, (40, 16))
    result = kh.explain.project_embeddings(rows, "tsne")
    assert result.explained_variance is None
    points = result.points
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1)
    np.fill_diagonal(distances, np.inf)
    np.testing.assert_array_equal(labels[distances.argmin(axis=1)], labels)
    assert kh.explain.project_embeddings(rows[:4], "tsne", 1).points.shape == (4, 1)


@pytest.mark.usefixtures("_needs_scikit_learn")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "umap"}, r"method must be one of \('pca', 'tsne'\), got 'umap'"),
        ({"dimensions": 4}, "dimensions must be 1, 2 or 3, got 4"),
        ({"embeddings": np.eye(2)}, r"at least 3 embeddings.*\(2, 2\)"),
        ({"embeddings": np.ones(3)}, r"embeddings must have shape \(n, dim\)"),
        ({"method": "tsne", "perplexity": 0}, "perplexity must be positive"),
    ],
)
def test_wrong_arguments_of_projections_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        kh.explain.project_embeddings(**{"embeddings": np.eye(3), **arguments})


def test_missing_scikit_learn_names_the_extra(monkeypatch):
    for name in ("sklearn.decomposition", "sklearn.manifold"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"scikit-learn.*keras-hybrid\[face\]"):
        kh.explain.project_embeddings(np.eye(3))
