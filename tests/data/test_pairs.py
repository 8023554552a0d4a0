import zipfile
from pathlib import Path

import numpy as np
import pytest

from keras_hybrid.data import read_lfw_pairs

pytestmark = pytest.mark.any_backend

Image = pytest.importorskip("PIL.Image")

SHARED = Path(__file__).parents[2].parent / "shared"

VIEW_2 = """2\t2
Ann\t1\t2
Bob_Lee\t1\t3
Ann\t1\tBob_Lee\t2
Cem\t1\tAnn\t2
Ann\t2\t3
Bob_Lee\t1\t2
Cem\t1\tBob_Lee\t1
Ann\t3\tCem\t1
"""
VIEW_1 = "1\nAnn\t1\t2\nAnn\t1\tCem\t1\n"


@pytest.fixture
def lfw(tmp_path):
    for number, (name, count) in enumerate({"Ann": 3, "Bob_Lee": 3, "Cem": 1}.items()):
        folder = tmp_path / "lfw" / "images" / name
        folder.mkdir(parents=True)
        for i in range(1, count + 1):
            colour = (50 * number, 20 * i, 0)
            Image.new("RGB", (10, 8), colour).save(folder / f"{name}_{i:04d}.png")
    (tmp_path / "pairs.txt").write_text(VIEW_2)
    return tmp_path


def test_view_2_gives_folds_in_the_order_of_the_file(lfw):
    pairs = read_lfw_pairs(lfw / "pairs.txt", images=lfw / "lfw")
    assert len(pairs) == 8
    np.testing.assert_array_equal(pairs.same, [1, 1, 0, 0, 1, 1, 0, 0])
    assert pairs.same.dtype == bool
    np.testing.assert_array_equal(pairs.fold, [0, 0, 0, 0, 1, 1, 1, 1])
    assert pairs.left[1].endswith("Bob_Lee/Bob_Lee_0001.png")
    assert pairs.right[2].endswith("Bob_Lee/Bob_Lee_0002.png")
    np.testing.assert_array_equal(pairs.read(pairs.right[2])[0, 0], [50, 40, 0])


def test_view_1_is_one_fold(lfw):
    (lfw / "dev.txt").write_text(VIEW_1)
    pairs = read_lfw_pairs(lfw / "dev.txt", images=lfw / "lfw")
    np.testing.assert_array_equal(pairs.same, [True, False])
    np.testing.assert_array_equal(pairs.fold, [0, 0])


def test_every_image_is_read_once_and_found_by_the_indices(lfw):
    pairs = read_lfw_pairs(lfw / "pairs.txt", images=lfw / "lfw")
    images = pairs.read_images()
    left, right = pairs.indices
    assert images.shape == (7, 8, 10, 3)
    for i in range(len(pairs)):
        np.testing.assert_array_equal(images[left[i]], pairs.read(pairs.left[i]))
        np.testing.assert_array_equal(images[right[i]], pairs.read(pairs.right[i]))
    assert pairs.read_images(4).shape == (7, 4, 4, 3)


def test_an_archive_reads_as_the_folder_does(lfw):
    with zipfile.ZipFile(lfw / "lfw.zip", "w") as archive:
        for file in (lfw / "lfw").rglob("*.png"):
            archive.write(file, file.relative_to(lfw))
        archive.writestr("pairs.txt", VIEW_2)
    pairs = read_lfw_pairs(lfw / "lfw.zip" / "pairs.txt", images=lfw / "lfw.zip")
    plain = read_lfw_pairs(lfw / "pairs.txt", images=lfw / "lfw")
    np.testing.assert_array_equal(pairs.read_images(), plain.read_images())
    np.testing.assert_array_equal(pairs.indices, plain.indices)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("Ann\t2\t3", "Ann\t2\t4", r"line 6: image Ann/Ann_0004\.jpg.*missing"),
        ("Ann\t2\t3", "Ann\t2", "line 6: expected NAME n1 n2"),
        ("Ann\t2\t3", "Ann\t2\tthree", "line 6: 'three'"),
        ("Ann\t2\t3", "Ann\t2\tCem\t1", "line 6: expected NAME n1 n2"),
        ("Cem\t1\tAnn\t2", "Cem\t1\tCem\t1", "line 5: expected two different people"),
        ("2\t2\n", "two\n", "line 1"),
        ("2\t2\n", "2\t3\n", "announces 12 pairs, but 8"),
        ("Ann\t3\tCem\t1\n", "", "announces 8 pairs, but 7"),
    ],
)
def test_a_wrong_line_or_a_missing_image_stops_and_names_the_line(lfw, old, new, message):
    (lfw / "pairs.txt").write_text(VIEW_2.replace(old, new, 1))
    with pytest.raises(ValueError, match=message):
        read_lfw_pairs(lfw / "pairs.txt", images=lfw / "lfw")


def test_an_image_found_twice_stops(lfw):
    copy = lfw / "lfw" / "funneled" / "Ann"
    copy.mkdir(parents=True)
    Image.new("RGB", (10, 8)).save(copy / "Ann_0001.jpg")
    with pytest.raises(ValueError, match="more than once"):
        read_lfw_pairs(lfw / "pairs.txt", images=lfw / "lfw")


def test_a_damaged_image_stops_instead_of_losing_a_pair(lfw):
    pairs = read_lfw_pairs(lfw / "pairs.txt", images=lfw / "lfw")
    (lfw / "lfw" / "images" / "Cem" / "Cem_0001.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"Cem_0001\.png.*empty"):
        pairs.read_images()


@pytest.mark.parametrize(
    ("name", "count", "folds"),
    [("pairs.txt", 6000, 10), ("pairsDevTrain.txt", 2200, 1), ("pairsDevTest.txt", 1000, 1)],
)
def test_the_real_protocols(name, count, folds):
    archive = SHARED / "data" / "lfw_112.zip"
    if not archive.exists():
        pytest.skip("the LFW archive is not here")
    pairs = read_lfw_pairs(archive / name, images=archive)
    assert len(pairs) == count
    assert pairs.same.sum() == count // 2
    assert np.bincount(pairs.fold).tolist() == [count // folds] * folds
    assert pairs.read(pairs.left[-1]).shape == (112, 112, 3)
