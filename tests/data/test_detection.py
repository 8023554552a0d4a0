import csv
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import keras_hybrid as kh
from keras_hybrid.cli import main
from keras_hybrid.data import Face, FaceDetector, align_face, face_template, write_crops

pytestmark = pytest.mark.any_backend

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
YUNET = SHARED / "pretrained" / "yunet_n_dynamic.onnx"


class Corners:
    """Finds a face of each size in `sides`, the largest first, at the photograph's upper left."""

    def __init__(self, *sides):
        self.sides = sides

    def find(self, image):
        faces = [
            Face((0, 0, side, side), face_template(side), 0.9)
            for side in self.sides
            if side <= image.shape[1]
        ]
        return sorted(faces, key=lambda face: -face.box[2])


def save(path, colour=(200, 30, 30), size=(120, 120)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


@pytest.fixture
def photographs(tmp_path):
    """Two people and one whose files give no crop: broken, and without a face."""
    folder = tmp_path / "photographs"
    save(folder / "Ana" / "first.png")
    save(folder / "Ana" / "first.jpg", (30, 200, 30))
    save(folder / "Bo" / "album" / "portrait.png", (30, 30, 200))
    (folder / "Cy").mkdir()
    (folder / "Cy" / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing more")
    save(folder / "Cy" / "wall.png", size=(40, 40))
    return folder


def table(folder):
    with (folder / "index.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_what_is_written_trains_as_a_folder_and_as_a_table(photographs, tmp_path, caplog):
    out = tmp_path / "crops"
    with caplog.at_level(logging.WARNING):
        crops = write_crops(kh.data.open_source(photographs), out, Corners(112), 112)
    assert (crops.written, crops.unreadable, crops.without_face) == (3, 1, 1)
    assert (crops.small, crops.crowded, crops.several, crops.lost) == (0, 0, 0, ("Cy",))
    said = caplog.text
    assert "broken.jpg" in said and "wall.png: no face was found" in said
    assert "1 classes have no crop: Cy" in said

    caplog.clear()
    folder = kh.data.open_source(out)
    assert not caplog.records  # index.csv is known
    assert folder.class_names == ["Ana", "Bo"] and folder.labels.tolist() == [0, 0, 1]
    assert sorted(Path(p).name for p in folder.paths) == [
        "first.png",
        "first_2.png",
        "portrait.png",
    ]
    listed = kh.data.open_source(out / "index.csv")
    assert listed.class_names == folder.class_names
    np.testing.assert_allclose(listed.landmarks, np.tile(face_template(112), (3, 1, 1)), atol=0.01)
    for source in (folder, listed):
        colours = {tuple(source.read(i)[50, 50].tolist()) for i in range(3)}
        assert (200, 30, 30) in colours and (30, 30, 200) in colours
    rows = table(out)
    assert {row["label"] for row in rows} == {"Ana", "Bo"}
    assert all(row["photograph"].startswith(str(photographs)) for row in rows)


def test_the_crop_is_the_face_and_the_landmarks_lie_in_it(tmp_path):
    """Turned, scaled and shifted landmarks come to lie on the template, as does what is there."""
    angle, scale, shift = 0.3, 2.5, np.array([90.0, 40.0])
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    landmarks = face_template(64) @ turn.T + shift
    photograph = np.random.default_rng(0).integers(0, 256, (320, 320, 3), np.uint8)

    class Found:
        def find(self, image):
            return [Face((0, 0, 1, 1), landmarks, 0.8)]

    source = kh.data.ArraySource(photograph[None], np.zeros(1, np.int32))
    assert write_crops(source, tmp_path / "out", Found(), 64).written == 1
    (row,) = table(tmp_path / "out")
    written = np.asarray(Image.open(tmp_path / "out" / row["file"]))
    np.testing.assert_array_equal(written, align_face(photograph, landmarks, 64, antialias=True))
    moved = np.array([float(row[f"{axis}{i}"]) for i in range(5) for axis in "xy"]).reshape(5, 2)
    np.testing.assert_allclose(moved, face_template(64), atol=0.01)


def test_faces_too_small_and_photographs_of_several_people(photographs, tmp_path):
    source = kh.data.open_source(photographs)
    # The template's eyes are 35 of 112 pixels apart: 12.6 of 40.
    small = write_crops(source, tmp_path / "large", Corners(112, 40), 32)
    assert (small.written, small.several, small.small) == (3, 3, 1)
    every = write_crops(source, tmp_path / "all", Corners(40), 32, smallest_eye_distance=12)
    assert (every.written, every.small, every.lost) == (4, 0, ())
    alone = write_crops(
        source, tmp_path / "alone", Corners(112, 30), 32, several="skip", smallest_eye_distance=5
    )
    assert (alone.written, alone.crowded, alone.several) == (1, 3, 0)


def test_names_that_are_no_names_of_folders_stay_in_the_folder(tmp_path):
    names = ["../up", "A/B", "a/b", "..", "Zoë"]
    names += ["index.csv", "con", "\u00a0Ana", "Ä" * 200, "caf\udce9"]
    source = kh.data.ArraySource(np.full((10, 64, 64, 3), 90, np.uint8), np.arange(10))
    source.class_names = names
    out = tmp_path / "crops"
    assert write_crops(source, out, Corners(64), 64, quality=90).written == 10
    assert sorted(p.name for p in tmp_path.iterdir()) == ["crops"]
    rows = table(out)
    assert all(row["label"] == Path(row["file"]).parent.name for row in rows)
    folders = dict(zip(names, (row["label"] for row in rows), strict=True))
    assert folders == {
        "../up": "_up",
        "A/B": "A_B",
        "a/b": "a_b_2",
        "..": "_",
        "Zoë": "Zoë",
        "index.csv": "index.csv_2",
        "con": "con_",
        "\u00a0Ana": "Ana",
        "Ä" * 200: "Ä" * 60,
        "caf\udce9": "caf_",
    }
    assert {p.suffix for p in out.rglob("*") if p.is_file()} == {".jpg", ".csv"}


def test_folders_and_table_have_the_same_numbers(tmp_path):
    """People with numbers for names, which a folder sorts as texts and a table as numbers."""
    source = kh.data.ArraySource(np.full((12, 64, 64, 3), 90, np.uint8), np.arange(12))
    assert write_crops(source, tmp_path / "crops", Corners(64), 64).written == 12
    folder = kh.data.open_source(tmp_path / "crops")
    listed = kh.data.open_source(tmp_path / "crops" / "index.csv")
    assert folder.class_names == listed.class_names == sorted(map(str, range(12)))
    assert dict(zip(folder.paths, folder.labels, strict=True)) == dict(
        zip(listed.paths, listed.labels, strict=True)
    )


def test_what_was_written_before_an_interruption_is_in_the_table(photographs, tmp_path):
    class Interrupted(Corners):
        def find(self, image):
            if image[0, 0, 2] > 150:
                raise KeyboardInterrupt
            return super().find(image)

    with pytest.raises(KeyboardInterrupt):
        write_crops(kh.data.open_source(photographs), tmp_path / "crops", Interrupted(112))
    assert len(table(tmp_path / "crops")) == 2
    assert kh.data.open_source(tmp_path / "crops").class_names == ["Ana"]
    with pytest.raises(ValueError, match=r"must be new or empty; it holds Ana, index\.csv"):
        write_crops(kh.data.open_source(photographs), tmp_path / "crops", Corners(112))


def test_bad_arguments_are_named(photographs, tmp_path):
    source = kh.data.open_source(photographs)
    for options, message in (
        ({"several": "first"}, "`several` must be 'largest' or 'skip', got 'first'"),
        ({"quality": 0}, r"`quality` must be an integer in \[1, 100\] or None, got 0"),
        ({"image_size": 0}, "`image_size` must be a positive integer"),
        ({"smallest_eye_distance": float("nan")}, "`smallest_eye_distance` must be ≥ 0, got nan"),
    ):
        with pytest.raises(ValueError, match=message):
            write_crops(source, tmp_path / "crops", Corners(112), **options)
    assert not (tmp_path / "crops").exists()
    for _ in range(2):  # nothing is left in the way of another try
        with pytest.raises(
            ValueError, match=r"no crop of 5 photographs was made \(unreadable 1, without face 4\)"
        ):
            write_crops(source, tmp_path / "none", Corners())


def test_a_detector_that_is_none_is_named(tmp_path, capsys):
    with pytest.raises(ValueError, match=r"there is no file .*yunet\.onnx with a face detector"):
        FaceDetector(tmp_path / "yunet.onnx")
    with pytest.raises(ValueError, match=r"`confidence` must be in \[0, 1\], got 2"):
        FaceDetector(tmp_path / "yunet.onnx", confidence=2)
    command = ["align", str(tmp_path), str(tmp_path / "out"), "--detector"]
    assert main([*command, str(tmp_path / "yunet.onnx")]) == 1
    assert "there is no file" in capsys.readouterr().err
    assert main([*command, "yunet.onnx", "--quality", "101"]) == 2
    assert "--quality must be in [1, 100], got 101" in capsys.readouterr().err
    assert main([*command, "yunet.onnx", "--eye-distance", "-1"]) == 2
    assert "-1 is not at least 0" in capsys.readouterr().err


def test_without_opencv_it_is_said_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    (tmp_path / "yunet.onnx").write_bytes(b"")
    with pytest.raises(ImportError, match=r'pip install "keras-hybrid\[detect\]"'):
        FaceDetector(tmp_path / "yunet.onnx")


@pytest.fixture(scope="module")
def yunet():
    pytest.importorskip("cv2")
    if not YUNET.exists():
        pytest.skip("../shared/data has no detector here")
    return FaceDetector(YUNET)


@pytest.fixture(scope="module")
def people():
    faces = SHARED / "orl_faces.npz"
    if not faces.exists():
        pytest.skip("../shared/data has no faces here")
    grey = np.load(faces)["x"].reshape(40, 10, 112, 92)
    return np.repeat(grey[..., None], 3, axis=-1)


def enlarged(face, height):
    return np.array(Image.fromarray(face).resize((height * 92 // 112, height), Image.BICUBIC))


def test_a_face_that_fills_the_photograph_is_found_beside_a_bystander(yunet, people):
    """At full size a detector overlooks it, and would take the small face for the person's."""
    for person in range(6):
        photograph = enlarged(people[person, 0], 1200)
        small = enlarged(people[person + 10, 0], 150)
        photograph[: small.shape[0], : small.shape[1]] = small
        faces = yunet.find(photograph)
        assert faces[0].box[3] > 600
        assert sum(face.box[3] > 300 for face in faces) == 1  # once, not once for each search
        assert any(face.box[3] < 200 for face in faces)


def test_small_faces_of_a_large_photograph_are_found(yunet, people):
    photograph = np.full((1500, 2400, 3), 128, np.uint8)
    for number in range(6):
        face = enlarged(people[number, 0], 112)
        left = 200 + 360 * number
        photograph[700:812, left : left + 92] = face
    assert len(yunet.find(photograph)) >= 5


def test_the_command_cuts_real_faces_out(tmp_path, capsys, yunet, people):
    """AT&T's faces in a larger photograph: the crops have the eyes where the template has them."""
    for number, person in enumerate(people[:3, :2]):
        for shot, face in enumerate(person):
            photograph = np.full((300, 400, 3), 128, np.uint8)
            photograph[60:284, 100:284] = enlarged(face, 224)
            path = tmp_path / "photographs" / f"person {number}" / f"{shot}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(photograph).save(path, quality=95)
    out = tmp_path / "crops"
    command = ["align", str(tmp_path / "photographs"), str(out), "--detector", str(YUNET)]
    assert main([*command, "--quality", "95"]) == 0
    printed = capsys.readouterr().out
    assert "crops             6" in printed and "identities        3" in printed
    source = kh.data.open_source(out / "index.csv")
    assert source.class_names == [f"person {i}" for i in range(3)]
    assert source.read(0).shape == (112, 112, 3)
    # A real face is not the template, but its similarity brings it near.
    assert np.abs(source.landmarks - face_template(112)).mean() < 4
    # Found again in the crop, the eyes and the mouth are where the table says.
    for row in range(len(source)):
        (again,) = yunet.find(source.read(row))
        distances = np.linalg.norm(again.landmarks - source.landmarks[row], axis=1)
        assert distances.mean() < 4
