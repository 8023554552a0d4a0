import re
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from applications.face_id import recogniser
from applications.face_id.__main__ import main
from applications.face_id.calibrate import calibration_file
from applications.face_id.tests.conftest import CALIBRATION, Colours, Tiles


@pytest.fixture
def arguments(tmp_path, monkeypatch):
    """A command with stubs for what reads files; the server does not run."""
    monkeypatch.setattr("keras_hybrid.data.FaceDetector", lambda path: Tiles())
    monkeypatch.setattr(recogniser, "Embedder", lambda path: Colours())
    names = {"model": "model.tflite", "detector": "yunet.onnx", "gallery": "gallery.db"}
    return [word for key, name in names.items() for word in (f"--{key}", str(tmp_path / name))]


@pytest.fixture
def started(monkeypatch):
    """What the server was started with."""
    options = {}
    monkeypatch.setattr("uvicorn.run", lambda app, **given: options.update(given, app=app))
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


def test_its_port_is_not_that_of_the_page_that_compares_two_faces(arguments, started):
    """What a browser keeps for one of two programs at an address, the other meets."""
    page = Path(main.__code__.co_filename).parents[1] / "browser" / "README.md"
    (other,) = re.findall(r"http\.server .* (\d+)$", page.read_text("utf-8"), re.M)
    assert main(arguments) == 0
    assert started["port"] == 8010 != int(other)


@pytest.mark.parametrize("host", ["::1", "0:0:0:0:0:0:0:1", "[::1]"])
def test_ipv6_stands_in_brackets(arguments, started, host, capsys):
    assert main([*arguments, "--host", host]) == 0
    assert started["host"] == "::1"
    said = capsys.readouterr()
    assert "Open http://[::1]:8010 in" in said.out and "nobody logs in" not in said.err
    client = TestClient(started["app"])
    for asked, status in (("[::1]:8010", 200), ("[::2]:8010", 400)):
        assert client.get("/", headers={"host": asked}).status_code == status


def test_another_address_of_ipv6_is_let_in_and_warned_of(arguments, started, capsys):
    assert main([*arguments, "--host", "FD00::2"]) == 0
    assert "everybody who reaches [fd00::2] may use" in capsys.readouterr().err
    answer = TestClient(started["app"]).get("/", headers={"host": "[fd00::2]:8010"})
    assert answer.status_code == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "0", "::", "0::0", ""])
def test_an_address_that_no_browser_sends_is_refused(arguments, started, host, capsys):
    with pytest.raises(SystemExit):
        main([*arguments, "--host", host])
    assert "the host name that browsers will use" in capsys.readouterr().err
    assert started == {}


def test_a_calibration_of_another_model_stops_the_program(arguments, started, tmp_path, capsys):
    file = tmp_path / "other.json"
    file.write_text("{}")
    assert main([*arguments, "--calibration", str(file)]) == 1
    assert "other.json is not a calibration" in capsys.readouterr().err
    assert started == {}


@pytest.mark.parametrize("port", ["0", "99999", "http"])
def test_a_port_is_one_that_there_is(arguments, port, capsys):
    with pytest.raises(SystemExit):
        main([*arguments, "--port", port])
    assert f"{port!r} is not a port, 1 to 65535" in capsys.readouterr().err


@pytest.mark.parametrize("rate", ["0", "1", "-3"])
def test_a_rate_is_between_none_and_all(arguments, rate, capsys):
    with pytest.raises(SystemExit):
        main([*arguments, "--false-accepts", rate])
    assert "is not between 0 and 1" in capsys.readouterr().err
