import json
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_hybrid import evaluation

pytestmark = pytest.mark.any_backend


@st.composite
def scored_labels(draw):
    classes = draw(st.integers(2, 7))
    count = draw(st.integers(1, 30))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, draw(st.integers(1, classes)), count)  # often classes are missing
    scores = (
        rng.integers(0, 4, (count, classes)) / 4
        if draw(st.booleans())
        else rng.normal(size=(count, classes))
    )
    return labels, scores


@settings(deadline=None, max_examples=60)
@given(scored_labels())
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_averages_and_matrix_agree_with_scikit_learn(labels_and_scores):
    metrics = pytest.importorskip("sklearn.metrics")
    labels, scores = labels_and_scores
    classes = scores.shape[1]
    result = evaluation.classification_report(labels, scores)
    predicted = scores.argmax(axis=1)
    np.testing.assert_array_equal(
        result.confusion_matrix,
        metrics.confusion_matrix(labels, predicted, labels=range(classes)),
    )
    assert result.top1 == result.top_k[1] == pytest.approx(np.mean(predicted == labels))
    for average in ("macro", "weighted"):
        expected = metrics.precision_recall_fscore_support(
            labels, predicted, labels=np.unique(labels), average=average, zero_division=0
        )
        for name, value in zip(("precision", "recall", "f1"), expected, strict=False):
            assert getattr(result, f"{name}_{average}") == pytest.approx(value)
    assert sum(row.support for row in result.per_class) == len(labels)


@settings(deadline=None, max_examples=60)
@given(scored_labels(), st.integers(1, 8))
def test_top_k_is_the_share_found_among_the_k_first_of_a_stable_sort(labels_and_scores, k):
    labels, scores = labels_and_scores
    first = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    result = evaluation.classification_report(labels, scores, top_k=(k,))
    assert result.top_k == {k: pytest.approx(np.mean((first == labels[:, None]).any(axis=1)))}


def test_hand_computed_case():
    labels = [0, 0, 0, 1, 1, 2]
    scores = np.eye(4)[[0, 0, 1, 1, 3, 1]]
    result = evaluation.classification_report(labels, scores, ["cat", "dog", "emu", "fox"])
    assert result.top1 == pytest.approx(3 / 6)
    cat, dog, emu, fox = result.per_class
    assert (cat.precision, cat.recall, cat.support) == (1, pytest.approx(2 / 3), 3)
    assert cat.f1 == pytest.approx(0.8)
    assert (dog.precision, dog.recall) == (pytest.approx(1 / 3), 0.5)
    assert (emu.precision, emu.recall, emu.f1, emu.support) == (0, 0, 0, 1)
    assert (fox.precision, fox.recall, fox.f1, fox.support) == (0, None, None, 0)
    assert result.precision_macro == pytest.approx((1 + 1 / 3 + 0) / 3)
    assert result.recall_weighted == pytest.approx(result.top1)
    mistakes = result.most_confused(2)
    assert [(mistake.true, mistake.predicted) for mistake in mistakes] == [
        ("cat", "dog"),
        ("dog", "fox"),
    ]
    assert mistakes[1].share == 0.5
    assert len(result.most_confused(100)) == 3
    assert result.most_confused(0) == []


@settings(deadline=None, max_examples=60)
@given(scored_labels(), st.integers(0, 12))
def test_confusions_are_those_of_a_matrix_counted_image_by_image(labels_and_scores, n):
    labels, scores = labels_and_scores
    classes = scores.shape[1]
    expected = np.zeros((classes, classes), "int64")
    for true, predicted in zip(labels, scores.argmax(axis=1), strict=True):
        expected[true, predicted] += 1
    result = evaluation.classification_report(labels, scores)
    matrix = result.confusion_matrix
    assert matrix.dtype == np.int64 and not matrix.flags.writeable
    np.testing.assert_array_equal(matrix, expected)
    assert result.confusion_matrix is matrix
    mistakes = sorted(
        (-expected[i, j], i, j) for i, j in np.argwhere(expected) if i != j and expected[i, j]
    )
    found = [(m.true, m.predicted, m.count, m.share) for m in result.most_confused(n)]
    assert found == [
        (str(i), str(j), -count, -count / expected[i].sum()) for count, i, j in mistakes[:n]
    ]


def test_a_report_of_very_many_classes_takes_little_memory():
    """A matrix of 100,000 x 100,000 counts would take 75 GiB."""
    classes, images = 100_000, 200
    random = np.random.default_rng(0)
    labels = random.integers(0, classes, images)
    scores = random.random((images, classes), dtype="float32")
    scores[np.arange(50), labels[:50]] = 2
    scores[50:53, 7] = 2
    labels[50:53] = 99_999
    tracemalloc.start()
    try:
        result = evaluation.classification_report(labels, scores)
        mistakes = result.most_confused(1)
        facts, text = result.to_dict(), str(result)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 100e6, f"{peak / 1e6:.0f} MB beside the scores"
    assert result.top1 == result.top_k[1] == pytest.approx(0.25, abs=0.02)
    assert [(m.true, m.predicted, m.count) for m in mistakes] == [("99999", "7", 3)]
    assert (facts["images"], facts["classes"]) == (images, classes)
    assert "200 of 100,000 classes" in text


def test_a_class_neither_true_nor_predicted_has_no_figures():
    result = evaluation.classification_report([0, 1], np.eye(3)[:2])
    assert result.per_class[2].precision is result.per_class[2].recall is None
    assert result.f1_macro == 1


def test_tied_scores_count_for_the_lowest_class_only():
    result = evaluation.classification_report([0, 1, 2, 3], np.zeros((4, 4)), top_k=(1, 2, 5))
    assert result.top_k == {1: 0.25, 2: 0.5, 5: 1.0}


def test_one_hot_and_column_labels_are_understood():
    scores = np.random.default_rng(0).normal(size=(6, 3))
    labels = np.array([0, 1, 2, 0, 1, 2])
    expected = evaluation.classification_report(labels, scores).to_dict()
    assert evaluation.classification_report(np.eye(3)[labels], scores).to_dict() == expected
    assert evaluation.classification_report(labels[:, None], scores).to_dict() == expected


def test_report_is_readable_and_ready_for_json():
    result = evaluation.classification_report([0, 1, 1], np.eye(2)[[0, 1, 0]])
    facts = json.loads(json.dumps(result.to_dict()))
    assert facts["top5"] == 1
    assert facts["images"] == 3
    assert "66.67 %" in str(result)
    with pytest.raises(ValueError, match="without 5"):
        _ = evaluation.classification_report([0], [[1.0, 0.0]], top_k=(1,)).top5


@pytest.mark.parametrize(
    ("labels", "scores", "options", "message"),
    [
        ([], np.zeros((0, 3)), {}, "not empty"),
        ([0], np.zeros(3), {}, "shape"),
        ([0, 1], np.zeros((1, 3)), {}, "y_true must hold"),
        ([3], np.zeros((1, 3)), {}, r"\[0, 3\)"),
        ([-1], np.zeros((1, 3)), {}, r"\[0, 3\)"),
        ([0.5], np.zeros((1, 3)), {}, "integers"),
        ([0], np.full((1, 3), np.nan), {}, "NaN"),
        ([0], np.zeros((1, 3)), {"class_names": ["a"]}, "3 names"),
        ([0], np.zeros((1, 3)), {"top_k": (0,)}, "top_k"),
    ],
)
def test_bad_arguments_are_named(labels, scores, options, message):
    with pytest.raises(ValueError, match=message):
        evaluation.classification_report(labels, scores, **options)


def brute_force_rank(gallery, gallery_labels, probe, person):
    best = {}
    for row, label in zip(gallery, gallery_labels, strict=True):
        score = probe @ row / np.linalg.norm(probe) / np.linalg.norm(row)
        best[label] = max(best.get(label, -2), score)
    return 1 + sum(score > best[person] for label, score in best.items() if label != person)


def test_identification_agrees_with_brute_force():
    rng = np.random.default_rng(0)
    people = np.array(["ann", "bob", "cat", "dan", "eve", "fay", "gus"])
    gallery_labels = np.concatenate([people, rng.choice(people, 8)])
    probe_labels = rng.choice(people, 20)
    gallery, probes = rng.normal(size=(15, 4)), rng.normal(size=(20, 4))
    result = evaluation.identify(gallery, gallery_labels, probes, probe_labels, ranks=(1, 3, 9))
    expected = [
        brute_force_rank(gallery, gallery_labels, probe, person)
        for probe, person in zip(probes, probe_labels, strict=True)
    ]
    np.testing.assert_array_equal(result.probe_ranks, expected)
    assert result.rates == {
        1: pytest.approx(np.mean(np.array(expected) <= 1)),
        3: pytest.approx(result.rate(3)),
        9: 1.0,
    }
    assert "rank-9 100.00 %" in str(result)
    assert json.loads(json.dumps(result.to_dict()))["probes"] == 20


def test_identification_in_a_large_gallery_takes_little_memory():
    """All scores of 1,024 probes at once are 330 MB, twice."""
    people = np.arange(40_000)
    gallery = np.random.default_rng(0).normal(size=(len(people), 4))
    tracemalloc.start()
    result = evaluation.identify(gallery, people, gallery[:1024] * 2, people[:1024])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert result.rates[1] == 1
    assert peak < 450e6, f"{peak / 1e6:.0f} MB"


def test_collapsed_embeddings_identify_nobody():
    same_vector = np.tile([0.3, 0.1, 0.7], (9, 1))
    result = evaluation.identify(same_vector, np.arange(9), same_vector, np.arange(9))
    assert result.rates == {1: 0.0, 5: 0.0}


def test_identification_is_closed_set():
    with pytest.raises(ValueError, match=r"1 people .* 7"):
        evaluation.identify(np.eye(2), [0, 1], np.eye(2), [0, 7])


@pytest.mark.parametrize(
    ("gallery", "probes", "ranks", "message"),
    [
        (np.eye(2)[:1], np.eye(2), (1,), "gallery_labels"),
        (np.eye(2), np.eye(3)[:2], (1,), "same dim"),
        (np.eye(2), np.zeros((2, 2)), (1,), "probe_embeddings has rows"),
        (np.full((2, 2), np.nan), np.eye(2), (1,), "gallery_embeddings has rows"),
        (np.eye(2), np.eye(2), (0,), "ranks"),
    ],
)
def test_bad_identification_arguments_are_named(gallery, probes, ranks, message):
    with pytest.raises(ValueError, match=message):
        evaluation.identify(gallery, [0, 1], probes, [0, 1], ranks=ranks)
