import pytest

from applications.face_id import recogniser
from applications.face_id.__main__ import main
from applications.face_id.calibrate import calibration_file
from applications.face_id.tests.conftest import CALIBRATION, Colours, Tiles


@pytest.fixture
def arguments(tmp_path, monkeypatch):
    """A command with stubs for what reads files; the server does not run."""
    monkeypatch.setattr(recogniser, "Detector", lambda path: Tiles())
    monkeypatch.setattr(recogniser, "Embedder", lambda path: Colours())
    names = {"model": "model.tflite", "detector": "yunet.onnx", "gallery": "gallery.db"}
    return [word for key, name in names.items() for word in (f"--{key}", str(tmp_path / name))]


@pytest.fixture
def started(monkeypatch):
    """What the server was started with."""
    options = {}
    monkeypatch.setattr("uvicorn.run", lambda app, **given: options.update(given))
    return options


def test_the_program_is_bound_to_loopback_and_logs_no_names(arguments, started, tmp_path, capsys):
    CALIBRATION.write(calibration_file(tmp_path / "model.tflite"))
    assert main(arguments) == 0
    assert (started["host"], started["access_log"]) == ("127.0.0.1", False)
    assert capsys.readouterr().err == ""


def test_it_is_said_when_there_is_no_calibration_or_no_loopback(arguments, started, capsys):
    assert main([*arguments, "--host", "192.168.0.2"]) == 0
    assert started["host"] == "192.168.0.2"
    said = capsys.readouterr().err
    assert "shown without a verdict" in said and "nobody logs in" in said


def test_a_calibration_of_another_model_stops_the_program(arguments, started, tmp_path, capsys):
    file = tmp_path / "other.json"
    file.write_text("{}")
    assert main([*arguments, "--calibration", str(file)]) == 1
    assert "other.json is not a calibration" in capsys.readouterr().err
    assert started == {}


@pytest.mark.parametrize("rate", ["0", "1", "-3"])
def test_a_rate_is_between_none_and_all(arguments, rate, capsys):
    with pytest.raises(SystemExit):
        main([*arguments, "--false-accepts", rate])
    assert "is not between 0 and 1" in capsys.readouterr().err
