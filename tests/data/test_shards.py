"""Shards: what is written is what was read, and what is incomplete or damaged is refused."""

import csv
import json
import logging
import multiprocessing
import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest

from keras_hybrid.data import (
    ArraySource,
    Batches,
    CSVSource,
    FolderSource,
    ShardSource,
    Subset,
    UnreadableImageError,
    ZipSource,
    load_arrays,
    open_source,
    split_source,
    write_shards,
)
from tests.data.test_recordio import insightface, numbers, picture, write
from tests.data.test_sources import write_image, zip_folder

pytestmark = pytest.mark.any_backend

pytest.importorskip("PIL.Image")
array_record = pytest.importorskip(
    "array_record.python.array_record_module", reason="array-record is not installed"
)


def contents(folder) -> list[bytes]:
    """All records, by ArrayRecord's own reader, in the order of the files' names."""
    records = []
    for path in sorted(folder.glob("*.array_record")):
        reader = array_record.ArrayRecordReader(str(path))
        records += reader.read_all()
        reader.close()
    return records


@pytest.fixture
def people(tmp_path):
    """Seven photographs of three people: JPEG and PNG, colour and grey, of different sizes."""
    for i, name in enumerate(["ann/a.jpg", "ann/b.png", "bob/a.jpg", "bob/b.jpg", "bob/c.png"]):
        write_image(tmp_path / "people" / name, (9 * i, 80, 7), (8 + i, 6))
    write_image(tmp_path / "people/cem/a.jpg", 77, (5, 9), mode="L")
    write_image(tmp_path / "people/cem/b.png", (1, 2, 3))
    return tmp_path / "people"


def files_of(folder) -> list[bytes]:
    return [path.read_bytes() for path in sorted(folder.glob("*/*"))]


@pytest.mark.parametrize(("shards", "workers"), [(1, 1), (3, 2), (7, 3)])
def test_records_are_the_files_bytes_and_the_source_equals_the_folder(
    people, tmp_path, shards, workers
):
    folder = FolderSource(people)
    written = write_shards(folder, tmp_path / "out", shards, workers=workers)
    assert contents(tmp_path / "out") == files_of(people)
    assert len(list((tmp_path / "out").iterdir())) == shards + 1
    for source in (written, open_source(tmp_path / "out")):
        assert isinstance(source, ShardSource)
        assert source.class_names == ["ann", "bob", "cem"]
        np.testing.assert_array_equal(source.labels, [0, 0, 1, 1, 1, 2, 2])
        assert source.labels.dtype == np.int32 and source.landmarks is None
        order = [6, 0, 3, 3, 1]
        for index, image in zip(order, source.read_many(order), strict=True):
            np.testing.assert_array_equal(image, folder.read(index))
            np.testing.assert_array_equal(source.read(index), image)
            assert source.encoded(index) == files_of(people)[index]
    last = tmp_path / "out" / f"images-{shards - 1:05d}-of-{shards:05d}.array_record"
    place = {1: 6, 3: 1, 7: 0}[shards]  # 7 images make files of 3, 2 and 2
    assert written.paths[6] == f"{last}[{place}] (cem/b.png)"


def test_zips_records_and_shards_keep_their_bytes_too(people, tmp_path):
    archive = ZipSource(zip_folder(people, tmp_path / "people.zip"))
    write_shards(archive, tmp_path / "a")
    assert contents(tmp_path / "a") == files_of(people)
    write_shards(Subset(open_source(tmp_path / "a"), [5, 0, 2]), tmp_path / "b", 2)
    assert contents(tmp_path / "b") == [files_of(people)[i] for i in (5, 0, 2)]
    pictures = [picture(i, "JPEG") for i in range(3)]
    write(tmp_path / "rec", *insightface([0, 0, 1], pictures))
    write_shards(open_source(tmp_path / "rec"), tmp_path / "c")
    assert contents(tmp_path / "c") == pictures


def test_arrays_become_png_without_loss_or_jpeg(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
    source = ArraySource(images, [1, 0, 1], class_names=["no", "yes", "never"])
    exact = write_shards(source, tmp_path / "png")
    np.testing.assert_array_equal(np.stack(list(exact.read_many(range(3)))), images)
    assert exact.class_names == ["no", "yes", "never"]
    small = write_shards(source, tmp_path / "jpeg", quality=30)
    assert small.encoded(0).startswith(b"\xff\xd8") and exact.encoded(0).startswith(b"\x89PNG")
    assert len(small.encoded(0)) < len(exact.encoded(0))


def test_landmarks_travel_and_move_with_the_pixels(people, tmp_path):
    names = [f"{path.parent.name}/{path.name}" for path in sorted(people.glob("*/*"))]
    points = np.random.default_rng(0).uniform(0, 5, (7, 10)).astype(np.float32)
    with (people / "index.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "label", *(f"{axis}{i}" for i in range(5) for axis in "xy")])
        writer.writerows([n, n[:3], *p] for n, p in zip(names, points.tolist(), strict=True))
    source = CSVSource(people / "index.csv")
    np.testing.assert_array_equal(
        write_shards(source, tmp_path / "same").landmarks, points.reshape(7, 5, 2)
    )
    resized = write_shards(source, tmp_path / "resized", image_size=(12, 10))
    loaded = load_arrays(source, (12, 10))
    np.testing.assert_array_equal(np.stack(list(resized.read_many(range(7)))), loaded.images)
    np.testing.assert_allclose(resized.landmarks, loaded.landmarks, atol=1e-6)


def test_only_images_of_another_size_are_encoded_anew(people, tmp_path):
    written = write_shards(FolderSource(people), tmp_path / "out", image_size=(6, 8))
    is_kept = [a == b for a, b in zip(contents(tmp_path / "out"), files_of(people), strict=True)]
    assert is_kept == [True, False, False, False, False, False, True]
    assert {image.shape for image in written.read_many(range(7))} == {(6, 8, 3)}


def test_unreadable_images_are_left_out_and_reported(people, tmp_path, caplog):
    (people / "bob/a.jpg").write_bytes(files_of(people)[2][:-40])
    (people / "cem/a.jpg").write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        written = write_shards(FolderSource(people), tmp_path / "out", 7)
    assert str(people / "bob/a.jpg") in caplog.text and str(people / "cem/a.jpg") in caplog.text
    assert "2 of 7 images could not be read" in caplog.text
    assert contents(tmp_path / "out") == [files_of(people)[i] for i in (0, 1, 3, 4, 6)]
    np.testing.assert_array_equal(written.labels, [0, 0, 1, 1, 2])  # two of seven files have none
    np.testing.assert_array_equal(written.read(4)[0, 0], [1, 2, 3])
    assert written.paths[4].endswith("images-00006-of-00007.array_record[0] (cem/b.png)")
    (people / "cem/b.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"No image of 1 classes could be read: cem\."):
        write_shards(FolderSource(people), tmp_path / "again")
    with pytest.raises(ValueError, match="interrupted"):
        open_source(tmp_path / "again")


def _killed_at_the_fifth_image(people, out):
    class Deadly(FolderSource):
        def encoded(self, index):
            if index == 5:
                os._exit(9)
            return super().encoded(index)

    write_shards(Deadly(people), out, 3)


@pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="processes cannot fork here"
)
@pytest.mark.filterwarnings("ignore:.*fork.*")  # the backend's threads; the child does not use them
def test_a_killed_writer_leaves_nothing_that_opens(people, tmp_path):
    context = multiprocessing.get_context("fork")
    process = context.Process(target=_killed_at_the_fifth_image, args=(people, tmp_path / "out"))
    process.start()
    process.join(120)
    assert process.exitcode == 9
    assert (tmp_path / "out/images-00001-of-00003.array_record").stat().st_size
    with pytest.raises(ValueError, match=r"no shards\.npz: writing them was interrupted"):
        open_source(tmp_path / "out")
    with pytest.raises(ValueError, match=r"must be new or empty; it holds images-00000"):
        write_shards(FolderSource(people), tmp_path / "out")


# what is wrong with a folder


@pytest.fixture
def shards(people, tmp_path):
    write_shards(FolderSource(people), tmp_path / "shards", 3)
    return tmp_path / "shards"


def test_shards_in_the_folders_of_splits_ask_for_one(people, tmp_path):
    for split in ("train", "test"):
        write_shards(FolderSource(people), tmp_path / "faces" / split)
    with pytest.raises(ValueError, match="in its folders test, train: choose one of them by"):
        open_source(tmp_path / "faces")
    assert len(open_source(tmp_path / "faces", split="test")) == 7
    (tmp_path / "empty" / "ann").mkdir(parents=True)
    with pytest.raises(ValueError, match="holds no image"):
        open_source(tmp_path / "empty")


def test_missing_cut_off_and_damaged_files_are_refused(shards):
    path = shards / "images-00001-of-00003.array_record"
    whole = path.read_bytes()
    for damaged, message in (
        (whole[:-100], rf"{path.name} is cut off or another file: it has {len(whole) - 100} bytes"),
        (bytes(len(whole)), "a shard is damaged: "),
    ):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=message):
            open_source(shards)
    path.unlink()
    with pytest.raises(ValueError, match=f"the shard {path.name} is missing"):
        open_source(shards)


def test_an_index_that_is_damaged_or_of_another_version_is_refused(shards):
    index = shards / "shards.npz"
    with np.load(index) as file:
        arrays = dict(file)
    header = json.loads(arrays["header"].tobytes())
    assert header["version"] == 1
    header["version"] = 2
    arrays["header"] = np.frombuffer(json.dumps(header).encode(), np.uint8)
    whole = index.read_bytes()
    np.savez(index, **arrays)
    with pytest.raises(ValueError, match=r"has version 2 of the layout.*reads version 1"):
        open_source(shards)
    for damaged in (whole[:-50], b"no index", whole.replace(b"version", b"uersion")):
        index.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"shards\.npz is damaged"):
            open_source(shards)


def test_a_damaged_record_is_one_unreadable_image(shards, caplog):
    path = shards / "images-00000-of-00003.array_record"
    source = open_source(shards)
    content = path.read_bytes()
    place = content.index(source.encoded(1)) + 30
    path.write_bytes(content[:place] + bytes([content[place] ^ 255]) + content[place + 1 :])
    source = open_source(shards)
    found = list(source.read_many([1, 0, 6]))
    assert isinstance(found[0], UnreadableImageError)
    assert "[1] (ann/b.png)" in found[0].path and "hash mismatch" in found[0].reason
    np.testing.assert_array_equal(found[2][0, 0], [1, 2, 3])
    batches = Batches(source, batch_size=7, shuffle=False, image_size=6)
    images, labels = batches[0]
    np.testing.assert_array_equal(images[1], images[0])  # ann's other photograph
    np.testing.assert_array_equal(labels, [0, 0, 1, 1, 1, 2, 2])
    assert len(batches.skipped) == 1 and caplog.text.count("takes its place") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shards": 8}, r"`shards` must be an integer in \[1, 7\], got 8"),
        ({"shards": 0}, "`shards`"),
        ({"quality": 101}, r"`quality` must be an integer in \[1, 100\], got 101"),
        ({"workers": 0}, "`workers` must be an integer of at least 1, got 0"),
        ({"image_size": 0}, "`image_size`"),
    ],
)
def test_arguments_out_of_range_write_nothing(people, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        write_shards(FolderSource(people), tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_an_empty_source_and_a_folder_in_use_are_refused(people, tmp_path):
    source = FolderSource(people)
    with pytest.raises(ValueError, match="has no image"):
        write_shards(Subset(source, []), tmp_path / "out")
    with pytest.raises(ValueError, match=r"must be new or empty; it holds ann, bob, cem"):
        write_shards(source, people)
    with pytest.raises(ValueError, match="there are no shards in"):
        ShardSource(people)


def test_a_missing_array_record_is_named_with_its_extra(shards, people, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "array_record.python.array_record_data_source", None)
    for action in (
        lambda: open_source(shards),
        lambda: write_shards(FolderSource(people), tmp_path / "out"),
    ):
        with pytest.raises(ImportError, match=r"keras-hybrid\[shards\]"):
            action()


# splits, threads, processes


def test_a_split_is_a_sub_folder(people, tmp_path):
    train, test = split_source(FolderSource(people), 0.4)
    for name, part in (("train", train), ("test", test)):
        write_shards(part, tmp_path / "out" / name)
        source = open_source(tmp_path / "out", split=name)
        assert source.class_names == ["ann", "bob", "cem"]
        np.testing.assert_array_equal(source.labels, part.labels)
    with pytest.raises(ValueError, match=r"there are no shards in .*out/val"):
        ShardSource(tmp_path / "out", split="val")


@pytest.fixture(scope="module")
def numbered(tmp_path_factory):
    folder = tmp_path_factory.mktemp("numbered")
    write(folder / "rec", *insightface(sorted([0, 1, 2, 3] * 10)), classes=4)
    return write_shards(open_source(folder / "rec"), folder / "out", 3)


def test_batches_are_those_of_the_source_with_any_number_of_threads(numbered):
    original = open_source(Path(numbered.paths[0]).parents[1] / "rec")
    expected = [Batches(original, batch_size=16, seed=3, epoch=1)[i] for i in range(3)]
    for workers in (0, 1, 4):
        batches = Batches(numbered, batch_size=16, seed=3, epoch=1, start_batch=1, workers=workers)
        for (images, labels), (a, b) in zip(batches, expected[1:], strict=True):
            np.testing.assert_array_equal(images, a)
            np.testing.assert_array_equal(labels, b)


@pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="processes cannot fork here"
)
@pytest.mark.filterwarnings("ignore:.*fork.*")
def test_forked_processes_and_pickled_copies_read_on(numbered):
    list(numbered.read_many(range(40)))  # opens the files before the fork
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=_read, args=(numbered, queue), daemon=True)
    process.start()
    assert queue.get(timeout=120) == list(range(40))
    process.join(120)
    copy = pickle.loads(pickle.dumps(numbered))
    assert numbers(copy, range(40)) == list(range(40))
    assert copy.fingerprint() == numbered.fingerprint()


def _read(source, queue):
    queue.put([int(image[0, 0, 0]) for image in source.read_many(range(40))])
