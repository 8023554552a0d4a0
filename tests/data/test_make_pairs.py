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


@pytest.mark.parametrize(
    ("people", "images", "folds", "per_fold"), [(24, 6, 10, 60), (9, 2, 4, 4), (4, 3, 2, 12)]
)
def test_there_are_as_many_folds_and_pairs_as_the_people_allow(people, images, folds, per_fold):
    source = data.open_source(f"synthetic:{people}x{images}", image_size=16)
    pairs = data.make_pairs(source)
    assert set(pairs.fold) == set(range(folds)) and len(pairs) == folds * per_fold
    for fold in range(folds):
        assert pairs.same[pairs.fold == fold].sum() == per_fold // 2


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("many", "single", "folds"), [(10, 10, 10), (13, 7, 10), (3, 40, 3), (2, 2, 2)]
)
def test_every_fold_gets_people_of_several_images(many, single, folds, seed):
    labels = np.repeat(np.arange(many + single), [5] * many + [1] * single)
    source = data.open_source((np.zeros((len(labels), 1, 1, 3), "uint8"), labels))
    pairs = data.make_pairs(source, seed=seed)
    assert set(pairs.fold) == set(range(folds))
    for fold in range(folds):
        rows = np.flatnonzero(pairs.fold == fold)
        assert 0 < pairs.same[rows].sum() == len(rows) / 2


def test_of_two_people_with_very_many_images_some_stand_for_each():
    labels = np.repeat([0, 1, 2, 3], [3000, 1, 2500, 1500])
    source = data.open_source((np.zeros((len(labels), 1, 1, 3), "uint8"), labels))
    pairs = data.make_pairs(source)
    assert len(pairs) == 120 and pairs.same.sum() == 60
    with pytest.raises(ValueError, match=r"only 999000 different pairs of one person|only 499500 "):
        data.make_pairs(source, folds=2, per_fold=8_000_000)


def test_of_very_many_images_some_people_stand_for_a_fold():
    labels = np.repeat(np.arange(60), 500)
    source = data.open_source((np.zeros((len(labels), 1, 1, 3), "uint8"), labels))
    pairs = data.make_pairs(source, folds=2)
    assert len(pairs) == 120 and pairs.same.sum() == 60
    people = [
        {labels[int(n.split(":")[0])] for n in (*left, *right)}
        for left, right in (
            (np.array(pairs.left)[pairs.fold == fold], np.array(pairs.right)[pairs.fold == fold])
            for fold in (0, 1)
        )
    ]
    assert [len(group) for group in people] == [4, 4] and not people[0] & people[1]


def test_a_folder_of_people_has_pairs_drawn_from_it(tmp_path):
    image = pytest.importorskip("PIL.Image")
    pictures, labels = data.synthetic_identities(6, 3, image_size=16)
    for i, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        folder = tmp_path / "people" / f"person{label}"
        folder.mkdir(parents=True, exist_ok=True)
        image.fromarray(np.asarray(picture)).save(folder / f"{i}.png")
    pairs = data.read_pairs(tmp_path / "people")
    assert len(pairs) == 3 * 12 and pairs.read(pairs.left[0]).shape == (16, 16, 3)
    assert len(data.read_pairs(tmp_path / "people", folds=2)) == 2 * 18
    with pytest.raises(ValueError, match="holds its images itself"):
        data.read_pairs(tmp_path / "people", "lfw.zip")
    for extra in ("person0", "person1", "person2"):
        for file in (tmp_path / "people" / extra).iterdir():
            file.unlink()
        (tmp_path / "people" / extra).rmdir()
    with pytest.raises(ValueError, match="2 folds need at least 4 identities, got 3: give more"):
        data.read_pairs(tmp_path / "people")


def test_a_folder_with_many_people_of_one_image_has_pairs_drawn_from_it(tmp_path):
    image = pytest.importorskip("PIL.Image")
    for person in range(12):
        folder = tmp_path / f"person{person}"
        folder.mkdir()
        for i in range(3 if person < 4 else 1):
            image.new("RGB", (4, 4)).save(folder / f"{i}.png")
    assert set(data.read_pairs(tmp_path).fold) == {0, 1, 2, 3}
    message = "5 folds need at least 5 identities of two or more images, got 4: give fewer `folds`"
    with pytest.raises(ValueError, match=message):
        data.make_pairs(data.open_source(tmp_path), folds=5)


@pytest.mark.parametrize(("folds", "per_fold"), [(13, 4), (4, 3), (0, 4), (4, 1000)])
def test_impossible_protocols_are_refused(source, folds, per_fold):
    with pytest.raises(ValueError, match="fold"):
        data.make_pairs(source, folds, per_fold)
