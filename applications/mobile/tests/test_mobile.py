"""The sources and pages for phones name what the exporter writes and the command line takes."""

import re
import shlex
from pathlib import Path

import pytest

import keras_hybrid as kh
from keras_hybrid.cli.arguments import build_parser
from keras_hybrid.export.conversion import SIGNATURE
from keras_hybrid.export.preparation import IMAGE, prepare

FOLDER = Path(__file__).parents[1]
README = (FOLDER / "README.md").read_text("utf-8")
CHECK = (FOLDER / "check_device.md").read_text("utf-8")
KOTLIN = (FOLDER / "android" / "FaceEmbedder.kt").read_text("utf-8")
SWIFT = (FOLDER / "ios" / "FaceEmbedder.swift").read_text("utf-8")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """What an export of a face model's embedding puts into the file, short of converting it."""
    model = kh.create_model("mobilefacenet", classes=2)
    return prepare(model, "embedding", tmp_path_factory.mktemp("prepared"))


def commands(text: str) -> list[list[str]]:
    """The lines of a page's shell blocks, split as a shell does."""
    blocks = re.findall(r"^```bash\n(.*?)^```$", text, re.M | re.S)
    return [shlex.split(line) for block in blocks for line in block.splitlines()]


def test_sources_name_the_tensors_of_the_file(prepared):
    (output,) = prepared.output_names
    constants = dict(re.findall(r'const val (\w+) = "(\w+)"', KOTLIN))
    assert constants == {"SIGNATURE": SIGNATURE, "INPUT": IMAGE, "OUTPUT": output}
    names = dict(re.findall(r'static let (\w+) = "(\w+)"', SWIFT))
    assert names == {"inputName": IMAGE, "outputName": output}


def test_sources_take_the_models_size(prepared):
    height, width, channels = prepared.image_shape
    assert re.findall(r"val size: Int = (\d+)", KOTLIN) == [str(height)]
    assert re.findall(r"size: Int = (\d+)", SWIFT) == [str(width)]
    assert f"float32 (1, {height}, {width}, {channels})" in README


def test_the_page_names_the_tensors_of_the_file(prepared):
    (output,) = prepared.output_names
    assert f"signature `{SIGNATURE}` takes `{IMAGE}`" in README
    assert f"returns `{output}`" in README
    assert f'get_signature_runner("{SIGNATURE}")' in README
    assert f'embed({IMAGE}=crop[None])["{output}"]' in README
    runs = [line for line in commands(CHECK) if "taskset" in line]
    assert len(runs) == 3
    assert all(f"--signature_to_run_for={SIGNATURE}" in line for line in runs)


@pytest.mark.parametrize("page", [README, CHECK], ids=["README.md", "check_device.md"])
def test_the_command_line_takes_the_commands(page):
    own = [line[1:] for line in commands(page) if line[0] == "keras-hybrid"]
    assert own
    for line in own:
        given = build_parser().parse_args(line)
        given.check(given)
        assert (given.to, given.output) == ("litert", "embedding")


def test_files_that_are_measured_are_those_exported():
    lines = commands(CHECK)
    exported = [line[3] for line in lines if line[:2] == ["keras-hybrid", "export"]]
    (pushed,) = [line[2:-1] for line in lines if line[:2] == ["adb", "push"]]
    measured = [Path(match) for match in re.findall(r"--graph=(\S+)", CHECK)]
    assert pushed == ["benchmark_model", *exported]
    assert [path.name for path in measured] == exported
    assert all(path.parent == Path("/data/local/tmp") for path in measured)
    assert set(re.findall(r"`(face\w*\.tflite)`", CHECK)) == set(exported)
    assert f'fileName: String = "{exported[0]}"' in KOTLIN
