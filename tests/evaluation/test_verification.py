import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_hybrid import evaluation

pytestmark = pytest.mark.any_backend


@st.composite
def scored_pairs(draw, min_kind=1, max_pairs=40):
    """Scores with many ties (a few levels) or few (any float), both kinds of pair present."""
    num_same = draw(st.integers(min_kind, max_pairs // 2))
    num_different = draw(st.integers(min_kind, max_pairs // 2))
    count = num_same + num_different
    levels = st.integers(-3, 3).map(lambda level: level / 3)
    floats = st.floats(-1, 1, allow_nan=False)
    element = draw(st.sampled_from([levels, floats]))
    scores = np.array(draw(st.lists(element, min_size=count, max_size=count)))
    same = np.array(draw(st.permutations([True] * num_same + [False] * num_different)))
    return scores, same


def exhaustive_best_accuracy(scores, same):
    cuts = [-np.inf, *scores, np.inf]
    return max(np.mean((scores >= cut) == same) for cut in cuts)


def lfw_like(rng, folds=10, each=30, distance=0.3):
    same = np.tile(np.repeat([True, False], each), folds)
    return rng.normal(same * distance, 0.15).clip(-1, 1), same


@given(scored_pairs())
def test_best_threshold_is_as_accurate_as_any_cut(pairs):
    scores, same = pairs
    threshold = evaluation.best_threshold(scores, same)
    accuracy = np.mean((scores >= threshold) == same)
    assert accuracy == pytest.approx(exhaustive_best_accuracy(scores, same))


def test_best_threshold_is_the_middle_of_the_widest_gap():
    assert evaluation.best_threshold([0.1, 0.2, 0.8], [False, False, True]) == pytest.approx(0.5)
    # Both cuts misjudge one pair; the gap 0.3–0.9 is wider than 0.1–0.2.
    threshold = evaluation.best_threshold([0.1, 0.2, 0.3, 0.9], [False, True, False, True])
    assert threshold == pytest.approx(0.6)


def test_best_threshold_separates_neighbouring_floats():
    low = 0.5
    high = np.nextafter(low, 1)
    threshold = evaluation.best_threshold([low, high], [False, True])
    assert low < threshold <= high


@given(scored_pairs())
def test_auc_is_the_mann_whitney_statistic(pairs):
    scores, same = pairs
    differences = scores[same][:, None] - scores[~same][None, :]
    expected = np.mean((differences > 0) + 0.5 * (differences == 0))
    assert evaluation.roc_curve(scores, same).auc == pytest.approx(expected)


@given(scored_pairs())
def test_roc_agrees_with_scikit_learn(pairs):
    metrics = pytest.importorskip("sklearn.metrics")
    scores, same = pairs
    far, tar, thresholds = metrics.roc_curve(same, scores, drop_intermediate=False)
    roc = evaluation.roc_curve(scores, same)
    np.testing.assert_allclose(roc.far, far)
    np.testing.assert_allclose(roc.tar, tar)
    np.testing.assert_array_equal(roc.thresholds, thresholds)
    assert roc.auc == pytest.approx(metrics.roc_auc_score(same, scores))


@given(scored_pairs(), st.floats(0, 1))
def test_tar_at_far_never_accepts_a_pair_too_many_and_no_cut_does_better(pairs, far):
    scores, same = pairs
    roc = evaluation.roc_curve(scores, same)
    tar = roc.tar_at(far)
    allowed = [
        np.mean(scores[same] >= cut)
        for cut in [*scores, np.inf]
        if np.mean(scores[~same] >= cut) <= far
    ]
    assert tar == pytest.approx(max(allowed))


@given(scored_pairs())
def test_eer_lies_on_the_roc_where_both_errors_agree(pairs):
    scores, same = pairs
    roc = evaluation.roc_curve(scores, same)
    eer = roc.eer
    assert 0 <= eer <= 1
    # The polygon may be vertical at the EER: then it lies between the two ends.
    at = np.isclose(roc.far, eer, atol=1e-12)
    tars = roc.tar[at] if at.any() else np.interp([eer], roc.far, roc.tar)
    assert tars.min() - 1e-9 <= 1 - eer <= tars.max() + 1e-9


@given(scored_pairs())
def test_negating_scores_mirrors_auc_and_eer(pairs):
    scores, same = pairs
    roc, mirrored = evaluation.roc_curve(scores, same), evaluation.roc_curve(-scores, same)
    assert roc.auc == pytest.approx(1 - mirrored.auc)
    assert roc.eer == pytest.approx(1 - mirrored.eer)


@settings(deadline=None)
@given(scored_pairs(min_kind=4), st.integers(2, 4), st.randoms(use_true_random=False))
def test_result_does_not_depend_on_the_order_of_pairs_within_folds(pairs, count, random):
    scores, same = pairs
    folds = np.empty(len(same), int)
    for kind in (True, False):
        members = np.flatnonzero(same == kind)
        folds[members] = np.arange(len(members)) % count
    order = np.array(random.sample(range(len(same)), len(same)))
    result = evaluation.verify_scores(scores, same, folds)
    shuffled = evaluation.verify_scores(scores[order], same[order], folds[order])
    np.testing.assert_allclose(result.fold_accuracies, shuffled.fold_accuracies)
    np.testing.assert_allclose(result.fold_thresholds, shuffled.fold_thresholds)
    assert (result.auc, result.eer) == pytest.approx((shuffled.auc, shuffled.eer))


@settings(deadline=None)
@given(scored_pairs(min_kind=4), st.integers(2, 4))
def test_each_fold_is_judged_at_the_best_threshold_of_the_others(pairs, count):
    scores, same = pairs
    result = evaluation.verify_scores(scores, same, count)
    # An independent statement of the folds: cut each kind, in order, into equal runs.
    parts = zip(
        np.array_split(np.flatnonzero(same), count),
        np.array_split(np.flatnonzero(~same), count),
        strict=True,
    )
    for index, (same_part, different_part) in enumerate(parts):
        test = np.concatenate([same_part, different_part])
        train = np.setdiff1d(np.arange(len(same)), test)
        threshold = result.fold_thresholds[index]
        trained = np.mean((scores[train] >= threshold) == same[train])
        assert trained == pytest.approx(exhaustive_best_accuracy(scores[train], same[train]))
        tested = np.mean((scores[test] >= threshold) == same[test])
        assert result.fold_accuracies[index] == pytest.approx(tested)
    assert result.accuracy == pytest.approx(np.mean(result.fold_accuracies))
    assert result.accuracy_std == pytest.approx(np.std(result.fold_accuracies, ddof=0))


def test_ten_folds_of_an_lfw_list_are_its_own_contiguous_folds():
    scores, same = lfw_like(np.random.default_rng(1))
    counted = evaluation.verify_scores(scores, same, 10)
    given_ids = evaluation.verify_scores(scores, same, np.repeat(np.arange(10), 60))
    np.testing.assert_array_equal(counted.fold_accuracies, given_ids.fold_accuracies)
    np.testing.assert_array_equal(counted.fold_thresholds, given_ids.fold_thresholds)


def test_folds_of_a_list_sorted_by_kind_still_hold_both_kinds():
    scores, same = lfw_like(np.random.default_rng(2))
    order = np.argsort(~same, kind="stable")  # all same pairs first
    expected = evaluation.verify_scores(scores, same, 10)
    result = evaluation.verify_scores(scores[order], same[order], 10)
    np.testing.assert_array_equal(result.fold_accuracies, expected.fold_accuracies)


def test_exact_threshold_is_no_worse_in_training_than_insightface_grid():
    rng = np.random.default_rng(3)
    scores, same = lfw_like(rng)
    grid = max(np.mean((2 - 2 * scores < d) == same) for d in np.arange(0, 4, 0.01))
    threshold = evaluation.best_threshold(scores, same)
    assert np.mean((scores >= threshold) == same) >= grid


def test_hand_computed_case():
    angles = np.deg2rad([10, 30, 100, 50, 80, 120])
    left = np.tile([2.0, 0.0], (6, 1))
    right = 3 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    same = np.array([1, 1, 1, 0, 0, 0])
    result = evaluation.verify(left, right, same, folds=1, threshold=0.5)
    np.testing.assert_allclose(result.scores, np.cos(angles))
    # Accepted at 0.5: 10°, 30° (right) and 50° (wrong); 100° is wrongly rejected.
    assert result.accuracy == pytest.approx(4 / 6)
    assert result.accuracy_std == 0
    assert result.threshold == 0.5
    assert result.auc == pytest.approx((3 + 3 + 1) / 9)
    assert result.eer == pytest.approx(1 / 3)
    assert result.xnorm == pytest.approx(2.5)
    assert result.tar_at_far({1e-2, 0.5}) == pytest.approx({0.5: 2 / 3, 1e-2: 2 / 3})
    assert result.tar_at_far(1.0) == 1
    # Without a threshold the best on the pairs themselves is taken: between 50° and 30°.
    chosen = evaluation.verify(left, right, same, folds=1)
    assert chosen.accuracy == pytest.approx(5 / 6)
    assert np.cos(np.deg2rad(50)) < chosen.threshold < np.cos(np.deg2rad(30))


def test_perfect_and_useless_embeddings():
    same = np.repeat([True, False], 10)
    left = np.tile([1.0, 0.0], (20, 1))
    right = np.where(same[:, None], [1.0, 0.0], [0.0, 1.0])
    perfect = evaluation.verify(left, right, same, folds=5)
    assert (perfect.accuracy, perfect.auc, perfect.eer) == (1, 1, 0)
    assert perfect.tar_at_far(0) == 1
    collapsed = evaluation.verify(left, left, same, folds=5)
    assert (collapsed.accuracy, collapsed.auc, collapsed.eer) == (0.5, 0.5, 0.5)
    assert collapsed.tar_at_far(0.99) == 0


def test_scores_do_not_depend_on_length_and_survive_extreme_ones():
    rng = np.random.default_rng(4)
    left, right = rng.normal(size=(2, 8, 5))
    scores = evaluation.cosine_scores(left, right)
    np.testing.assert_allclose(evaluation.cosine_scores(left * 1e-200, right * 1e200), scores)
    half = evaluation.cosine_scores(left.astype("float16"), right.astype("float16"))
    np.testing.assert_allclose(half, scores, atol=3e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a": np.ones((4, 2, 1))}, r"shape \(pairs, dim\)"),
        ({"a": np.ones((4, 3))}, "same shape"),
        ({"a": np.ones((3, 2))}, "same shape"),
        ({"a": np.ones((0, 2)), "b": np.ones((0, 2)), "same": []}, "empty"),
        (
            {"a": np.array([[1, 1], [np.nan, 1], [1, 1], [1, np.inf]])},
            "2 of 4 rows, first in row 1",
        ),
        ({"b": np.array([[1, 1], [0, 0], [1, 1], [1, 1]])}, "all zeros"),
        ({"same": [True, False]}, "one entry per pair"),
        ({"same": [1, 0, 2, 0]}, "0 and 1"),
        ({"same": [True] * 4}, "All 4 pairs are same-person"),
        ({"same": [False] * 4}, "All 4 pairs are different-person"),
        ({"folds": 3}, "between 1 and 2"),
        ({"folds": 0}, "between 1 and 2"),
        ({"folds": 2.5}, "integer"),
        ({"folds": [0, 1]}, "one id per pair"),
        ({"folds": [0, 0, 0, 1]}, None),
        ({"folds": [0, 1, 0, 1]}, "outside fold 0 are all of one kind"),
    ],
)
def test_bad_arguments_are_named(change, message):
    arguments = {
        "a": np.array([[1.0, 0], [1, 0], [1, 0], [1, 0]]),
        "b": np.array([[1.0, 0], [0, 1], [1, 0], [0, 1]]),
        "same": [True, False, True, False],
        "folds": 2,
    } | change
    call = (arguments["a"], arguments["b"], arguments["same"], arguments["folds"])
    if message is None:
        # The last pair alone is a fold; the other fold has to be judged by it: one kind only.
        message = "all of one kind"
    with pytest.raises(ValueError, match=message):
        evaluation.verify(*call)


def test_bad_rates_and_scores_are_named():
    roc = evaluation.roc_curve([0.1, 0.9], [False, True])
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        roc.tar_at(1.5)
    with pytest.raises(ValueError, match="1 scores are NaN"):
        evaluation.best_threshold([np.nan, 0.5], [True, False])


def test_result_is_frozen_readable_and_ready_for_json():
    scores, same = lfw_like(np.random.default_rng(5))
    result = evaluation.verify_scores(scores, same)
    facts = json.loads(json.dumps(result.to_dict()))
    assert facts["pairs"] == 600
    # Of 300 pairs one is more than a thousandth.
    assert facts["tar_at_far"].keys() == {"0.01"}
    assert "FAR 0.01 " in str(result) and "FAR 0.001" not in str(result)
    assert result.tar_at_far(1e-3) == result.tar_at_far(0.0)
    many = evaluation.verify_scores(np.tile(scores, 4), np.tile(same, 4))
    assert many.to_dict()["tar_at_far"].keys() == {"0.01", "0.001"}
    assert f"{100 * result.accuracy:.2f} ± {100 * result.accuracy_std:.2f} %" in str(result)
    assert "300 same, 300 different" in str(result)
    with pytest.raises(AttributeError):
        result.accuracy = 1.0
    with pytest.raises(ValueError, match="read-only"):
        result.scores[0] = 1.0
    scores[0] = 7.0  # the caller's array stays the caller's
