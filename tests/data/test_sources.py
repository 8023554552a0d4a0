import io
import logging
import struct
import threading
import unicodedata
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from keras_hybrid.data import (
    ArraySource,
    CSVSource,
    FolderSource,
    ImageSource,
    NpzSource,
    Subset,
    TFDSSource,
    UnreadableImageError,
    ZipSource,
    files,
    load_arrays,
    open_source,
    sample_per_class,
    split_source,
)
from keras_hybrid.data.files import decode_image

pytestmark = pytest.mark.any_backend

Image = pytest.importorskip("PIL.Image")
ImageOps = pytest.importorskip("PIL.ImageOps")

SHARED = Path(__file__).parents[2].parent / "shared"


def write_image(path, colour=(200, 100, 50), size=(8, 6), mode="RGB", **options):
    """Write a picture of one colour, (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).convert(mode).save(path, **options)
    return path


def write_people(root, people=("ann", "bob", "cem"), images=3):
    for number, person in enumerate(people):
        for i in range(images):
            write_image(root / person / f"{i}.png", (40 * number, 10 * i, 7))
    return root


def zip_folder(folder, path):
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, file.relative_to(folder))
    return path


# folders and archives


def test_a_folder_per_identity_gives_sorted_names_and_their_images(tmp_path):
    source = FolderSource(write_people(tmp_path))
    assert source.class_names == ["ann", "bob", "cem"]
    np.testing.assert_array_equal(source.labels, [0, 0, 0, 1, 1, 1, 2, 2, 2])
    assert source.labels.dtype == np.int32
    assert len(source) == 9
    image = source.read(4)
    assert image.shape == (6, 8, 3)
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image[0, 0], [40, 10, 7])
    assert source.paths[4] == str(tmp_path / "bob" / "1.png")


@pytest.mark.parametrize("lead", ["", "images", "some/where"])
def test_a_zip_with_a_common_leading_folder_reads_as_the_folder_does(tmp_path, lead):
    folder = tmp_path / "people"
    write_people(folder / lead)
    (folder / "readme.txt").write_text("hello")
    archive = ZipSource(zip_folder(folder, tmp_path / "people.zip"))
    plain = FolderSource(folder)
    assert archive.class_names == plain.class_names == ["ann", "bob", "cem"]
    np.testing.assert_array_equal(archive.labels, plain.labels)
    for index in range(len(plain)):
        np.testing.assert_array_equal(archive.read(index), plain.read(index))


def test_a_single_identity_is_not_taken_for_a_leading_folder(tmp_path):
    assert FolderSource(write_people(tmp_path, ["ann"])).class_names == ["ann"]


def test_other_files_are_reported_in_one_line(tmp_path, caplog):
    write_people(tmp_path)
    (tmp_path / "ann" / "Thumbs.db").write_bytes(b"x")
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / ".DS_Store").write_text("x")
    write_image(tmp_path / "stray.png")
    with caplog.at_level(logging.WARNING):
        source = FolderSource(tmp_path)
    assert len(source) == 9
    assert len(caplog.records) == 1
    assert "3 file(s) skipped" in caplog.text
    assert "Thumbs.db" in caplog.text


def test_an_empty_folder_an_empty_identity_and_a_missing_folder_stop_at_once(tmp_path):
    with pytest.raises(ValueError, match="no image"):
        FolderSource(tmp_path)
    write_people(tmp_path)
    (tmp_path / "dan").mkdir()
    with pytest.raises(ValueError, match="dan"):
        FolderSource(tmp_path)
    with pytest.raises(ValueError, match="nowhere"):
        FolderSource(tmp_path / "nowhere")


def test_images_without_folders_are_refused(tmp_path):
    write_image(tmp_path / "a.png")
    with pytest.raises(ValueError, match="folder per identity"):
        FolderSource(tmp_path)


@pytest.mark.parametrize("lead", ["", "people", "a/images"])
@pytest.mark.parametrize("stray", ["cover.jpg", "a/cover.jpg"])
def test_a_stray_image_makes_no_folder_an_identity(tmp_path, caplog, lead, stray):
    write_people(tmp_path / "f" / lead)
    stray = stray if lead.startswith("a/") else Path(stray).name
    write_image(tmp_path / "f" / stray)
    for spec in (tmp_path / "f", zip_folder(tmp_path / "f", tmp_path / "f.zip")):
        caplog.clear()
        source = open_source(spec)
        assert source.class_names == ["ann", "bob", "cem"]
        assert "1 file(s) skipped" in caplog.text and "cover.jpg" in caplog.text


@pytest.mark.parametrize("lead", ["", "people"])
@pytest.mark.parametrize("images", [(9, 9), (50,)])
def test_a_person_whose_photographs_are_sorted_by_year_stays_one_beside_others(
    tmp_path, lead, images
):
    write_people(tmp_path / lead)  # ann, bob and cem
    for year, count in enumerate(images):
        for number in range(count):
            write_image(tmp_path / lead / "dan" / str(2023 + year) / f"{number}.png")
    source = open_source(tmp_path)
    assert source.class_names == ["ann", "bob", "cem", "dan"]
    assert np.bincount(source.labels)[3] == sum(images)


@pytest.mark.parametrize("name", ["set.v1.zip", "my.csv", "faces.npz", "a.rec"])
def test_a_folder_may_be_called_as_a_file(tmp_path, name):
    write_people(tmp_path / name)
    assert open_source(tmp_path / name).class_names == ["ann", "bob", "cem"]


def test_jpegs_are_read_by_every_suffix_they_have(tmp_path):
    for suffix in (".jpg", ".JPEG", ".jpe", ".jfif"):
        write_image(tmp_path / "ann" / "image.jpg")
        (tmp_path / "ann" / "image.jpg").rename(tmp_path / "ann" / f"{suffix[1:]}{suffix}")
    assert len(open_source(tmp_path)) == 4


def test_two_columns_of_one_name_are_refused(tmp_path):
    table = tmp_path / "faces.csv"
    table.write_text("file,label,label\n1.png,ann,bob\n")
    with pytest.raises(ValueError, match=r"faces\.csv has two columns of one name: label\."):
        open_source(table)


def test_a_stray_image_hides_no_choice_of_a_split(tmp_path):
    write_people(tmp_path / "train")
    write_people(tmp_path / "val", images=2)
    write_image(tmp_path / "train" / "overview.jpg")
    with pytest.raises(ValueError, match=r"folders of folders \(train, val\)"):
        open_source(tmp_path)
    assert len(open_source(tmp_path, split="val")) == 6


def test_an_identity_may_have_folders_of_its_own(tmp_path):
    write_people(tmp_path)
    for number in range(4):
        write_image(tmp_path / "ann" / "2024" / f"{number}.png")
    source = open_source(tmp_path)
    assert source.class_names == ["ann", "bob", "cem"]
    assert (
        np.bincount(source.labels).tolist()
        == [source.labels.tolist().count(1) + 4] + [source.labels.tolist().count(1)] * 2
    )


def test_split_chooses_a_sub_folder_and_must_exist(tmp_path):
    write_people(tmp_path / "f" / "train")
    write_people(tmp_path / "f" / "val", images=1)
    archive = zip_folder(tmp_path / "f", tmp_path / "f.zip")
    for spec in (tmp_path / "f", archive):
        source = open_source(spec, split="val")
        assert len(source) == 3
        assert source.class_names == ["ann", "bob", "cem"]
        with pytest.raises(ValueError, match=r"test.*train, val"):
            open_source(spec, split="test")
        with pytest.raises(ValueError, match=r"train, val.*split"):
            open_source(spec)


def test_a_zip_source_can_be_read_by_many_threads_at_once(tmp_path, monkeypatch):
    opened = []
    kind = files._OpenedZip
    monkeypatch.setattr(files, "_OpenedZip", lambda path: opened.append(path) or kind(path))
    source = ZipSource(zip_folder(write_people(tmp_path / "f", images=8), tmp_path / "f.zip"))
    expected = [source.read(i)[0, 0].tolist() for i in range(len(source))]
    wrong = []

    def work():
        for _ in range(5):
            wrong.extend(
                i for i in range(len(source)) if source.read(i)[0, 0].tolist() != expected[i]
            )

    threads = [threading.Thread(target=work) for _ in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert not wrong and len(opened) == 1  # each has the whole directory in memory


@pytest.mark.parametrize("form", ["./{}", "x//{}", "/{}"])
def test_a_zip_may_write_its_names_as_other_programs_do(tmp_path, form):
    folder = write_people(tmp_path / "f", images=1)
    with zipfile.ZipFile(tmp_path / "f.zip", "w") as archive:
        for person in ("ann", "bob", "cem"):
            if form == "./{}":  # as bsdtar and Windows write
                archive.writestr(f"./{person}/", "")
                name = f"{person}\\0.png" if person == "bob" else f"./{person}/0.png"
            else:
                name = form.format(f"{person}/0.png")
            archive.writestr(name, (folder / person / "0.png").read_bytes())
    source = ZipSource(tmp_path / "f.zip")
    assert source.class_names == ["ann", "bob", "cem"]
    np.testing.assert_array_equal(source.read(1)[0, 0], [40, 0, 7])


def test_a_damaged_or_locked_member_is_unreadable_and_named(tmp_path):
    folder = write_people(tmp_path / "f", ["ann"], images=3)
    with zipfile.ZipFile(tmp_path / "f.zip", "w", zipfile.ZIP_LZMA) as archive:
        for i in range(3):
            archive.write(folder / "ann" / f"{i}.png", f"ann/{i}.png")
    data = bytearray((tmp_path / "f.zip").read_bytes())
    start = data.index(b"ann/0.png") + len(b"ann/0.png")
    data[start : start + 40] = bytes(range(160, 200))
    # The flag of a password stands at byte 8 of the archive's own entry.
    place = data.rindex(b"ann/1.png") - 46 + 8
    data[place] |= 1
    (tmp_path / "f.zip").write_bytes(data)
    loaded = load_arrays(ZipSource(tmp_path / "f.zip"), 8)
    assert loaded.kept.tolist() == [2]
    (broken, _), (locked, reason) = loaded.skipped
    assert broken.endswith("f.zip/ann/0.png") and locked.endswith("f.zip/ann/1.png")
    assert "encrypted" in reason


def test_a_link_to_a_folder_that_it_lies_in_is_not_followed(tmp_path):
    people = write_people(tmp_path / "people", ["ann", "bob"], images=1)
    elsewhere = write_people(tmp_path / "elsewhere", ["cem"], images=1)
    try:
        (people / "ann" / "all").symlink_to("..", target_is_directory=True)
        (people / "cem").symlink_to(elsewhere / "cem", target_is_directory=True)
        (elsewhere / "cem" / "back").symlink_to(people, target_is_directory=True)
    except OSError:
        pytest.skip("no links here")
    source = FolderSource(people)
    assert [Path(path).name for path in source.paths] == ["0.png"] * 3
    assert source.class_names == ["ann", "bob", "cem"]


def test_names_that_are_no_text_have_a_fingerprint(tmp_path):
    class Odd(ImageSource):
        labels = np.zeros(1, np.int32)
        paths = ("x/\udce9.png",)  # as Python names a file of Latin-1

        def __init__(self, *class_names):
            self.class_names = list(class_names)

        def read(self, index):
            return np.zeros((4, 4, 3), np.uint8)

    assert Odd("\udce9").fingerprint() != Odd("\udce8").fingerprint()
    assert len(load_arrays(Odd("\udce9"), 4, cache=tmp_path / "cache")) == 1


def test_a_truncated_archive_is_named(tmp_path):
    path = zip_folder(write_people(tmp_path / "f"), tmp_path / "f.zip")
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"f\.zip"):
        ZipSource(path)


# what photographs bring


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("grey.png", "L"),
        ("cmyk.jpg", "CMYK"),
        ("palette.png", "P"),
        ("alpha.png", "RGBA"),
        ("alphagrey.png", "LA"),
        ("bits.png", "1"),
        ("pal.gif", "P"),
    ],
)
def test_every_colour_mode_becomes_rgb(tmp_path, name, mode):
    write_image(tmp_path / "ann" / name, (255, 255, 255), mode=mode)
    image = FolderSource(tmp_path).read(0)
    assert image.shape == (6, 8, 3)
    assert image.dtype == np.uint8
    assert image.min() > 240


@pytest.mark.parametrize("name", ["cmyk.jpg", "cmyk.tif"])
def test_inks_become_the_colours_that_they_print(tmp_path, name):
    colour = (200, 30, 90)
    write_image(tmp_path / "ann" / name, colour, mode="CMYK")
    assert Image.open(tmp_path / "ann" / name).mode == "CMYK"
    assert np.abs(FolderSource(tmp_path).read(0).astype(int) - colour).max() < 12


def test_transparency_is_shown_over_white(tmp_path):
    (tmp_path / "ann").mkdir()
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "ann" / "0.png")
    assert FolderSource(tmp_path).read(0).min() == 255


def test_16_bit_grey_is_scaled(tmp_path):
    (tmp_path / "ann").mkdir()
    values = np.array([[0, 257 * 100], [257 * 200, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "ann" / "0.png")
    image = FolderSource(tmp_path).read(0)
    np.testing.assert_array_equal(image[..., 0], [[0, 100], [200, 255]])
    np.testing.assert_array_equal(image[..., 0], image[..., 2])
    for file_format in ("PNG", "TIFF"):  # a frame in the dark is dark
        file = io.BytesIO()
        Image.fromarray(np.array([[0, 200, 257]], np.uint16)).save(file, file_format)
        assert decode_image(file.getvalue(), "x")[0, :, 0].tolist() == [0, 1, 1]


def test_floats_of_0_to_1_are_not_black():
    file = io.BytesIO()
    Image.fromarray(np.array([[0, 0.2, 1]], np.float32)).save(file, "TIFF")
    assert decode_image(file.getvalue(), "x.tif")[0, :, 0].tolist() == [0, 51, 255]


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_grey_of_32_bits_is_scaled_where_it_goes_beyond_eight(kind):
    def decode(values):
        file = io.BytesIO()
        Image.fromarray(np.array([values], kind)).save(file, "TIFF")
        return decode_image(file.getvalue(), "x.tif")[0, :, 0].tolist()

    assert decode([-3, 7, 255]) == [0, 7, 255]
    assert decode([-3, 257 * 7, 65535, 70000]) == [0, 7, 255, 255]


def test_half_transparent_colours_are_mixed_with_white():
    file = io.BytesIO()
    colours = np.array([[[200, 100, 0, 128], [200, 100, 0, 255]]], np.uint8)
    Image.fromarray(colours).save(file, "PNG")
    image = decode_image(file.getvalue(), "x.png")[0].astype(int)
    share = 128 / 255
    mixed = np.array([200, 100, 0]) * share + 255 * (1 - share)
    assert np.abs(image[0] - mixed).max() <= 1
    np.testing.assert_array_equal(image[1], [200, 100, 0])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(tmp_path, orientation):
    upright = np.zeros((16, 24, 3), np.uint8)
    upright[:8, :12] = 255  # bright upper left corner
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    (tmp_path / "ann").mkdir()
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(
        tmp_path / "ann" / "0.jpg", exif=exif, quality=95
    )
    image = FolderSource(tmp_path).read(0)
    assert image.shape == (16, 24, 3)
    assert np.abs(image.astype(int) - upright).mean() < 6


def test_a_photograph_is_upright_whatever_its_other_exif_tags_hold():
    """Orientation 6 beside a date that is stored as a fraction, which no text is."""
    tags = struct.pack("<HHHIHHHHIII", 2, 0x0112, 3, 1, 6, 0, 0x0132, 5, 1, 38, 0)
    exif = b"Exif\0\0II*\0" + struct.pack("<I", 8) + tags + struct.pack("<II", 1, 2)
    file = io.BytesIO()
    Image.fromarray(np.zeros((16, 24, 3), np.uint8)).save(file, "JPEG", exif=exif)
    with pytest.raises(AttributeError):
        ImageOps.exif_transpose(Image.open(file))
    assert decode_image(file.getvalue(), "x.jpg").shape == (24, 16, 3)


def damaged_files():
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(buffer, "JPEG")
    jpeg = buffer.getvalue()
    return {"empty.jpg": b"", "text.jpg": b"hello", "half.jpg": jpeg[: len(jpeg) // 2]}


@pytest.mark.parametrize("name", sorted(damaged_files()))
def test_a_damaged_file_raises_with_its_path(tmp_path, name):
    (tmp_path / "ann").mkdir()
    (tmp_path / "ann" / name).write_bytes(damaged_files()[name])
    source = FolderSource(tmp_path)
    with pytest.raises(UnreadableImageError, match=name) as caught:
        source.read(0)
    assert caught.value.path == str(tmp_path / "ann" / name)
    assert "0x" not in str(caught.value)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's own, before it raises
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_bytes_that_are_cut_or_changed_give_an_image_or_an_unreadable_image_error(data):
    from keras_hybrid.data.files import decode_image

    kind = data.draw(st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF"]))
    buffer = io.BytesIO()
    Image.new("RGB", (9, 7), (1, 200, 90)).save(buffer, kind)
    content = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))]
    try:
        image = decode_image(bytes(content), "x")
    except UnreadableImageError:
        return
    assert image.ndim == 3
    assert image.shape[-1] == 3
    assert image.dtype == np.uint8


def test_without_pillow_the_message_names_the_extra(tmp_path, monkeypatch):
    source = FolderSource(write_people(tmp_path))
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    with pytest.raises(ImportError, match=r"keras-hybrid\[face\]"):
        source.read(0)


# tables


def write_csv(path, rows, header="file,label,split"):
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


NUMBERED = "file,label,label_number"
PERSON = {"label_column": "person"}


def test_a_table_of_names_numbers_them_in_sorted_order_over_all_splits(tmp_path):
    write_people(tmp_path)
    table = write_csv(
        tmp_path / "t.csv",
        ["cem/0.png,cem,train", "ann/0.png,ann,test", "bob/0.png,bob,train", "bob/1.png,bob,test"],
    )
    train = CSVSource(table, split="train")
    test = open_source(table, split="test")
    assert train.class_names == test.class_names == ["ann", "bob", "cem"]
    np.testing.assert_array_equal(train.labels, [2, 1])
    np.testing.assert_array_equal(test.labels, [0, 1])
    np.testing.assert_array_equal(train.read(1)[0, 0], [40, 0, 7])
    assert train.landmarks is None
    assert len(CSVSource(table)) == 4


def test_all_splits_of_a_table_are_not_read_in_silence(tmp_path, caplog):
    write_people(tmp_path)
    rows = ["cem/0.png,cem,train", "ann/0.png,ann,test"]
    table = write_csv(tmp_path / "t.csv", rows)
    with caplog.at_level(logging.WARNING):
        CSVSource(table, split="train")
        CSVSource(write_csv(tmp_path / "one.csv", [rows[0], "ann/0.png,ann,train"]))
        CSVSource(write_csv(tmp_path / "no.csv", ["cem/0.png,cem", "ann/0.png,ann"], "file,label"))
        assert not caplog.records
        CSVSource(table)
    (record,) = caplog.records
    assert "t.csv" in record.getMessage() and "test, train" in record.getMessage()


@pytest.mark.parametrize(
    ("texts", "names"),
    [
        (["10", "9", "300"], ["9", "10", "300"]),
        (["10", "9", "ann"], ["10", "9", "ann"]),
        (["7", "007", "10"], ["007", "10", "7"]),
        (["2.5", "1.0", "10.0"], ["1.0", "10.0", "2.5"]),
        (["12345678901234567890", "2"], ["12345678901234567890", "2"]),
    ],
)
def test_labels_are_numbers_only_where_all_of_them_plainly_are(tmp_path, texts, names):
    for i in range(len(texts)):
        write_image(tmp_path / f"{i}.png")
    rows = [f"{i}.png,{text}" for i, text in enumerate(texts)]
    source = CSVSource(write_csv(tmp_path / "t.csv", rows, "file,label"))
    assert source.class_names == names
    assert [names[label] for label in source.labels] == texts


def test_names_of_a_table_are_numbered_as_folders_of_these_names(tmp_path):
    people = [str(number) for number in range(12)] + ["007"]
    folder = FolderSource(write_people(tmp_path / "people", people, images=1))
    rows = [f"{name}/0.png,{name}" for name in people]
    table = CSVSource(write_csv(tmp_path / "people" / "t.csv", rows, "file,label"))
    assert table.class_names == folder.class_names


def test_a_table_may_say_which_number_each_label_has(tmp_path):
    write_people(tmp_path)
    rows = ["ann/0.png,2,5", "bob/0.png,10,3", "cem/0.png,1,0", "ann/1.png,2,5"]
    source = CSVSource(write_csv(tmp_path / "t.csv", rows, NUMBERED))
    assert source.class_names == ["1", "10", "2"]  # 1, 2 and 4 are lost
    assert source.labels.tolist() == [2, 1, 0, 2]
    other = CSVSource(write_csv(tmp_path / "o.csv", rows, "file,person,label_number"), **PERSON)
    assert other.class_names == ["1", "2", "10"]  # the numbers are those of `label`


def test_a_file_that_is_written_in_several_ways_is_one_image(tmp_path, caplog):
    write_people(tmp_path)
    rows = ["ann/0.png,0", ".\\ann\\0.png,0", "./ann/0.png ,0", "bob//0.png,1"]
    assert len(CSVSource(write_csv(tmp_path / "t.csv", rows, "file,label"))) == 2
    assert "2 repeated rows skipped" in caplog.text


def test_files_are_found_below_images_though_the_first_is_missing(tmp_path):
    write_people(tmp_path / "images")
    rows = ["dan/0.png,0", "bob/0.png,1", "cem/0.png,2"]
    source = CSVSource(write_csv(tmp_path / "t.csv", rows, "file,label"))
    np.testing.assert_array_equal(source.read(1)[0, 0], [40, 0, 7])
    with pytest.raises(UnreadableImageError, match="dan"):
        source.read(0)


def test_people_have_the_same_names_and_numbers_from_a_mac(tmp_path):
    """Which stores é as e and an accent, and so sorts it before f."""
    names = ["Oz", "Zoran", "Zo\u00eb", "\u00d6zil"]
    apart = [unicodedata.normalize("NFD", name) for name in names]
    folder = write_people(tmp_path / "mac", apart, images=1)
    rows = [f"{name}/0.png,{name}" for name in apart]
    table = write_csv(tmp_path / "mac.csv", rows, "file,label")
    for source in (
        FolderSource(folder),
        ZipSource(zip_folder(folder, tmp_path / "mac.zip")),
        CSVSource(table, folder),
    ):
        assert source.class_names == names
        reds = [int(source.read(index)[0, 0, 0]) for index in range(4)]
        assert reds == [40 * label for label in source.labels]


def test_one_name_of_two_spellings_is_refused(tmp_path):
    write_people(tmp_path, ["ann", "Zo\u00eb", "Zoe\u0308"], images=1)
    if len(list(tmp_path.iterdir())) < 3:
        pytest.skip("this file system takes both for one")
    with pytest.raises(ValueError, match=r"two folders for Zo., .* Put them together"):
        FolderSource(tmp_path)


def test_a_table_finds_names_whose_accents_are_stored_apart(tmp_path):
    composed, apart = "Ren\u00e9", "Rene\u0301"
    folder = write_people(tmp_path / "f", ["ann", apart], images=1)
    table = write_csv(tmp_path / "t.csv", ["ann/0.png,a", f"{composed}/0.png,r"], "file,label")
    for images in (folder, zip_folder(folder, tmp_path / "f.zip")):
        source = CSVSource(table, images)
        np.testing.assert_array_equal(source.read(1)[0, 0], [40, 0, 7])


def test_a_table_may_name_its_columns_and_its_archive(tmp_path):
    archive = zip_folder(write_people(tmp_path / "f"), tmp_path / "f.zip")
    table = write_csv(tmp_path / "t.csv", ["1,ann/0.png", "0,bob/0.png"], "who,picture")
    source = open_source(table, images=archive, file_column="picture", label_column="who")
    np.testing.assert_array_equal(source.labels, [1, 0])
    np.testing.assert_array_equal(source.read(1)[0, 0], [40, 0, 7])


def test_a_table_inside_the_archive_finds_its_images(tmp_path):
    folder = tmp_path / "f"
    write_people(folder / "images")
    write_csv(folder / "index.csv", ["ann/0.png,7", "bob/0.png,300"], "file,label")
    source = CSVSource(zip_folder(folder, tmp_path / "f.zip") / "index.csv")
    assert source.class_names == ["7", "300"]
    np.testing.assert_array_equal(source.labels, [0, 1])
    np.testing.assert_array_equal(source.read(1)[0, 0], [40, 0, 7])


def test_landmarks_are_kept_and_follow_the_resizing(tmp_path):
    write_people(tmp_path)
    columns = ",".join(f"{axis}{i}" for i in range(5) for axis in "xy")
    values = ",".join(str(v) for v in range(10))
    table = write_csv(tmp_path / "t.csv", [f"ann/0.png,0,{values}"], f"file,label,{columns}")
    source = CSVSource(table)
    assert source.landmarks.dtype == np.float32
    np.testing.assert_array_equal(source.landmarks[0], np.arange(10).reshape(5, 2))
    loaded = load_arrays(source, 24)  # from 8 × 6
    # Whole numbers are pixels' centres: what keeps its place is the corner, half a pixel away.
    expected = (np.arange(10).reshape(5, 2) + 0.5) * [3, 4] - 0.5
    np.testing.assert_allclose(loaded.landmarks[0], expected)


@pytest.mark.parametrize(
    ("rows", "header", "options", "message"),
    [
        (["ann/0.png,0"], "path,label", {}, "file_column"),
        (["ann/0.png,0"], "file,who", {}, "label_column"),
        (["ann/0.png,0"], "file,label", {"split": "train"}, "split_column"),
        (["ann/0.png,0,train"], "file,label,split", {"split": "dev"}, "dev.*train"),
        ([], "file,label", {}, "no rows"),
        (["ann/0.png,-1", "bob/0.png,0"], "file,label", {}, "line 2: label -1 is negative"),
        (["ann/0.png,0", "bob/0.png,1.5"], "file,label", {"classes": 2}, "1.5.*whole number"),
        (["ann/0.png,0", "bob/0.png,"], "file,label", {}, "line 3: the label is empty"),
        (["ann/0.png,0", "bob/0.png"], "file,label", {}, "line 3: fewer values"),
        (["ann/0.png,An", "bob/0.png,Li, Bo"], "file,label", {}, "line 3: more .*quotation marks"),
        (["ann/0.png,An", 'bob/0.png,"Bo', "x,y"], "file,label", {}, "line 3: .*not closed"),
        (["ann/0.png,An", f'bob/0.png,"{"x" * 140_000}"'], "file,label", {}, "line 3: field large"),
        (["ann/0.png,0", "bob/0.png,2"], "file,label", {"classes": 2}, "line 3: label 2"),
        (["ann/0.png,0", "bob/0.png,2"], "file,label", {"classes": 3}, "no image has label 1"),
        (["ann/0.png,0", "bob/0.png,x"], "file,label", {"classes": 3}, "'x'.*whole number"),
        (["ann/0.png,0", "ann/0.png,1"], "file,label", {}, "line 2 and '1' in line 3"),
        (["ann/0.png,0", ".\\ann//0.png,1"], "file,label", {}, "line 2 and '1' in line 3"),
        (["ann/0.png,0,5", "./ann/0.png,0,6"], "file,label,x0", {}, "has x0 '5' in line 2 and '6'"),
        (["ann/0.png,A,0", "bob/0.png,B,x"], NUMBERED, {}, "line 3: label_number 'x' is not"),
        (["ann/0.png,A,0", "bob/0.png,A,1"], NUMBERED, {}, "'A' has label_number 1.*'A' has 0"),
        (["ann/0.png,A,0", "bob/0.png,B,0"], NUMBERED, {}, "'B' has label_number 0.*0 is 'A'"),
        (["ann/0.png,A,0", "bob/0.png,B,2"], NUMBERED, {"classes": 3}, "no image has label 1"),
        (["dan/0.png,0", "eve/0.png,1"], "file,label", {}, "none of the 2 files"),
        (["ann/0.png,0", "bob/0.png,1"], "file,label", {"images": ""}, "`images` is empty"),
    ],
)
def test_a_wrong_table_stops_at_once(tmp_path, rows, header, options, message):
    write_people(tmp_path)
    with pytest.raises(ValueError, match=message):
        CSVSource(write_csv(tmp_path / "t.csv", rows, header), **options)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    names=st.lists(st.text("abcé ßλ_-,\"'", min_size=1).filter(str.strip), min_size=1, max_size=8)
)
def test_any_names_survive_the_table(tmp_path, names):
    import csv

    write_image(tmp_path / "0.png")
    for i in range(len(names)):
        (tmp_path / f"{i}.png").write_bytes((tmp_path / "0.png").read_bytes())
    with (tmp_path / "t.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(
            [("file", "label"), *((f"{i}.png", n) for i, n in enumerate(names))]
        )
    source = CSVSource(tmp_path / "t.csv")
    assert [source.class_names[label] for label in source.labels] == [n.strip() for n in names]


# arrays


def test_arrays_may_be_grey_and_float(tmp_path):
    grey = np.arange(2 * 4 * 5, dtype=np.float32).reshape(2, 4, 5)
    source = open_source((grey, [1, 0]))
    assert source.read(1).shape == (4, 5, 3)
    assert source.read(1).dtype == np.uint8
    np.testing.assert_array_equal(source.read(1)[..., 2], grey[1])
    np.savez(tmp_path / "a.npz", images=grey.astype(np.uint8), labels=np.array(["b", "a"]))
    source = open_source(tmp_path / "a.npz")
    assert source.class_names == ["a", "b"]
    np.testing.assert_array_equal(source.labels, [1, 0])


def test_npz_splits_are_suffixes(tmp_path):
    x = np.zeros((2, 4, 4, 3), np.uint8)
    np.savez(tmp_path / "a.npz", x_train=x, y_train=[0, 1], x_test=x[:1], y_test=[0])
    assert len(NpzSource(tmp_path / "a.npz", split="train")) == 2
    assert len(open_source(tmp_path / "a.npz", split="test")) == 1
    with pytest.raises(ValueError, match="must hold x and y"):
        NpzSource(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("shape", "labels", "options", "message"),
    [
        ((2, 4), [0, 1], {}, "images"),
        ((2, 4, 4, 2), [0, 1], {}, "images"),
        ((2, 4, 4, 3), [0, 1, 1], {}, "labels"),
        ((2, 4, 4, 3), [0, -1], {}, "negative"),
        ((2, 4, 4, 3), [0, 0.5], {}, "whole number"),
        ((2, 4, 4, 3), [0, 2], {}, "no image has label 1; name all classes in `class_names`"),
        ((2, 4, 4, 3), [0, 1], {"classes": 3}, "no image has label 2"),
        ((2, 4, 4, 3), [0, 2], {"classes": 2}, "label 2"),
        ((2, 4, 4, 3), [0, 2], {"class_names": ["a", "b"]}, "label 2"),
    ],
)
def test_wrong_arrays_stop_at_once(shape, labels, options, message):
    with pytest.raises(ValueError, match=message):
        ArraySource(np.zeros(shape, np.uint8), np.array(labels), **options)


def test_a_damaged_npz_and_one_of_python_objects_are_named(tmp_path):
    x, path = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8), tmp_path / "a.npz"
    np.savez(path, x=x, y=np.array(["ann", None, "bob", "cem"], object))
    with pytest.raises(ValueError, match=r"a\.npz is not .* of numbers and texts: Object arrays"):
        NpzSource(path)
    np.savez_compressed(path, x=x, y=np.arange(4))
    data = bytearray(path.read_bytes())
    data[100:300] = bytes(200)
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.npz is not a complete \.npz file"):
        NpzSource(path)
    with path.open("wb") as file:
        np.save(file, x)  # a single array
    with pytest.raises(ValueError, match=r"a\.npz is not a complete \.npz file"):
        NpzSource(path)


def test_pixels_out_of_range_are_refused():
    for image in (np.full((1, 2, 2, 3), -1.0), np.full((1, 2, 2, 3), 256.0), np.ones((1, 2, 2, 3))):
        with pytest.raises(ValueError, match="images"):
            ArraySource(image, [0])


# TFDS


@pytest.fixture
def tfds():
    pytest.importorskip("tensorflow")
    tfds = pytest.importorskip("tensorflow_datasets")
    with tfds.testing.mock_data(num_examples=4):
        yield tfds


def test_tfds_class_labels_keep_their_numbers_and_names(tfds):
    source = TFDSSource("cifar10", "test", download=False)
    assert len(source) == 4
    assert len(source.class_names) == 10
    assert source.read(3).shape == (32, 32, 3)
    with pytest.raises(ValueError, match=r"label_key.*id, image, label"):
        open_source("tfds:cifar10", label_key="identity", download=False)


def test_tfds_text_labels_are_numbered_in_sorted_order(tfds):
    source = open_source("tfds:lfw", download=False)
    assert source.class_names == sorted(source.class_names)
    assert source.labels.max() == len(source.class_names) - 1
    assert source.read(0).shape == (250, 250, 3)


# opening, splitting


def test_synthetic_identities_open_by_their_numbers():
    source = open_source("synthetic:3x4", image_size=16, seed=2)
    assert len(source) == 12
    assert len(source.class_names) == 3
    assert source.read(0).shape == (16, 16, 3)


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ("no/such/folder", {}, "does not exist.*synthetic"),
        ("", {}, "`spec` is empty"),
        ("synthetic:12", {}, "IDENTITIESxIMAGES"),
        ("synthetic:2x2", {"split": "train"}, "split_source"),
        ("synthetic:2x2", {"images": "x"}, "images"),
        ("synthetic:2x2", {"speed": 3}, "speed.*accepted.*seed"),
    ],
)
def test_what_cannot_be_opened_is_named_with_what_is_accepted(spec, options, message):
    with pytest.raises(ValueError, match=message):
        open_source(spec, **options)


def test_an_unknown_file_type_and_an_unknown_option_are_named(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"x")
    with pytest.raises(ValueError, match="unknown type"):
        open_source(tmp_path / "a.tar")
    with pytest.raises(ValueError, match=r"classes.*accepted: none"):
        open_source(write_people(tmp_path / "f"), classes=3)


@settings(max_examples=30, deadline=None)
@given(
    counts=st.lists(st.integers(1, 12), min_size=1, max_size=6),
    fraction=st.floats(0.05, 0.95),
    seed=st.integers(0, 5),
)
def test_split_is_a_stratified_deterministic_partition(counts, fraction, seed):
    labels = np.repeat(np.arange(len(counts)), counts)
    source = ArraySource(
        np.arange(len(labels))[:, None, None].repeat(2, 2).astype(np.uint8), labels
    )
    train, test = split_source(source, fraction, seed)
    assert sorted([*train.indices, *test.indices]) == list(range(len(labels)))
    for label, count in enumerate(counts):
        taken = (test.labels == label).sum()
        if count == 1:
            assert taken == 0
        else:
            assert 1 <= taken < count
            assert abs(taken - fraction * count) <= 1
    again = split_source(source, fraction, seed)
    np.testing.assert_array_equal(test.indices, again[1].indices)
    if len(test):
        np.testing.assert_array_equal(test.read(0), source.read(test.indices[0]))


def test_split_draws_from_each_class_by_its_own_seed():
    labels = np.random.default_rng(0).integers(0, 9, 100)
    source = ArraySource(np.zeros((100, 2, 2), np.uint8), labels)
    expected = []
    for label in range(9):
        members = np.flatnonzero(labels == label)
        drawn = np.random.default_rng([3, label]).permutation(members)
        expected += drawn[: round(0.3 * len(members))].tolist()
    _, test = split_source(source, 0.3, seed=3)
    assert test.indices.tolist() == sorted(expected)
    assert test.paths == [source.paths[i] for i in sorted(expected)]


@given(counts=st.lists(st.integers(1, 9), min_size=1, max_size=6), number=st.integers(1, 8))
def test_a_sample_has_so_many_of_each_class_and_grows_with_the_number(counts, number):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    source = ArraySource(np.zeros((len(labels), 2, 2), np.uint8), labels)
    sample = sample_per_class(source, number, seed=2)
    assert np.bincount(sample.labels).tolist() == [min(number, count) for count in counts]
    assert sample.indices.tolist() == sorted(set(sample.indices))
    larger = sample_per_class(source, number + 1, seed=2)
    assert set(sample.indices) <= set(larger.indices)


def test_another_seed_draws_others_and_no_image_is_none_of_any_class():
    source = ArraySource(np.zeros((40, 2, 2), np.uint8), np.repeat([0, 1], 20))
    drawn = {tuple(sample_per_class(source, 5, seed).indices) for seed in range(4)}
    assert len(drawn) == 4
    with pytest.raises(ValueError, match="number"):
        sample_per_class(source, 0)


def test_a_subset_refuses_what_the_source_does_not_have():
    source = open_source("synthetic:1x2", image_size=8)
    with pytest.raises(ValueError, match="indices"):
        Subset(source, [2])
    with pytest.raises(ValueError, match="fraction"):
        split_source(source, 1.0)
    with pytest.raises(ValueError, match="`seed` must be 0 or a positive integer, got -1"):
        split_source(source, 0.5, seed=-1)


def test_the_real_archives_open():
    if not (SHARED / "data" / "lfw_112.zip").exists():
        pytest.skip("the LFW archive is not here")
    source = open_source(SHARED / "data" / "lfw_112.zip" / "index.csv", label_column="identity")
    assert len(source) == 9056
    assert source.landmarks.shape == (9056, 5, 2)
    assert source.read(17).shape == (112, 112, 3)
    train = open_source(
        SHARED / "data" / "celeba_306_split.csv",
        images=SHARED / "data" / "celeba_faces_112.zip",
        split="train",
        classes=306,
    )
    assert len(train) == 6869
    assert len(train.class_names) == 306
