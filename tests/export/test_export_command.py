"""What ``keras-hybrid export`` hands on of an image's range and of int8_cpu."""

import keras
import numpy as np
import pytest
from keras import layers

from keras_hybrid import cli, export

pytestmark = pytest.mark.any_backend


class StopHereError(RuntimeError):
    pass


@pytest.fixture
def export_command(tmp_path, monkeypatch):
    """Return a function that runs the command and returns what ``to_litert`` was given."""
    image = keras.Input((32, 32, 3))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(2, 3)(image))
    keras.Model(image, x).save(tmp_path / "model.keras")
    given = {}

    def to_litert(model, path, **options):
        given.update(options)
        raise StopHereError("seen")

    monkeypatch.setattr(export, "to_litert", to_litert)

    def run(*arguments):
        paths = [str(tmp_path / name) for name in ("model.keras", "out.tflite")]
        assert cli.main(["export", *paths, "--to", "litert", *arguments]) == 1
        return given

    return run


REPRESENTATIVE = ("--representative", "synthetic:4x3")


def test_a_range_is_handed_on_and_calibration_images_are_brought_to_it(export_command):
    plain = export_command("--quantize", "int8", *REPRESENTATIVE)["representative_data"]
    assert plain.dtype == np.uint8
    given = export_command("--quantize", "int8", *REPRESENTATIVE, "--input-range", "-1", "1")
    assert given["input_range"] == (-1, 1)
    np.testing.assert_allclose(given["representative_data"], plain / 127.5 - 1, atol=1e-6)


def test_the_range_of_pixels_leaves_them_as_they_are(export_command):
    assert "input_range" not in export_command(*REPRESENTATIVE)
    given = export_command(*REPRESENTATIVE, "--input-range", "0", "255")
    assert given["input_range"] == (0, 255)
    assert given["representative_data"].dtype == np.uint8


def test_int8_cpu_is_handed_on(export_command):
    given = export_command("--quantize", "int8_cpu", *REPRESENTATIVE)
    assert given["quantization"] == "int8_cpu" and len(given["representative_data"]) == 12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--quantize", "int8_cpu"], "--quantize int8_cpu needs --representative"),
        (
            ["--input-range", "1", "0"],
            "--input-range takes two finite numbers, the smaller one first, got 1 0.",
        ),
        (["--input-range", "1"], "expected 2 arguments"),
    ],
)
def test_what_does_not_go_together_is_said(arguments, message, capsys):
    assert cli.main(["export", "m.keras", "m.tflite", "--to", "litert", *arguments]) == 2
    assert message in capsys.readouterr().err
