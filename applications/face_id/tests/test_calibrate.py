import json

import numpy as np
import pytest
from PIL import Image

from applications.face_id import calibrate
from applications.face_id.calibrate import Calibration, Point, measure
from applications.face_id.tests.conftest import CALIBRATION, MODEL


def people(count=60, each=3, dim=16, seed=0):
    rng = np.random.default_rng(seed)
    centres = np.repeat(rng.normal(size=(count, dim)), each, axis=0)
    drawn = (centres + 0.6 * rng.normal(size=centres.shape)).astype(np.float32)
    labels = np.repeat(np.arange(count), each)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True), labels


def test_rates_are_those_of_all_pairs():
    embeddings, labels = people()
    calibration = measure(embeddings, labels, MODEL, "drawn")
    pairs = [
        (float(embeddings[i] @ embeddings[j]), labels[i] == labels[j])
        for i in range(len(labels))
        for j in range(i)
    ]
    same = np.array([score for score, is_same in pairs if is_same])
    different = np.array([score for score, is_same in pairs if not is_same])
    assert (calibration.same_pairs, calibration.different_pairs) == (180, 180 * 179 // 2 - 180)
    assert (calibration.people, calibration.photographs) == (60, 180)
    for point in calibration.points:
        # Half a float32's step below: products in another order round differently.
        cut = point.threshold - 1e-6
        assert point.false_accepts == pytest.approx(np.mean(different >= cut), abs=1.1 / 15930)
        assert point.true_accepts == pytest.approx(np.mean(same >= cut), abs=1.1 / 180)
    rates, thresholds, _ = zip(*calibration.points, strict=True)
    assert list(rates) == sorted(rates) and list(thresholds) == sorted(thresholds)[::-1]
    assert rates[0] == pytest.approx(30 / calibration.different_pairs)
    assert rates[-1] == pytest.approx(0.1, rel=0.01)


def test_the_threshold_keeps_the_rate_that_is_asked_for():
    assert CALIBRATION.at(0.02).threshold == 0.5
    assert CALIBRATION.at(0.01).threshold == 0.5
    assert CALIBRATION.at(0.009).threshold == 0.7
    assert CALIBRATION.at(1e-4).threshold == 0.9
    assert CALIBRATION.at(1e-9) == Point(1e-4, 0.9, 0.8)  # the strictest that was measured


@pytest.mark.parametrize(("count", "each"), [(60, 1), (12, 3)])
def test_too_few_pairs_say_nothing(count, each):
    with pytest.raises(ValueError, match="at least 30 and 3000 are needed"):
        measure(*people(count, each), MODEL, "few")


def test_one_photograph_in_many_folders_leaves_real_thresholds():
    """The best scores are tied then, and more of them than the lowest rate allows."""
    embeddings, labels = people()
    embeddings[0:30:3] = embeddings[0]
    calibration = measure(embeddings, labels, MODEL, "drawn")
    strictest = calibration.at(0)
    assert strictest.threshold == pytest.approx(1, abs=1e-5)
    assert strictest.false_accepts == pytest.approx(45 / calibration.different_pairs)


def test_a_pair_of_one_person_above_all_tied_strangers_is_no_rate_of_nought():
    embeddings, labels = people()
    embeddings[0:30:3] = 0.995 * embeddings[0]
    embeddings[31] = embeddings[32]
    calibration = measure(embeddings, labels, MODEL, "drawn")
    assert calibration.at(0).false_accepts == pytest.approx(45 / calibration.different_pairs)


def test_a_calibration_is_read_back_and_belongs_to_its_model(tmp_path):
    file = tmp_path / "calibration.json"
    CALIBRATION.write(file)
    assert Calibration.read(file, MODEL) == CALIBRATION
    with pytest.raises(ValueError, match="another model"):
        Calibration.read(file, "f" * 64)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"points": [[1, 2]]}', '{"points": []}'])
def test_other_files_are_not_calibrations(tmp_path, text):
    file = tmp_path / "calibration.json"
    file.write_text(text)
    with pytest.raises(ValueError, match="is not a calibration"):
        Calibration.read(file, MODEL)
    CALIBRATION.write(file)
    content = json.loads(file.read_text()) | {"points": []}
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="no points"):
        Calibration.read(file, MODEL)
    file.write_text(json.dumps(content | {"points": [[0.0, float("inf"), 0.0]]}))
    with pytest.raises(ValueError, match="not finite"):
        Calibration.read(file, MODEL)


def test_where_the_file_goes_is_known_before_the_work(tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(calibrate, "_calibrate", lambda given: asked.append(1) or CALIBRATION)
    paths = ["--model", "face.tflite", "--detector", "yunet.onnx", "--data", "people/"]
    (tmp_path / "file").touch()
    assert calibrate.main([*paths, "--out", str(tmp_path / "file/cal.json")]) == 1
    assert "file" in capsys.readouterr().err and not asked
    out = tmp_path / "new" / "folder" / "cal.json"
    assert calibrate.main([*paths, "--out", str(out)]) == 0
    assert Calibration.read(out, MODEL) == CALIBRATION
    assert [file.name for file in out.parent.iterdir()] == ["cal.json"]


def test_too_few_photographs_are_told_before_any_is_embedded(tmp_path, monkeypatch, capsys):
    for row in range(6 * 12):
        file = tmp_path / "people" / f"person {row % 6}" / f"{row}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(file)
    monkeypatch.setattr(calibrate, "Recogniser", lambda *parts: None)
    monkeypatch.setattr(calibrate, "Embedder", lambda path: None)
    monkeypatch.setattr("keras_hybrid.data.FaceDetector", lambda path: None)
    (tmp_path / "face.tflite").touch()
    paths = ["--model", str(tmp_path / "face.tflite"), "--detector", "yunet.onnx"]
    assert calibrate.main([*paths, "--data", str(tmp_path / "people")]) == 1
    said = capsys.readouterr().err
    assert "36 pairs of one person and 240 of different people; at least 30 and 3000" in said


def test_a_model_that_is_not_there_leaves_no_folder_behind(tmp_path, capsys):
    model = str(tmp_path / "nowhere/face.tflite")
    paths = ["--model", model, "--detector", "yunet.onnx", "--data", "people/"]
    assert calibrate.main(paths) == 1
    assert capsys.readouterr().err.startswith("error: ")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--photographs", "-5", "'-5' is no number from 2 to 10,000"),
        ("--photographs", "10001", "'10001' is no number from 2 to 10,000"),
        ("--seed", "-1", "'-1' is not 0 or a positive integer"),
    ],
)
def test_counts_without_a_meaning_are_refused(option, value, message, capsys):
    paths = ["--model", "face.tflite", "--detector", "yunet.onnx", "--data", "people/"]
    with pytest.raises(SystemExit):
        calibrate.main([*paths, f"{option}={value}"])
    assert message in capsys.readouterr().err
