import numpy as np
import pytest

from keras_hybrid import data

pytestmark = pytest.mark.any_backend


@pytest.fixture(scope="module")
def source():
    return data.open_source("synthetic:24x6", image_size=16)


def test_folds_share_no_identity_and_are_balanced(source):
    pairs = data.make_pairs(source, folds=4, per_fold=20, seed=3)
    assert len(pairs) == 80
    label = {name: source.labels[int(name.split(":")[0])] for name in pairs.names}
    people = []
    for fold in range(4):
        rows = np.flatnonzero(pairs.fold == fold)
        assert pairs.same[rows].sum() == 10
        people.append({label[n] for row in rows for n in (pairs.left[row], pairs.right[row])})
    assert all(not a & b for i, a in enumerate(people) for b in people[:i])


def test_same_is_what_the_labels_say_and_no_pair_is_drawn_twice(source):
    pairs = data.make_pairs(source, folds=4, per_fold=20)
    drawn = list(zip(pairs.left, pairs.right, strict=True))
    assert len(set(drawn)) == len(drawn)
    for (left, right), same in zip(drawn, pairs.same, strict=True):
        a, b = (source.labels[int(name.split(":")[0])] for name in (left, right))
        assert left != right
        assert (a == b) == same


def test_the_reader_gives_the_source_s_images(source):
    pairs = data.make_pairs(source, folds=2, per_fold=4)
    name = pairs.left[0]
    np.testing.assert_array_equal(pairs.read(name), source.read(int(name.split(":")[0])))


def test_the_draw_is_fixed_by_its_seed(source):
    first, again, other = (data.make_pairs(source, 4, 20, seed) for seed in (1, 1, 2))
    assert first.left == again.left
    assert first.left != other.left


@pytest.mark.parametrize(("folds", "per_fold"), [(13, 4), (4, 3), (0, 4), (4, 1000)])
def test_impossible_protocols_are_refused(source, folds, per_fold):
    with pytest.raises(ValueError, match="fold"):
        data.make_pairs(source, folds, per_fold)
