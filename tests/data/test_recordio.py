"""RecordIO files written here from the format's definition, and what is wrong with broken ones."""

import io
import logging
import multiprocessing
import pickle
import struct
import threading

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from keras_hybrid.data import (
    FolderSource,
    RecordIOSource,
    UnreadableImageError,
    load_arrays,
    open_source,
    split_source,
)

pytestmark = pytest.mark.any_backend

Image = pytest.importorskip("PIL.Image")

MAGIC = bytes.fromhex("0a23d7ce")


def picture(number, kind="PNG"):
    """An encoded image whose colour is its number."""
    buffer = io.BytesIO()
    Image.new("RGB", (6, 4), (number % 256, number // 256, 7)).save(buffer, kind)
    return buffer.getvalue()


def record(content: bytes) -> bytes:
    """One record: split at every magic number that lies at a multiple of four bytes."""
    parts, begin = [], 0
    for place in range(0, len(content) - 3, 4):
        if content[place : place + 4] == MAGIC:
            parts.append(content[begin:place])
            begin = place + 4
    parts.append(content[begin:])
    written = b""
    for number, part in enumerate(parts):
        is_first, is_last = number == 0, number == len(parts) - 1
        kind = {(1, 1): 0, (1, 0): 1, (0, 0): 2, (0, 1): 3}[is_first, is_last]
        written += MAGIC + struct.pack("<I", kind * 2**29 + len(part)) + part
    return written + b"\0" * (-len(written) % 4)


def image_record(label, image, key=0) -> bytes:
    """The content of an image record; several labels become a list after the header."""
    if np.ndim(label):
        labels = b"".join(struct.pack("<f", value) for value in label)
        return struct.pack("<IfQQ", len(label), 0.0, key, 0) + labels + image
    return struct.pack("<IfQQ", 0, label, key, 0) + image


def write(folder, contents, keys=None, name="train", with_index=True, classes=None):
    """Write .rec, .idx and property; returns the .rec."""
    folder.mkdir(parents=True, exist_ok=True)
    keys = range(len(contents)) if keys is None else keys
    data, lines = b"", ""
    for key, content in zip(keys, contents, strict=True):
        lines += f"{key}\t{len(data)}\n"
        data += record(content)
    (folder / f"{name}.rec").write_bytes(data)
    if with_index:
        (folder / f"{name}.idx").write_text(lines)
    if classes is not None:
        (folder / "property").write_text(f"{classes},112,112")
    return folder / f"{name}.rec"


def insightface(labels, images=None):
    """Contents and keys of an InsightFace set: images, then key 0, then a record per identity."""
    images = [picture(i) for i in range(len(labels))] if images is None else images
    first = len(labels) + 1
    identities = sorted(set(labels))
    contents = [
        image_record(label, image, key)
        for key, (label, image) in enumerate(zip(labels, images, strict=True), 1)
    ]
    contents.append(image_record([first, first + len(identities)], b"", 0))
    for place, identity in enumerate(identities):
        begin = labels.index(identity) + 1
        span = [begin, begin + labels.count(identity)]
        contents.append(image_record(span, b"", first + place))
    return contents, [*range(1, first), 0, *range(first, first + len(identities))]


LABELS = [0, 0, 1, 1, 1, 2]


@pytest.mark.parametrize("with_index", [True, False])
@pytest.mark.parametrize("spec", ["train.rec", "train", "."])
def test_an_insightface_set_holds_the_images_that_its_header_announces(tmp_path, with_index, spec):
    write(tmp_path, *insightface(LABELS), with_index=with_index, classes=3)
    source = open_source(tmp_path / spec)
    assert isinstance(source, RecordIOSource)
    np.testing.assert_array_equal(source.labels, LABELS)
    assert source.labels.dtype == np.int32
    assert source.class_names == ["0", "1", "2"]
    for index in range(6):
        assert source.read(index).shape == (4, 6, 3)
        np.testing.assert_array_equal(source.read(index)[0, 0], [index, 0, 7])
    assert source.paths[5] == f"{tmp_path / 'train.rec'}[6]"


def test_the_header_may_come_first_and_the_index_in_any_order(tmp_path):
    contents, keys = insightface(LABELS)
    order = np.random.default_rng(0).permutation(len(keys))
    write(tmp_path, [contents[i] for i in order], [keys[i] for i in order])
    source = RecordIOSource(tmp_path)
    np.testing.assert_array_equal(source.labels, LABELS)
    np.testing.assert_array_equal(source.read(4)[0, 0], [4, 0, 7])


@pytest.mark.parametrize("with_index", [True, False])
@pytest.mark.parametrize("ids", [[0, 1, 2], [7, 9, 8], [0, 0, 0]])
def test_a_plain_file_of_im2rec_holds_all_its_records(tmp_path, with_index, ids):
    contents = [image_record(label, picture(i), ids[i]) for i, label in enumerate([1, 0, 1])]
    write(tmp_path, contents, with_index=with_index)
    source = open_source(tmp_path / "train.rec")
    np.testing.assert_array_equal(source.labels, [1, 0, 1])
    assert [source.read(i)[0, 0, 0] for i in range(3)] == [0, 1, 2]


def test_of_several_labels_the_first_is_the_class(tmp_path):
    labels = [[1, 0.5], [0, -3], [2, 1e30, 7], 0]
    write(tmp_path, [image_record(label, picture(i)) for i, label in enumerate(labels)])
    source = RecordIOSource(tmp_path)
    np.testing.assert_array_equal(source.labels, [1, 0, 2, 0])
    assert [source.read(i)[0, 0, 0] for i in range(4)] == [0, 1, 2, 3]


def test_identity_records_without_a_header_are_left_out_and_reported(tmp_path, caplog):
    contents, keys = insightface(LABELS)
    del contents[6], keys[6]
    with caplog.at_level(logging.WARNING):
        source = RecordIOSource(write(tmp_path, contents, keys))
    np.testing.assert_array_equal(source.labels, LABELS)
    assert "3 records hold two labels and no image" in caplog.text


@pytest.mark.parametrize("with_index", [True, False])
@pytest.mark.parametrize(
    "image",
    [
        MAGIC,
        MAGIC * 3,
        b"abcd" + MAGIC,
        b"abcd" + MAGIC + b"efg",
        b"ab" + MAGIC + b"cd",  # not at a multiple of four: stays in the part
    ],
)
def test_parts_are_joined_with_the_magic_number_between_them(tmp_path, with_index, image):
    number = struct.unpack("<I", MAGIC)[0]
    contents = [
        image_record(0, picture(0), 1),
        image_record(1, picture(1) + image, 2),
        # The magic number within the header: the first part ends before the label is over.
        struct.pack("<IfQQ", 0, 2, number, 5) + picture(2),
        image_record([3, struct.unpack("<f", MAGIC)[0]], picture(3) + image, 4),
    ]
    write(tmp_path, contents, [1, 2, number, 4], with_index=with_index)
    source = RecordIOSource(tmp_path)
    np.testing.assert_array_equal(source.labels, [0, 1, 2, 3])
    assert [source.read(i)[0, 0, 0] for i in range(4)] == [0, 1, 2, 3]


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_contents_come_back(tmp_path, data):
    piece = st.sampled_from([MAGIC, MAGIC[:2], b"x", b"abcd", b"\0" * 5])
    images = data.draw(st.lists(st.lists(piece, min_size=1).map(b"".join), min_size=1, max_size=5))
    labels = [data.draw(st.sampled_from([i, [i, 9.5], [i, 1, 2]])) for i in range(len(images))]
    contents = [image_record(label, image) for label, image in zip(labels, images, strict=True)]
    (tmp_path / "train.idx").unlink(missing_ok=True)
    source = RecordIOSource(write(tmp_path, contents, with_index=data.draw(st.booleans())))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("keras_hybrid.data.recordio.decode_image", lambda image, where: image)
        read = [source.read(i) for i in range(len(source))]
    assert read == images
    assert source.labels.tolist() == list(range(len(images)))


# classes


def test_property_says_how_many_classes_there_are(tmp_path, caplog):
    write(tmp_path, *insightface([0, 2, 2]), classes=4)
    with caplog.at_level(logging.WARNING):
        source = RecordIOSource(tmp_path)
    assert source.class_names == ["0", "1", "2", "3"]
    np.testing.assert_array_equal(source.labels, [0, 2, 2])
    assert "2 of 4 classes have no image: 1, 3" in caplog.text
    (tmp_path / "property").write_text("2,112,112")
    with pytest.raises(ValueError, match=r"train\.rec\[2\]: label 2 with 2 classes"):
        RecordIOSource(tmp_path)
    with pytest.raises(ValueError, match=r"`classes`=5, but .*property says 2"):
        RecordIOSource(tmp_path, classes=5)


def test_without_property_labels_with_gaps_are_numbered_unless_classes_are_given(tmp_path):
    write(tmp_path, [image_record(label, picture(label)) for label in (7, 300, 7)])
    source = RecordIOSource(tmp_path)
    np.testing.assert_array_equal(source.labels, [0, 1, 0])
    assert source.class_names == ["7", "300"]
    source = open_source(tmp_path, classes=301)
    np.testing.assert_array_equal(source.labels, [7, 300, 7])
    assert len(source.class_names) == 301


@pytest.mark.parametrize("text", ["", "3", "3,112", "x,112,112", "0,112,112", "3;112;112"])
def test_a_malformed_property_stops(tmp_path, text):
    write(tmp_path, *insightface(LABELS))
    (tmp_path / "property").write_text(text)
    with pytest.raises(ValueError, match=r"property: expected 'classes,height,width'"):
        RecordIOSource(tmp_path)


@pytest.mark.parametrize("label", [0.5, -1, float("nan"), float("inf"), 1e30])
def test_a_label_that_is_no_class_stops_and_names_the_record(tmp_path, label):
    write(tmp_path, [image_record(0, picture(0)), image_record(label, picture(1))])
    with pytest.raises(ValueError, match=r"train\.rec\[1\]: label .* is not a whole number"):
        RecordIOSource(tmp_path)


# broken containers


@pytest.mark.parametrize("with_index", [True, False])
def test_a_file_that_is_cut_off_anywhere_stops(tmp_path, with_index):
    path = write(tmp_path, *insightface(LABELS), with_index=with_index)
    content = path.read_bytes()
    for size in (1, 7, 8, 30, len(content) // 2, len(content) - 33, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(ValueError, match=r"train\.(rec|idx).*(cut off|ends|has \d+ bytes)"):
            RecordIOSource(path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="is empty"):
        RecordIOSource(path)


@pytest.mark.parametrize("with_index", [True, False])
@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, b"\0\0\0\0", "byte 0: 0x00000000 is there, not the magic number 0xced7230a"),
        (4, struct.pack("<I", 2 * 2**29 + 4), "byte 0: a part of kind 2 cannot stand there"),
        (4, struct.pack("<I", 2**29 - 1), "cut off|ends within"),
        (8, struct.pack("<I", 1000), "too few for an image record's header and 1000 labels"),
    ],
)
def test_a_damaged_record_stops(tmp_path, with_index, place, value, message):
    path = write(tmp_path, [image_record(0, picture(0))] * 2, with_index=with_index)
    content = bytearray(path.read_bytes())
    content[place : place + 4] = value
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        RecordIOSource(path)


@pytest.mark.filterwarnings("ignore::UserWarning")  # NumPy's, of an index without a number
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_changed_bytes_give_a_source_or_a_value_error(tmp_path, data):
    path = write(tmp_path, *insightface(LABELS), classes=3)
    for file in (path, path.with_suffix(".idx"), tmp_path / "property"):
        content = bytearray(file.read_bytes())
        for _ in range(data.draw(st.integers(0, 3))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        file.write_bytes(content[: data.draw(st.integers(len(content) - 3, len(content)))])
    if data.draw(st.booleans()):
        path.with_suffix(".idx").unlink()
    try:
        source = RecordIOSource(path)
    except ValueError as error:
        assert str(tmp_path) in str(error)
        return
    for index in range(len(source)):
        try:
            assert source.read(index).ndim == 3
        except UnreadableImageError as error:
            assert error.path == source.paths[index]


DAMAGES = [  # at a place within a record, and what the report says of it
    (0, b"\0\0\0\0", "not the magic number 0xced7230a"),
    (4, struct.pack("<I", 2 * 2**29 + 4), "a part of kind 2 cannot stand there"),
    (4, struct.pack("<I", 2**29 - 1), "the file ends within"),
    (8, struct.pack("<I", 1000), "too few for an image record's header and 1000 labels"),
]


def damage(path, key, place, value):
    """Overwrite four bytes of a record that the index knows."""
    index = dict(line.split("\t") for line in path.with_suffix(".idx").read_text().splitlines())
    content, begin = bytearray(path.read_bytes()), int(index[str(key)]) + place
    content[begin : begin + 4] = value
    path.write_bytes(content)


@pytest.mark.parametrize("is_insightface", [True, False])
@pytest.mark.parametrize(("place", "value", "message"), DAMAGES)
def test_of_a_file_with_an_index_a_damaged_record_is_left_out(
    tmp_path, caplog, is_insightface, place, value, message
):
    labels = sorted([0, 1, 2, 3] * 6)
    if is_insightface:
        path = write(tmp_path, *insightface(labels), classes=4)
    else:
        contents = [image_record(label, picture(i)) for i, label in enumerate(labels)]
        path = write(tmp_path, contents, range(1, 25))
    damage(path, 9, place, value)
    with caplog.at_level(logging.WARNING):
        source = RecordIOSource(path)
    assert f"{path}: 1 of " in caplog.text
    assert "records are damaged and left out: key 9, " in caplog.text and message in caplog.text
    kept = [i for i in range(24) if i != 8]
    np.testing.assert_array_equal(source.labels, np.array(labels)[kept])
    assert [source.read(i)[0, 0, 0] for i in range(23)] == kept
    assert source.paths[8] == f"{path}[10]"


def test_several_damaged_records_are_named_and_too_many_stop(tmp_path, caplog):
    path = write(tmp_path, [image_record(0, picture(i)) for i in range(30)])
    for key in (3, 7, 0):
        damage(path, key, 0, b"\0\0\0\0")
    with caplog.at_level(logging.WARNING):
        assert len(RecordIOSource(path)) == 27
    assert "3 of 30 records are damaged and left out: key 0, no record at byte 0" in caplog.text
    assert "key 3, " in caplog.text and "key 7, " in caplog.text
    damage(path, 4, 0, b"\0\0\0\0")
    with pytest.raises(ValueError, match=r"key 0: no record .* 4 of 30 records .* 10% may be"):
        RecordIOSource(path)


def test_without_the_record_that_announces_the_images_nothing_is_read(tmp_path):
    path = write(tmp_path, *insightface(sorted([0, 1] * 12)))
    damage(path, 0, 0, b"\0\0\0\0")
    with pytest.raises(ValueError, match="key 0: the record that says which are images is damaged"):
        RecordIOSource(path)


def test_a_file_that_ends_within_its_last_record_stops_however_many_are_whole(tmp_path):
    path = write(tmp_path, [image_record(0, picture(i)) for i in range(30)])
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ValueError, match="key 29: the file ends within"):
        RecordIOSource(path)


def test_a_record_too_short_for_a_header_and_parts_without_an_end_stop(tmp_path):
    path = write(tmp_path, [image_record(0, picture(0)), b"short"])
    with pytest.raises(ValueError, match=r"key 1: 5 bytes are too few"):
        RecordIOSource(path)
    for with_index in (True, False):
        path = write(tmp_path, [image_record(0, picture(0) + b"abc" + MAGIC)])
        content = path.read_bytes()
        path.write_bytes(content[: content.rindex(MAGIC)])
        if not with_index:
            (tmp_path / "train.idx").unlink()
        with pytest.raises(ValueError, match=r"ends|cut off"):
            RecordIOSource(path)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("", "train.idx is empty"),
        ("1\t0\n1\t200\n", "more than one line has key 1"),
        ("1\t0\n2\t100000\n", "key 2 points to byte 100000, but .* has"),
        ("1\t0\n2\t-4\n", "key 2 points to byte -4"),
        ("1\t0\n2\t4\n", r"key 2: no record at byte 4"),
        ("1\t0\nx\t4\n", "expected lines key<TAB>offset.*'x'.*row 1"),
        ("1\t0\n2\n", "expected lines key<TAB>offset"),
        ("1 0\n", "expected lines key<TAB>offset"),
        ("1\t0\t0\n", "3 columns"),
    ],
)
def test_a_wrong_index_stops(tmp_path, index, message):
    path = write(tmp_path, [image_record(0, picture(i)) for i in range(2)])
    (tmp_path / "train.idx").write_text(index)
    with pytest.raises(ValueError, match=message):
        RecordIOSource(path)


def test_an_index_of_some_records_is_a_subset_but_not_of_an_announced_set(tmp_path):
    path = write(tmp_path / "plain", [image_record(0, picture(i)) for i in range(3)])
    lines = path.with_suffix(".idx").read_text().splitlines()
    path.with_suffix(".idx").write_text("\n".join(lines[1:]))
    source = RecordIOSource(path)
    assert [source.read(i)[0, 0, 0] for i in range(len(source))] == [1, 2]
    contents, keys = insightface(LABELS)
    del contents[3], keys[3]
    write(tmp_path, contents, keys)
    with pytest.raises(ValueError, match="announces images 1 … 6, but there is no key 4"):
        RecordIOSource(tmp_path)


@pytest.mark.parametrize("first", [0, 1, 2.5, 1000, float("nan"), float("inf")])
def test_a_header_that_announces_nothing_possible_stops(tmp_path, first):
    write(tmp_path, [image_record([first, 9], b""), image_record(0, picture(0))])
    with pytest.raises(ValueError, match="key 0: the header must hold the key after the last"):
        RecordIOSource(tmp_path)


def test_the_suffix_may_be_in_capitals(tmp_path):
    path = write(tmp_path, *insightface(LABELS))
    path = path.rename(path.with_suffix(".REC"))
    assert len(open_source(path)) == len(LABELS)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"there is no file .*val\.rec"):
        open_source(tmp_path / "val.rec")
    write(tmp_path, *insightface(LABELS))
    with pytest.raises(ValueError, match=r"has no val\.rec; it has train\.rec"):
        open_source(tmp_path, split="val")
    with pytest.raises(ValueError, match="split_source"):
        open_source(tmp_path / "train.rec", split="val")
    with pytest.raises(ValueError, match=r"speed.*accepted: classes"):
        open_source(tmp_path, speed=3)
    with pytest.raises(ValueError, match="holds no image"):
        RecordIOSource(write(tmp_path, [image_record([1, 2], b"")], [5], "none"))


def test_split_chooses_another_file_of_the_folder(tmp_path):
    write(tmp_path, [image_record(i, picture(i)) for i in range(3)])
    write(tmp_path, [image_record(0, picture(9))], name="val")
    assert len(open_source(tmp_path, split="train")) == 3
    assert open_source(tmp_path, split="val").read(0)[0, 0, 0] == 9


def test_a_folder_of_folders_is_still_a_folder_per_identity(tmp_path):
    (tmp_path / "faces" / "ann").mkdir(parents=True)
    (tmp_path / "faces" / "ann" / "0.png").write_bytes(picture(0))
    write(tmp_path, [image_record(0, picture(0))], name="faces")
    assert isinstance(open_source(tmp_path / "faces"), FolderSource)
    assert isinstance(open_source(tmp_path / "faces.rec"), RecordIOSource)


# broken images


def test_a_broken_image_is_skipped_with_a_count(tmp_path, caplog):
    images = [picture(i) for i in range(6)]
    images[3] = images[3][:20]
    images[1] = b""
    write(tmp_path, *insightface(LABELS, images))
    source = RecordIOSource(tmp_path)
    with pytest.raises(UnreadableImageError, match=r"train\.rec\[2\]: the file is empty"):
        source.read(1)
    with caplog.at_level(logging.WARNING):
        loaded = load_arrays(source, 4)
    np.testing.assert_array_equal(loaded.kept, [0, 2, 4, 5])
    assert [name for name, _ in loaded.skipped] == [source.paths[1], source.paths[3]]
    assert "2 of 6 images could not be read" in caplog.text


def test_a_file_that_shrinks_after_opening_gives_unreadable_images(tmp_path):
    path = write(tmp_path, [image_record(0, picture(i)) for i in range(2)])
    source = RecordIOSource(path)
    path.write_bytes(path.read_bytes()[:40])
    for index in range(2):
        with pytest.raises(UnreadableImageError, match="the file ends"):
            source.read(index)
    path.unlink()
    with pytest.raises(UnreadableImageError, match="No such file"):
        pickle.loads(pickle.dumps(source)).read(0)


# threads, processes, caches


@pytest.fixture
def numbered(tmp_path):
    labels = sorted([0, 1, 2, 3] * 10)
    write(tmp_path, *insightface(labels), classes=4)
    return RecordIOSource(tmp_path)


def numbers(source, order):
    return [int(source.read(int(i))[0, 0, 0]) for i in order]


def test_many_threads_read_at_once(numbered):
    orders = [np.random.default_rng(seed).permutation(40) for seed in range(4)]
    found = [None] * 4

    def work(thread):
        found[thread] = numbers(numbered, orders[thread])

    threads = [threading.Thread(target=work, args=(thread,)) for thread in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert found == [order.tolist() for order in orders]


def _read_in_a_process(source, order, queue):
    queue.put(numbers(source, order))


@pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="processes cannot fork here"
)
@pytest.mark.filterwarnings("ignore:.*fork.*")  # the backend's threads; the child does not use them
def test_forked_processes_do_not_share_a_file_position(numbered):
    numbers(numbered, range(3))  # opens the file before the fork
    context = multiprocessing.get_context("fork")
    orders = [np.random.default_rng(seed).permutation(40).tolist() for seed in range(2)]
    queues = [context.Queue() for _ in orders]
    processes = [
        context.Process(target=_read_in_a_process, args=(numbered, order, queue), daemon=True)
        for order, queue in zip(orders, queues, strict=True)
    ]
    [process.start() for process in processes]
    here = numbers(numbered, range(40))
    assert [queue.get(timeout=120) for queue in queues] == orders
    [process.join() for process in processes]
    assert here == list(range(40))


def test_a_source_is_pickled_without_its_images(numbered):
    numbered.read(0)
    pickled = pickle.dumps(numbered)
    assert len(pickled) < 3000
    copy = pickle.loads(pickled)
    assert numbers(copy, range(40)) == list(range(40))
    assert copy.fingerprint() == numbered.fingerprint()


def test_the_fingerprint_changes_with_the_file(tmp_path):
    path = write(tmp_path, [image_record(0, picture(0), 5)])
    before = RecordIOSource(path).fingerprint()
    path = write(tmp_path, [image_record(0, picture(1) + b"\0" * 8, 5)])
    assert RecordIOSource(path).fingerprint() != before


def test_a_set_can_be_split(numbered):
    train, test = split_source(numbered, 0.2)
    assert len(train) == 32
    np.testing.assert_array_equal(np.bincount(test.labels), [2, 2, 2, 2])
    assert numbers(test, range(8)) == test.indices.tolist()
    assert test.paths[0] == numbered.paths[test.indices[0]]


@pytest.mark.parametrize("first", [7, 2**24 - 1, 2**24 + 1, 2**24 + 3, 2**25 + 2, 2**25 + 6])
def test_a_header_beyond_float32s_whole_numbers_is_corrected(first):
    from keras_hybrid.data.recordio import _exact

    ranges = np.array([0, *range(first, first + 9)])
    assert _exact(float(np.float32(first)), ranges) == first
