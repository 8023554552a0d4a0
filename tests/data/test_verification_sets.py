import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from keras_hybrid.data import (
    list_verification_sets,
    read_lfw_pairs,
    read_pairs,
    read_verification_set,
    verification_set_info,
)

pytestmark = pytest.mark.any_backend

Image = pytest.importorskip("PIL.Image")

SHARED = Path(__file__).parents[2].parent / "shared"
PEOPLE = {"Ann": 3, "Bob_Lee": 3, "Cem": 3}


@pytest.fixture
def photographs(tmp_path):
    """NAME/NAME_0001.png of three people, below another folder."""
    for number, (name, count) in enumerate(PEOPLE.items()):
        folder = tmp_path / "photographs" / "aligned images" / name
        folder.mkdir(parents=True)
        for i in range(1, count + 1):
            Image.new("RGB", (4, 4), (50 * number, 20 * i, 0)).save(folder / f"{name}_{i:04d}.png")
            (folder / f"{name}_{i:04d}.txt").write_text("landmarks")
    return tmp_path / "photographs"


def write(folder, name, lines):
    path = folder / name
    path.write_text("\n".join(lines) + "\n")
    return path


CALFW = [
    "Ann_0001.jpg 1", "Ann_0002.jpg 1",
    "Bob_Lee_0001.jpg 1", "Bob_Lee_0003.jpg 1",
    "Cem_0001.jpg 2", "Cem_0003.jpg 2",
    "Ann_0001.jpg 2", "Ann_0003.jpg 2",
    "Ann_0001.jpg 0", "Cem_0001.jpg 0",
    "Ann_0002.jpg 0", "Cem_0001.jpg 0",
    "Bob_Lee_0002.jpg 0", "Cem_0001.jpg 0",
    "Bob_Lee_0001.jpg 0", "Ann_0001.jpg 0",
]  # fmt: skip
SLLFW = [
    "Ann/Ann_0001.jpg", "Ann/Ann_0002.jpg",
    "Cem/Cem_0001.jpg", "Bob_Lee/Bob_Lee_0001.jpg",
    "Cem/Cem_0001.jpg", "Cem/Cem_0003.jpg",
    "Ann/Ann_0001.jpg", "Bob_Lee/Bob_Lee_0001.jpg",
]  # fmt: skip


def test_calfw_s_list_numbers_the_folds_of_one_person_and_has_zero_for_two(photographs):
    pairs = read_pairs(write(photographs, "pairs_CALFW.txt", CALFW), photographs, folds=2)
    np.testing.assert_array_equal(pairs.same, [1, 1, 1, 1, 0, 0, 0, 0])
    np.testing.assert_array_equal(pairs.fold, [0, 0, 1, 1, 0, 0, 1, 1])
    assert pairs.left[1].endswith("Bob_Lee/Bob_Lee_0001.png")
    np.testing.assert_array_equal(pairs.read(pairs.right[1])[0, 0], [50, 60, 0])


def test_sllfw_s_list_goes_fold_by_fold_and_names_people_by_folders(photographs):
    pairs = read_pairs(write(photographs, "pair_SLLFW.txt", SLLFW), photographs, folds=2)
    np.testing.assert_array_equal(pairs.same, [1, 0, 1, 0])
    np.testing.assert_array_equal(pairs.fold, [0, 0, 1, 1])
    np.testing.assert_array_equal(pairs.read(pairs.left[3])[0, 0], [0, 20, 0])


def test_lfw_s_list_and_a_list_in_an_archive_are_read_too(photographs, tmp_path):
    lines = ["1", "Ann\t1\t2", "Ann\t1\tCem\t1"]
    path = write(tmp_path, "pairs.txt", lines)
    expected = read_lfw_pairs(path, photographs)
    assert read_pairs(path, photographs).left == expected.left
    with zipfile.ZipFile(tmp_path / "lfw.zip", "w") as archive:
        archive.writestr("pairs.txt", "\n".join(lines))
    assert read_pairs(tmp_path / "lfw.zip" / "pairs.txt", photographs).right == expected.right


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (CALFW[:-1], "two lines make a pair, but there are 15 lines"),
        ([*CALFW[:3], "Cem_0001.jpg 0"], "line 4: the lines of a pair have numbers 1 and 0"),
        ([*CALFW[:3], "Cem_0001.jpg"], "line 4: expected IMAGE.jpg NUMBER, got 'Cem_0001.jpg'"),
        ([*CALFW[:3], "Cem_0001.jpg x"], "line 4: expected IMAGE.jpg NUMBER"),
        ([*CALFW[:3], ""], "two lines make a pair, but there are 3 lines"),
        (["Ann_0001.jpg 1 2"] * 2, "line 1: expected"),
        ([*CALFW[:3], "Cem_0009.jpg 1"], r"line 4: image Cem_0009\.jpg .* is missing"),
        ([*SLLFW[:3], "Cem_0001.jpg"], "line 4: expected NAME/IMAGE.jpg"),
        ([*SLLFW[:3], "Bob/Cem_0001.jpg"], r"line 4: image Bob/Cem_0001\.jpg .* is missing"),
        (CALFW[:4], "0 pairs of two people, too few for 2 folds"),
        (["hello"], "line 1: expected the number of pairs"),
        ([], "line 1: expected the number of pairs"),
    ],
)
def test_a_wrong_list_stops_and_names_the_line(photographs, lines, message):
    with pytest.raises(ValueError, match=message):
        read_pairs(write(photographs, "pairs.txt", lines), photographs, folds=2)


def test_an_ambiguous_image_stops(photographs):
    Image.new("RGB", (4, 4)).save(photographs / "Ann_0001.jpg")
    with pytest.raises(ValueError, match=r"Ann_0001\.jpg .* more than once"):
        read_pairs(write(photographs, "pairs.txt", CALFW), photographs, folds=2)
    read_pairs(write(photographs, "pairs.txt", SLLFW), photographs, folds=2)


# the protocols


def test_the_sets_of_the_literature_are_known():
    assert list_verification_sets() == [
        "LFW", "SLLFW", "CALFW", "CPLFW", "TALFW", "CFP-FP", "AgeDB-30",
    ]  # fmt: skip
    for name in list_verification_sets():
        known = verification_set_info(name)
        assert known.same == known.different == known.pairs / 2
        assert known.pairs % (2 * known.folds) == 0
        assert known.url.startswith("http") and known.reference and known.protocol.endswith(".")
    assert verification_set_info("cfp_fp").pairs == 7000
    assert verification_set_info("agedb_30").name == "AgeDB-30"
    with pytest.raises(ValueError, match="'IJB-C' is no verification set; known: LFW, SLLFW"):
        verification_set_info("IJB-C")


def bin_file(path, same):
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2)).save(buffer, "PNG")
    path.write_bytes(pickle.dumps(([buffer.getvalue()] * (2 * len(same)), same), 2))
    return path


@pytest.mark.parametrize("name", ["LFW", "cfp_fp", "talfw"])
def test_a_bin_of_the_right_numbers_is_read(tmp_path, name):
    known = verification_set_info(name)
    run = known.same // known.folds
    same = ([True] * run + [False] * run) * known.folds
    pairs = read_verification_set(name, bin_file(tmp_path / "set.bin", same))
    assert len(pairs) == known.pairs
    for fold in range(10):
        assert pairs.same[pairs.fold == fold].sum() == run


def test_other_numbers_than_the_protocol_s_stop_with_both(tmp_path):
    path = bin_file(tmp_path / "cfp_ff.bin", [True, False] * 3500)
    with pytest.raises(ValueError, match=r"LFW has 6000 pairs, but .*cfp_ff\.bin has 7000"):
        read_verification_set("LFW", path)
    path = bin_file(tmp_path / "other.bin", [True] * 2999 + [False] * 3001)
    with pytest.raises(ValueError, match=r"LFW has 3000 pairs of one person, but .* has 2999"):
        read_verification_set("LFW", path)


def test_what_is_missing_or_too_much_is_named(tmp_path, photographs):
    with pytest.raises(ValueError, match=r"TALFW is read from a \.bin file, got pairs\.txt"):
        read_verification_set("TALFW", "pairs.txt", photographs)
    with pytest.raises(ValueError, match=r"`images`: the folder or \.zip .* is needed"):
        read_verification_set("CALFW", "pairs_CALFW.txt")
    with pytest.raises(ValueError, match="holds its images itself"):
        read_pairs(bin_file(tmp_path / "a.bin", [True] * 10), photographs)
    path = write(tmp_path, "pairs.txt", ["1", "Ann\t1\t2", "Ann\t1\tCem\t1"])
    with pytest.raises(ValueError, match=r"LFW has 6000 pairs, but .* has 2"):
        read_verification_set("LFW", path, photographs)


def test_the_real_lfw_list_is_lfw():
    archive = SHARED / "data" / "lfw_112.zip"
    if not archive.exists():
        pytest.skip("the LFW archive is not here")
    pairs = read_verification_set("lfw", archive / "pairs.txt", archive)
    assert np.bincount(pairs.fold).tolist() == [600] * 10
    with pytest.raises(ValueError, match=r"LFW has 6000 pairs, but .* has 1000"):
        read_verification_set("lfw", archive / "pairsDevTest.txt", archive)
