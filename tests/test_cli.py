"""The command line, run in this process."""

import dataclasses
import importlib.util
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_hybrid as kh
from keras_hybrid import export
from keras_hybrid.cli import main
from keras_hybrid.cli.arguments import build_parser
from tests.cases import SMALL, predict
from tests.convert.test_loading import checkpoint_of
from tests.data.test_recordio import image_record, write
from tests.explain.models import TINY_FACEREC

pytestmark = pytest.mark.any_backend

image_module = pytest.importorskip("PIL.Image", reason="the command line reads images with Pillow")

SIZE = 32
PEOPLE = 5
NAMES = ["Ada", "Björk", "Chidi", "Duong", "Eve"]


def spread(model):
    """Weights of a trained model's size: what was never trained embeds everything alike."""
    generator = np.random.default_rng(0)
    for variable in model.trainable_variables:
        if len(variable.shape) > 1:
            scale = 1.5 / np.sqrt(np.prod(variable.shape[:-1]))
            variable.assign(generator.normal(0, scale, variable.shape))
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model, a folder of five people with four images each, and pairs of them."""
    folder = tmp_path_factory.mktemp("cli")
    model = kh.applications.FaceRec(**TINY_FACEREC)
    spread(model).save(folder / "model.keras")
    images, labels = kh.data.synthetic_identities(PEOPLE, 4, 48)
    for position, (image, label) in enumerate(zip(images, labels, strict=True)):
        file = folder / "faces" / f"p{label}" / f"p{label}_{position % 4 + 1:04d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        image_module.fromarray(image).save(file)
    lines = ["2\t4"]
    for fold in range(2):
        lines += [f"p{i}\t{1 + 2 * fold}\t{2 + 2 * fold}" for i in range(4)]
        lines += [f"p{i}\t{1 + fold}\tp{i + 1}\t{3 + fold}" for i in range(4)]
    (folder / "pairs.txt").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def face(folder):
    return lambda person, number: str(
        folder / "faces" / f"p{person}" / f"p{person}_000{number}.png"
    )


@pytest.fixture
def lonely_model(folder, tmp_path) -> Path:
    """The model in a folder of its own, without results beside it."""
    return Path(shutil.copy(folder / "model.keras", tmp_path / "model.keras"))


def write_tables(files: list[Path], to: Path) -> tuple[Path, Path]:
    """Write tables of the files' landmarks, near the template's, and of the files and labels."""
    points = kh.data.face_template(48) + np.random.default_rng(0).normal(size=(len(files), 5, 2))
    columns = [f"{axis}{point}" for point in range(5) for axis in "xy"]
    rows = [["file", *columns]] + [[f, *p.ravel()] for f, p in zip(files, points, strict=True)]
    landmarks, table = to / "landmarks.csv", to / "faces.csv"
    landmarks.write_text("\n".join(",".join(map(str, row)) for row in rows))
    table.write_text("\n".join(["file,label", *(f"{f},{f.parent.name}" for f in files)]))
    return landmarks, table


def run(capsys, *arguments) -> tuple[int, str, str]:
    status = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def failure(capsys, *arguments, status=1) -> str:
    """Run what must fail; returns the message, which must be one line and alone."""
    found, out, err = run(capsys, *arguments)
    assert found == status, err
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


# help, usage


def test_tensorflows_errors_are_one_line(capsys, monkeypatch):
    from keras_hybrid.applications import registry

    class OpError(Exception):
        __module__ = "tensorflow.python.framework.errors_impl"

    def fail(error):
        def list_models(*_):
            raise error

        monkeypatch.setattr(registry, "list_models", list_models)

    fail(OpError("Out of memory\n\nStack trace"))
    assert failure(capsys, "list") == "error: Out of memory\n"
    fail(OpError())
    assert failure(capsys, "list") == "error: OpError\n"
    fail(KeyError("a bug"))
    with pytest.raises(KeyError):
        main(["list"])


def test_help_names_the_commands(capsys):
    status, out, _ = run(capsys, "--help")
    assert status == 0
    commands = ("list", "info", "verify", "explain", "export", "convert", "evaluate")
    commands += ("align", "shard")
    assert all(name in out for name in commands)
    for name in commands:
        assert run(capsys, name, "--help")[0] == 0


def test_version(capsys):
    assert run(capsys, "--version")[:2] == (0, f"keras-hybrid {kh.__version__}\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "COMMAND"),
        (["train"], "invalid choice: 'train'"),
        (["list", "--backend", "numpy"], "invalid choice: 'numpy'"),
        (["verify", "a.jpg", "b.jpg"], "--model"),
        (["verify", "a.jpg", "b.jpg", "--model", "m.keras", "--threshold", "3"], r"not in [-1, 1]"),
        (["export", "m.keras", "m.onnx", "--to", "onnx", "--quantize", "int8"], "--to litert"),
        (["export", "m.keras", "m.onnx", "--to", "onnx", "--batch-size", "none"], "--to litert"),
        (["export", "m.keras", "m.onnx", "--to", "litert"], "must end in .tflite"),
        (["export", "m.keras", "m.tflite", "--to", "litert", "--batch-size", "0"], "'0'"),
        (
            ["export", "m.keras", "m.tflite", "--to", "litert", "--quantize", "int8"],
            "--quantize int8 needs --representative",
        ),
        (
            ["export", "m.keras", "m.onnx", "--to", "onnx", "--weights", "imagenet"],
            "--weights belongs to a model given by its name",
        ),
        (
            ["export", "m", "m.onnx", "--to", "onnx", "--output", "embedding", "--names", "n.txt"],
            "--names belongs to an output of classes",
        ),
        (["explain", "a.jpg"], "--model"),
        (["explain", "a.jpg", "--model", "m.keras", "--method", "lime"], "invalid choice: 'lime'"),
        (["explain", "a.jpg", "--model", "m.keras", "--out", "x.txt"], ".png, .svg or .pdf"),
        (
            ["explain", "a.jpg", "--model", "m.keras", "--method", "tokens", "--layer", "x"],
            "leave --layer out",
        ),
        (
            ["explain", "a.jpg", "--model", "m", "--method", "attention", "--layer=a", "--layer=b"],
            "give --layer once",
        ),
        (
            ["explain", "a.jpg", "--model", "m.keras", "--method", "rollout", "--class", "1"],
            "--class belongs to Grad-CAM",
        ),
        (["explain", "a.jpg", "--model", "m.keras", "--class", "Anna"], "--names"),
        (
            ["explain", "a.jpg", "--model", "m.keras", "--input-range", "1", "0"],
            "smaller one first",
        ),
        (["evaluate", "m.keras"], "--data, or --pairs"),
        (["evaluate", "m.keras", "--data", "x", "--input-range", "1", "0"], "smaller one first"),
        (["verify", "a", "b", "--model", "m", "--input-range", "1", "0"], "smaller one first"),
        (
            ["evaluate", "m.keras", "--data", "x", "--data-options", "split=test"],
            "--data-options has split: give --split instead",
        ),
        (["evaluate", "m.keras", "--pairs", "pairs.txt"], "belong together"),
        (["evaluate", "m.keras", "--pairs", "a.bin", "--pairs-images", "x"], "holds its images"),
        (["evaluate", "m.keras", "--pairs", "a.zip", "--pairs-images", "x"], "holds its images"),
        (["evaluate", "m.keras", "--data", "x", "--pairs-images", "x"], "belong together"),
        (["evaluate", "m.keras", "--data", "x", "--threshold", "0.3"], "belongs to --pairs"),
        (["evaluate", "m.keras", "--data", "x", "--verification-set", "LFW"], "belongs to --pairs"),
        (["evaluate", "m.keras", "--data", "x", "--seed", "1"], "belongs to --test-fraction"),
        (["evaluate", "m.keras", "--data", "x", "--seed", "-1"], "'-1' is not 0 or a positive"),
        (
            ["evaluate", "m.keras", "--data", "x", "--split", "a", "--test-fraction", ".2"],
            "not both",
        ),
    ],
)
def test_wrong_arguments_are_one_sentence_and_status_2(capsys, arguments, message):
    assert message in failure(capsys, *arguments, status=2)


# list, info


def test_list_shows_every_model_with_its_facts(capsys):
    status, out, _ = run(capsys, "list")
    assert status == 0
    head, *rows = out.splitlines()
    assert head.split() == ["name", "family", "input", "parameters", "MACs", "paper"]
    assert [row.split()[0] for row in rows] == kh.list_models()
    row = next(row for row in rows if row.startswith("facerec "))
    assert row.split()[:6] == ["facerec", "facerec", "256x256x3", "88,107,265", "11.22", "G"]


def test_list_takes_a_pattern(capsys):
    _, out, _ = run(capsys, "list", "vit_*16")
    assert [row.split()[0] for row in out.splitlines()[1:]] == ["vit_b16", "vit_s16", "vit_ti16"]
    assert "'*no*such*'" in failure(capsys, "list", "*no*such*")


def test_info_shows_all_the_registry_knows(capsys):
    status, out, _ = run(capsys, "info", "facerec")
    assert status == 0
    facts = dict(line.split("  ", 1) for line in out.splitlines())
    assert facts["name"].strip() == "facerec"
    assert facts["parameters"].strip() == "88,107,265"
    assert facts["reconstruction"].strip() == "yes"
    assert len(facts) == 11


def test_info_of_an_unknown_name_suggests(capsys):
    assert "Did you mean" in failure(capsys, "info", "facerek")


def test_info_prints_layers(capsys):
    _, out, _ = run(capsys, "info", "cct_2_3x2", "--layers")
    assert "block1_attention" in out
    assert "283,723" in out


# the backend


def test_the_backend_in_use_may_be_asked_for(capsys):
    assert run(capsys, "list", "vit_b16", "--backend", keras.backend.backend())[0] == 0


@pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is not None, reason="Keras finds TensorFlow"
)
def test_without_tensorflow_the_backend_that_is_there_is_taken(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "KERAS_BACKEND"}
    environment |= {"KERAS_HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "keras_hybrid.cli", "list", "vit_b16"]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 0 and "vit_b16" in found.stdout, found.stderr


@pytest.mark.parametrize(
    ("installed", "configured", "environment", "chosen"),
    [
        (("tensorflow", "torch"), None, None, None),
        (("jax", "torch"), None, None, "jax"),
        (("torch",), "tensorflow", None, "torch"),
        (("jax", "torch"), "torch", None, None),
        (("jax", "torch"), None, "torch", "torch"),
    ],
)
def test_keras_gets_a_backend_that_is_installed(
    installed, configured, environment, chosen, tmp_path, monkeypatch
):
    if configured:
        (tmp_path / "keras.json").write_text(json.dumps({"backend": configured}))
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setenv("KERAS_BACKEND", environment or "")
    if environment is None:
        monkeypatch.delenv("KERAS_BACKEND")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name in installed or None)
    monkeypatch.delitem(sys.modules, "keras")
    importlib.reload(sys.modules["keras_hybrid._backend"])
    assert os.environ.get("KERAS_BACKEND") == chosen


def test_a_missing_backend_is_said(capsys, monkeypatch):
    find_spec = importlib.util.find_spec
    other = "jax" if keras.backend.backend() != "jax" else "torch"
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *_: None if name == other else find_spec(name)
    )
    message = failure(capsys, "list", "--backend", other)
    assert f"backend {other} is not installed" in message
    assert f"keras-hybrid[{other}]" in message


def test_another_backend_gets_a_process_of_its_own(monkeypatch):
    other = "jax" if keras.backend.backend() != "jax" else "torch"
    pytest.importorskip(other)
    started = {}

    def start(command, env, check):
        started.update(command=command, backend=env["KERAS_BACKEND"])
        return subprocess.CompletedProcess(command, 7)

    monkeypatch.setattr(subprocess, "run", start)
    assert main(["list", "--backend", other]) == 7
    assert started["backend"] == other
    assert started["command"][-4:] == ["keras_hybrid.cli", "list", "--backend", other]


# verify


def test_verify_accepts_an_image_as_itself(capsys, folder, face):
    status, out, _ = run(
        capsys, "verify", face(0, 1), face(0, 1), "--model", folder / "model.keras",
        "--threshold", 0.99,
    )  # fmt: skip
    assert status == 0
    assert out.splitlines()[0] == "same person"
    assert "1.0000" in out
    assert "0.9900 (from --threshold)" in out


@pytest.mark.parametrize("flip", [False, True])
def test_verify_compares_the_embeddings_cosine_with_the_threshold(capsys, folder, face, flip):
    model = keras.saving.load_model(folder / "model.keras", compile=False)
    pair = np.stack(
        [
            np.array(image_module.open(name).resize((SIZE, SIZE), image_module.Resampling.BILINEAR))
            for name in (face(0, 1), face(3, 2))
        ]
    ).astype("float32")
    embedder = keras.Model(model.inputs, model.get_layer("embedding").output)
    a, b = embedder.predict(pair, verbose=0)
    if flip:
        mirrored = embedder.predict(np.ascontiguousarray(pair[:, :, ::-1]), verbose=0)
        a, b = a + mirrored[0], b + mirrored[1]
    expected = float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    for threshold, same in ((expected - 0.01, True), (expected + 0.01, False)):
        status, out, _ = run(
            capsys, "verify", face(0, 1), face(3, 2), "--model", folder / "model.keras", "--json",
            f"--threshold={threshold}", *(["--flip"] if flip else []),
        )  # fmt: skip
        answer = json.loads(out)
        assert status == 0
        assert answer["same"] is same
        assert answer["cosine"] == pytest.approx(expected, abs=1e-4)
        assert answer["threshold_source"] == "--threshold"
        assert answer["flip"] is flip


def test_verify_takes_the_threshold_that_was_measured(capsys, lonely_model, face):
    results = lonely_model.parent / "results.json"
    results.write_text(json.dumps({"verification": {"threshold": 0.4321, "flip": True}}))
    last = lonely_model.with_name("last.keras")
    lonely_model.rename(last)
    status, out, err = run(capsys, "verify", face(0, 1), face(1, 1), "--model", last)
    assert status == 0
    assert f"0.4321 (from {results})" in out
    assert err == "note: the threshold was measured with --flip.\n"
    last.rename(last.with_name("best.keras"))
    best = last.with_name("best.keras")
    _, _, err = run(capsys, "verify", face(0, 1), face(1, 1), "--model", best, "--flip")
    assert err == "note: the threshold was measured on last.keras.\n"


def test_verify_says_that_a_threshold_is_another_models(capsys, lonely_model, face):
    results = lonely_model.parent / "results.json"
    record = {"kind": "keras_hybrid evaluation", "verification": {"threshold": 0.4321}}
    quantized = lonely_model.with_suffix(".tflite")
    for measured, note in (("runs/other.keras", True), (quantized, True), (lonely_model, False)):
        results.write_text(json.dumps({**record, "model": str(measured)}))
        status, _, err = run(capsys, "verify", face(0, 1), face(1, 1), "--model", lonely_model)
        assert status == 0
        assert err == (f"note: the threshold was measured on {measured}.\n" if note else "")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "There is no threshold for"),
        ("{}", "holds no verification threshold"),
        ('{"verification": null}', "holds no verification threshold"),
        ('{"verification": {"threshold": NaN}}', "holds no verification threshold"),
    ],
)
def test_verify_never_makes_a_threshold_up(capsys, lonely_model, face, content, message):
    if content is not None:
        (lonely_model.parent / "results.json").write_text(content)
    found = failure(capsys, "verify", face(0, 1), face(1, 1), "--model", lonely_model)
    assert message in found
    assert "Give --threshold, or measure one: keras-hybrid evaluate" in found


def test_broken_results_are_said(capsys, lonely_model, face):
    (lonely_model.parent / "results.json").write_text("{")
    arguments = ("verify", face(0, 1), face(1, 1), "--model", lonely_model)
    assert "results.json is not JSON" in failure(capsys, *arguments)


def test_verify_says_what_is_wrong_with_an_image(capsys, folder, face, tmp_path):
    rest = ("--model", folder / "model.keras", "--threshold", 0.3)
    missing = tmp_path / "nobody.jpg"
    assert f"{missing} does not exist" in failure(capsys, "verify", face(0, 1), missing, *rest)
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    assert "broken.jpg: not an image" in failure(capsys, "verify", broken, face(0, 1), *rest)


def test_a_photograph_of_other_proportions_is_noted(capsys, folder, face, tmp_path):
    photograph = image_module.open(face(0, 1)).resize((48, 64))
    photograph.save(tmp_path / "whole.png")
    arguments = ("--model", folder / "model.keras", "--threshold", 0.3)
    status, _, err = run(capsys, "verify", face(0, 2), tmp_path / "whole.png", *arguments)
    assert status == 0
    noted = f"note: {tmp_path / 'whole.png'} has 64x48 pixels and is squeezed to the model's 32x32:"
    assert err == f"{noted} is it cropped as those of the training?\n"


def test_verify_turns_photographs_upright(capsys, folder, face, tmp_path):
    lying = tmp_path / "lying.png"
    image = image_module.open(face(0, 1))
    exif = image.getexif()
    exif[0x0112] = 6  # to be turned by 90° clockwise
    image.transpose(image_module.Transpose.ROTATE_90).save(lying, exif=exif)
    _, out, _ = run(
        capsys, "verify", face(0, 1), lying, "--model", folder / "model.keras", "--threshold", 0.3,
        "--json",
    )  # fmt: skip
    assert json.loads(out)["cosine"] == pytest.approx(1, abs=1e-5)


@pytest.fixture
def bare_model(folder, tmp_path) -> Path:
    """The model without its preprocessing, with the same weights."""
    model = keras.saving.load_model(folder / "model.keras")
    bare = kh.applications.FaceRec(**TINY_FACEREC, include_preprocessing=False)
    bare.set_weights(model.get_weights())
    (tmp_path / "bare").mkdir()
    bare.save(tmp_path / "bare" / "model.keras")
    return tmp_path / "bare" / "model.keras"


def test_photographs_are_brought_to_the_range_that_a_model_takes(
    capsys, folder, face, bare_model, lonely_model
):
    people = ("--data", folder / "faces", "--pairs", folder / "pairs.txt")
    people += ("--pairs-images", folder / "faces")
    own = ("--input-range", -1, 1)
    status, expected, _ = run(capsys, "evaluate", lonely_model, *people)
    assert status == 0
    found = run(capsys, "evaluate", bare_model, *people, *own, "--out", bare_model.parent)
    assert found[0] == 0, found[2]
    assert found[1].splitlines()[: len(expected.splitlines())] == expected.splitlines()
    assert run(capsys, "evaluate", bare_model, *people)[1] != expected
    pair = ("verify", face(0, 1), face(0, 2), "--json", "--flip", "--model")
    same = json.loads(run(capsys, *pair, lonely_model, "--threshold", 0.3)[1])["cosine"]
    _, out, err = run(capsys, *pair, bare_model, *own)
    assert json.loads(out)["cosine"] == pytest.approx(same, abs=1e-5)
    assert "--input-range" not in err
    _, out, err = run(capsys, *pair, bare_model)
    assert json.loads(out)["cosine"] != pytest.approx(same, abs=1e-5)
    assert "note: the threshold was measured with --input-range -1 1." in err


def test_a_litert_file_says_itself_what_range_it_takes(
    capsys, face, bare_model, lonely_model, tmp_path
):
    pytest.importorskip("tensorflow")
    pytest.importorskip("ai_edge_litert")
    file = tmp_path / "bare.tflite"
    kh.export.to_litert(bare_model, file, output="embedding", input_range=(-1, 1))
    pair = ("verify", face(0, 1), face(0, 2), "--json", "--threshold", 0.3, "--model")
    expected = json.loads(run(capsys, *pair, lonely_model)[1])["cosine"]
    assert json.loads(run(capsys, *pair, file)[1])["cosine"] == pytest.approx(expected, abs=1e-5)
    message = failure(capsys, *pair, file, "--input-range", 0, 1)
    assert "says itself that it takes values in [-1, 1]" in message


def test_verify_says_what_is_wrong_with_a_model(capsys, face, tmp_path):
    def message(path):
        return failure(
            capsys, "verify", face(0, 1), face(1, 1), "--model", path, "--threshold", 0.3
        )

    assert "does not exist" in message(tmp_path / "none.keras")
    broken = tmp_path / "broken.keras"
    broken.write_bytes(b"no model")
    assert "broken.keras cannot be loaded" in message(broken)

    @keras.saving.register_keras_serializable("test_cli")
    class OfAnotherProgram(keras.layers.Layer): ...

    foreign = tmp_path / "foreign.keras"
    keras.Sequential([keras.Input((8,)), OfAnotherProgram()]).save(foreign)
    del keras.saving.get_custom_objects()["test_cli>OfAnotherProgram"]
    told = message(foreign)
    assert "Could not locate class 'OfAnotherProgram'" in told and "from Python" in told
    other = tmp_path / "model.h5"
    other.write_bytes(b"")
    assert "must be a .keras file" in message(other)
    image = keras.Input((8, 8, 3))
    headless = tmp_path / "headless.keras"
    keras.Model(image, keras.layers.GlobalAveragePooling2D()(image)).save(headless)
    assert "no layer named 'embedding'" in message(headless)


# explain


def facts_of(out: str) -> dict[str, str]:
    return {name: rest.strip() for name, rest in (line.split("  ", 1) for line in out.splitlines())}


def test_explain_draws_what_the_model_gives_and_says_what_it_answered(capsys, folder, face):
    pytest.importorskip("matplotlib")
    out = folder / "new" / "explain.png"
    status, said, err = run(
        capsys, "explain", face(0, 1), "--model", folder / "model.keras", "--out", out
    )
    assert status == 0
    assert err == f"note: {face(0, 1)} has 48x48 pixels and is resized to the model's 32x32.\n"
    model = keras.saving.load_model(folder / "model.keras", compile=False)
    image = np.array(
        image_module.open(face(0, 1)).resize((SIZE, SIZE), image_module.Resampling.BILINEAR)
    )
    (cosines,) = predict(model, image[np.newaxis].astype("float32"))
    best = cosines.argmax()
    assert facts_of(said) == {
        "predicted": f"class {best}, cosine {cosines[best]:.4f}",
        "explained": f"class {best}",
        "grad-cam": "layer stride08",
        "tokens": "drawn",
        "rollout": "drawn",
        "convolutional": "layer block1_attention",
        "written": str(out),
    }
    assert min(image_module.open(out).size) > 500


def test_explain_takes_a_layer_and_a_class_by_name(capsys, folder, face, tmp_path):
    pytest.importorskip("matplotlib")
    arguments = ("explain", face(0, 1), "--model", folder / "model.keras", "--method", "grad-cam")
    arguments += ("--out", tmp_path / "x.svg")
    names = ("--names", folder / "faces")
    status, out, _ = run(capsys, *arguments, *names, "--layer", "norm", "--class", "p3")
    assert status == 0
    assert facts_of(out)["grad-cam"] == "layer norm"
    assert facts_of(out)["explained"] == "class 3 (p3)"
    (tmp_path / "names.txt").write_text("Änn\nBerta\nClara\nDora\nEmma\n", encoding="latin-1")
    wrong = run(capsys, *arguments, "--names", tmp_path / "names.txt")[2]
    assert f"{tmp_path / 'names.txt'} is not UTF-8 text" in wrong
    text = "Änn\nBerta\nClara\nDora\nEmma\n"
    (tmp_path / "names.txt").write_text(text, encoding="utf-8-sig")  # as Windows marks UTF-8
    names = ("--names", tmp_path / "names.txt")
    assert "class 0 (Änn)" in run(capsys, *arguments, *names, "--class", "Änn")[1]
    assert "class 4 (Emma)" in run(capsys, *arguments, *names, "--class", "Emma")[1]
    # The note on the image's size comes before.
    _, _, err = run(capsys, *arguments, *names, "--class", "Bertha")
    assert err.endswith("error: No class is named 'Bertha'. Did you mean Berta?\n")
    people = np.array(["Ann", "Ben", "Cem", "Dov", "Eve"])  # of an .npz with splits, as CIFAR-10's
    np.savez(tmp_path / "faces.npz", x_train=np.zeros((5, 8, 8, 3), np.uint8), y_train=people)
    arrays = ("--names", tmp_path / "faces.npz")
    assert "class 2 (Cem)" in run(capsys, *arguments, *arrays, "--class", "Cem")[1]
    table = tmp_path / "people.csv"  # of images that lie elsewhere
    table.write_text("file,label\n" + "".join(f"{name}.png,{name}\n" for name in people))
    assert "class 2 (Cem)" in run(capsys, *arguments, "--names", table, "--class", "Cem")[1]
    (tmp_path / "names.txt").write_text("Anna\nBerta\nAnna\nDora\nEva\n")
    assert "names.txt names classes twice: Anna." in run(capsys, *arguments, *names)[2]
    (tmp_path / "names.txt").write_text("Anna\nBerta\n")
    assert "names 2 classes, the model has 5" in run(capsys, *arguments, *names)[2]
    assert "class_index must be in [0, 5), got 5" in run(capsys, *arguments, "--class", "5")[2]
    status, _, err = run(capsys, *arguments, "--layer", "stride8")
    assert status == 1
    assert "no layer named 'stride8'" in err and "stride08" in err


def test_explain_of_one_method_fails_where_the_model_has_it_not(capsys, face, tmp_path):
    pytest.importorskip("matplotlib")
    model = kh.create_model(
        "mobilefacenet",
        input_shape=(48, 48, 3),
        stem_channels=8,
        stem_groups=4,
        stages=((2, 8, 2, 2), (2, 12, 1, 2)),
        head_channels=16,
        embedding_dim=8,
        classes=3,
    )
    model.save(tmp_path / "cnn.keras")
    arguments = ("explain", face(0, 1), "--model", tmp_path / "cnn.keras")
    arguments += ("--out", tmp_path / "x.png")
    for method, message in (
        ("attention", "no layer with attention_scores"),
        ("rollout", "no layer with attention_scores"),
        ("tokens", "no layer with token_weights"),
        ("convolutional", "no attention layer that a ConvolutionalAttention helps"),
    ):
        assert message in failure(capsys, *arguments, "--method", method)
    assert not (tmp_path / "x.png").exists()
    status, out, err = run(capsys, *arguments)
    assert status == 0 and (tmp_path / "x.png").exists()
    assert set(facts_of(out)) == {"predicted", "explained", "grad-cam", "written"}
    assert err.count("note: no ") == 4


def test_explain_names_what_is_wrong_with_a_file(capsys, folder, face, tmp_path):
    model = ("--model", folder / "model.keras")
    assert "nowhere.png does not exist" in failure(capsys, "explain", "nowhere.png", *model)
    (tmp_path / "text.png").write_text("no image")
    message = failure(capsys, "explain", tmp_path / "text.png", *model)
    assert "text.png: not an image" in message
    whole = Path(face(0, 1)).read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    assert "half.png: " in failure(capsys, "explain", tmp_path / "half.png", *model)
    message = failure(capsys, "explain", face(0, 1), "--model", "facerec_small")
    assert "without trained weights" in message
    message = failure(capsys, "explain", face(0, 1), "--model", face(0, 2))
    assert "must be a .keras file" in message


# export


@pytest.mark.parametrize(
    ("arguments", "function", "expected"),
    [
        (
            ["m.tflite", "--to", "litert"],
            "to_litert",
            {
                "output": None,
                "labels": None,
                "quantization": None,
                "input_dtype": "float32",
                "batch_size": 1,
            },
        ),
        (
            [
                "m.tflite", "--to", "litert", "--quantize", "dynamic", "--output", "embedding",
                "--input-dtype", "uint8", "--batch-size", "none",
            ],
            "to_litert",
            {
                "output": "embedding",
                "labels": None,
                "quantization": "dynamic",
                "input_dtype": "uint8",
                "batch_size": None,
            },
        ),
        (
            ["m.onnx", "--to", "onnx", "--output", "cosines"],
            "to_onnx",
            {"output": "cosines", "labels": None},
        ),
        (
            ["m", "--to", "saved_model", "--names", "names.txt"],
            "to_saved_model",
            {"output": None, "labels": NAMES},
        ),
    ],
)  # fmt: skip
def test_export_hands_its_options_on(
    capsys, folder, monkeypatch, tmp_path, arguments, function, expected
):
    given = {}
    (tmp_path / "names.txt").write_text("\n".join(NAMES) + "\n", encoding="utf-8")
    model = folder / "model.keras"
    monkeypatch.chdir(tmp_path)

    def export_function(model, path, **options):
        given.update(options, path=path)
        return export.ExportReport(
            path, "litert", 1234, 0.001, 1.0, 0.9999, 4, {"ADD": 3}, None, (), (), 1.0
        )

    monkeypatch.setattr(export, function, export_function)
    status, out, _ = run(capsys, "export", model, *arguments)
    assert status == 0
    assert given == {**expected, "path": Path(arguments[0])}
    assert "1,234 bytes" in out
    assert "ADD 3" in out


def test_export_takes_a_model_by_its_name(capsys, monkeypatch, tmp_path):
    given = []

    def export_function(model, path, **options):
        given.append(model)
        return export.ExportReport(path, "onnx", 1, 0.0, 1.0, 1.0, 4, {}, None, (), (), 1.0)

    monkeypatch.setattr(export, "to_onnx", export_function)
    status, _, err = run(capsys, "export", "cct_2_3x2", "m.onnx", "--to", "onnx")
    assert (status, given[0].name) == (0, "cct_2_3x2")
    assert "untrained" in err
    weights = tmp_path / "trained.weights.h5"
    spread(given[0]).save_weights(weights)
    status, _, err = run(
        capsys, "export", "cct_2_3x2", "m.onnx", "--to", "onnx", "--weights", weights
    )
    assert (status, err) == (0, "")
    for ours, theirs in zip(given[1].get_weights(), given[0].get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert "Did you mean" in failure(capsys, "export", "cct_2_3", "m.onnx", "--to", "onnx")


def test_export_calibrates_with_images_of_the_models_size(capsys, folder, monkeypatch):
    class StopHereError(RuntimeError):
        pass

    def export_function(model, path, representative_data, **options):
        assert options["quantization"] == "int8"
        assert representative_data.shape == (20, SIZE, SIZE, 3)
        assert representative_data.dtype == np.uint8
        raise StopHereError("seen")

    monkeypatch.setattr(export, "to_litert", export_function)
    message = failure(
        capsys, "export", folder / "model.keras", "m.tflite", "--to", "litert", "--quantize",
        "int8", "--representative", folder / "faces",
    )  # fmt: skip
    assert message == "error: seen\n"


def broken_faces(folder, to: Path) -> Path:
    """The faces, of which one person's cannot be read."""
    shutil.copytree(folder / "faces", to)
    for image in (to / "p2").iterdir():
        image.write_bytes(b"torn")
    return to


@pytest.mark.parametrize("kind", ["folder", "zip", "npz", "broken"])
def test_export_calibrates_with_what_there_is(capsys, folder, monkeypatch, tmp_path, kind):
    """Of splits with the training split, and without what cannot be read."""
    if kind == "broken":
        spec = broken_faces(folder, tmp_path / "faces")
    elif kind == "npz":
        spec = tmp_path / "faces.npz"
        images, labels = kh.data.synthetic_identities(PEOPLE, 4, 48)
        few = {"x_test": images[:3], "y_test": labels[:3]}
        np.savez(spec, x_train=images, y_train=labels, **few)
    else:
        spec = tmp_path / "faces"
        for person in range(PEOPLE):
            shutil.copytree(folder / "faces" / f"p{person}", spec / "train" / f"p{person}")
        shutil.copytree(folder / "faces" / "p0", spec / "test" / "p0")
        if kind == "zip":
            spec = shutil.make_archive(str(spec), "zip", spec)
    given = {}

    def export_function(model, path, **options):
        given.update(options)
        return export.ExportReport(path, "litert", 1, 0.0, 1.0, 1.0, 4, {}, None, (), (), 1.0)

    monkeypatch.setattr(export, "to_litert", export_function)
    status, _, err = run(
        capsys, "export", folder / "model.keras", "m.tflite", "--to", "litert", "--quantize",
        "int8", "--representative", spec, "--names", spec,
    )  # fmt: skip
    assert status == 0, err
    assert len(given["representative_data"]) == (16 if kind == "broken" else 20)
    names = [str(i) for i in range(PEOPLE)] if kind == "npz" else [f"p{i}" for i in range(PEOPLE)]
    assert given["labels"] == names


def test_a_litert_file_is_judged_as_its_model_is(capsys, folder, lonely_model, tmp_path):
    for module in ("tensorflow", "ai_edge_litert"):
        pytest.importorskip(module)
    embedding, scores = tmp_path / "embedding.tflite", tmp_path / "scores.tflite"
    model = keras.saving.load_model(lonely_model, compile=False)
    kh.export.to_litert(model, embedding, output="embedding", batch_size=4)
    kh.export.to_litert(model, scores, output="cosines", batch_size=None)
    people = ("--pairs", folder / "pairs.txt", "--pairs-images", folder / "faces", "--flip")
    data = ("--data", folder / "faces")
    out = tmp_path / "out"

    def judged(file, *arguments):
        status, printed, err = run(capsys, "evaluate", file, *arguments, "--out", out)
        assert status == 0, err
        results = json.loads((out / "results.json").read_text())
        assert results["model"] == str(file) and results["name"] == model.name
        return results, printed, err

    expected, found = (judged(file, *people) for file in (lonely_model, embedding))
    assert "normalised embeddings" in found[2] and "normalised" not in expected[2]
    key = "verification"
    # Normalised embeddings are added, not raw ones.
    assert found[0][key]["auc"] == pytest.approx(expected[0][key]["auc"], abs=0.1)
    assert found[0]["parameters"] is None
    expected, found = (judged(file, *people[:4]) for file in (lonely_model, embedding))
    for name in ("accuracy", "auc", "threshold"):
        assert found[0][key][name] == pytest.approx(expected[0][key][name], abs=1e-4)
    expected, found = (judged(file, *data) for file in (lonely_model, scores))
    assert found[0]["classification"] == expected[0]["classification"]
    assert found[1] == expected[1]
    for names, message in (
        ("p1 p0 p2 p3 p4", "are scores.tflite's in another order"),
        ("Ann Ben Cem Dov Eve", "calls its classes otherwise: 0 is 'Ann' there, 'p0' in"),
    ):
        kh.export.to_litert(model, scores, output="cosines", labels=names.split())
        status, _, err = run(capsys, "evaluate", scores, *data)
        assert message.replace("scores.tflite", str(scores)) in err
        assert status == (1 if "order" in message else 0)
    message = failure(capsys, "evaluate", embedding, *data)
    assert "one score for each class, but embedding (4, 32)" in message
    assert "--output embedding" in failure(capsys, "evaluate", scores, *people[:4])
    assert "takes no landmarks: leave --landmarks out" in failure(
        capsys, "evaluate", scores, *data, "--landmarks", "points.csv"
    )


@pytest.mark.slow
def test_a_litert_embedding_verifies_as_its_model_does(capsys, folder, face, tmp_path):
    for module in ("tensorflow", "ai_edge_litert"):
        pytest.importorskip(module)
    exported = tmp_path / "model.tflite"
    status, out, err = run(
        capsys, "export", folder / "model.keras", exported, "--to", "litert", "--output",
        "embedding",
    )  # fmt: skip
    assert status == 0, err
    assert "image float32 (1, 32, 32, 3)" in out
    answers, notes = {}, {}
    for model in (exported, folder / "model.keras"):
        for flip in ((), ("--flip",)):
            status, out, err = run(
                capsys, "verify", face(0, 1), face(2, 1), "--model", model, "--threshold", 0.3,
                "--json", *flip,
            )  # fmt: skip
            assert status == 0, err
            answers[model.suffix, bool(flip)] = json.loads(out)["cosine"]
            notes[model.suffix, bool(flip)] = err
    assert answers[".tflite", False] == pytest.approx(answers[".keras", False], abs=1e-4)
    # Normalised embeddings are added, not raw ones.
    assert answers[".tflite", True] == pytest.approx(answers[".keras", True], abs=0.01)
    assert "normalised embeddings" in notes[".tflite", True]


def test_a_file_that_is_no_export_is_said(capsys, face, tmp_path):
    pytest.importorskip("ai_edge_litert")
    file = tmp_path / "model.tflite"
    file.write_bytes(b"no model at all, but long enough to be read as one")
    arguments = ("verify", face(0, 1), face(1, 1), "--model", file, "--threshold", 0.3)
    assert "model.tflite cannot be read as an exported model" in failure(capsys, *arguments)


# convert


@pytest.mark.parametrize("top", [True, False])
def test_convert_writes_a_model_with_the_checkpoint_s_weights(capsys, tmp_path, top):
    top_arguments = {} if top else {"include_top": False, "pooling": "native"}
    source = kh.create_model("cct_2_3x2", classes=4, **top_arguments)
    np.savez(tmp_path / "weights.npz", **checkpoint_of(source))
    options = ["--model", "cct_2_3x2", *(["--classes", 4] if top else ["--without-top"])]
    status, out, _ = run(
        capsys, "convert", tmp_path / "weights.npz", tmp_path / "new/model.keras", *options
    )
    assert status == 0 and f"{source.count_params():,}" in out
    model = keras.saving.load_model(tmp_path / "new/model.keras")
    kh.convert.load_torch_weights(source, tmp_path / "weights.npz")
    image = np.full((1, 32, 32, 3), 90, "float32")
    np.testing.assert_allclose(predict(model, image), predict(source, image), rtol=1e-5)


def test_convert_says_what_does_not_fit_and_writes_nothing(capsys, tmp_path):
    np.savez(tmp_path / "weights.npz", other=np.zeros(3))
    options = (tmp_path / "weights.npz", tmp_path / "model.keras", "--model", "cct_2_3x2")
    status, _, err = run(capsys, "convert", *options)
    assert status == 1 and "unexpected: other" in err
    assert not (tmp_path / "model.keras").exists()
    status, _, err = run(capsys, "convert", options[0], tmp_path / "model.h5", *options[2:])
    assert status == 2 and ".keras" in err


# evaluate


def test_evaluate_says_where_it_does_not_do_as_training_did(capsys, folder, lonely_model):
    record = {"test_fraction": 0.5, "seed": 1, "test_images": 8, "data_options": {"align": True}}
    (lonely_model.parent / "results.json").write_text(json.dumps(record))
    arguments = ("evaluate", lonely_model, "--data", folder / "faces", "--test-fraction", "0.5")
    status, _, err = run(capsys, *arguments)
    assert status == 0
    assert "note: training read its images with --data-options align=True.\n" in err
    assert "note: the run held 8 images out, with fraction 0.5 and seed 1; these are " in err
    count = int(re.search(r"these are (\d+), with 0.5 and 0", err)[1])
    record |= {"test_images": count, "data_options": {}}
    (lonely_model.parent / "results.json").write_text(json.dumps(record))
    assert run(capsys, *arguments, "--seed", "1")[2] == ""
    # Fewer test images than the share that was held out.
    record |= {"test_images": 1, "test_images_per_class": 1}
    (lonely_model.parent / "results.json").write_text(json.dumps(record))
    assert run(capsys, *arguments, "--seed", "1")[2] == ""
    err = run(capsys, *arguments[:4])[2]
    assert "note: the run held out a share of 0.5" in err
    assert err.endswith("--test-fraction 0.5 --seed 1.\n")


def test_images_are_aligned_by_a_table_of_landmarks(capsys, folder, lonely_model, tmp_path):
    faces = sorted((folder / "faces").rglob("*.png"))
    landmarks, table = write_tables(faces, tmp_path)
    record = {"data_options": {"landmarks": str(landmarks), "align": True}}
    (lonely_model.parent / "results.json").write_text(json.dumps(record))
    arguments = ("evaluate", lonely_model, "--data", table, "--out", tmp_path / "out")
    status, _, err = run(
        capsys, *arguments, "--landmarks", landmarks, "--data-options", "align=true"
    )
    assert (status, err) == (0, "")
    found = json.loads((tmp_path / "out" / "results.json").read_text())["classification"]
    source = kh.data.open_source(str(table), landmarks=str(landmarks), align=True, image_size=112)
    loaded = kh.data.load_arrays(source, SIZE)
    model = keras.saving.load_model(lonely_model, compile=False)
    expected = kh.evaluation.evaluate_classifier(model, loaded.images, loaded.labels)
    assert found["top1"] == expected.top1
    _, _, err = run(capsys, *arguments)
    assert f"training read its images with --landmarks {landmarks} --data-options align=True" in err


def test_names_of_other_classes_than_the_runs_are_refused(capsys, folder, face, lonely_model):
    results = lonely_model.parent / "results.json"
    results.write_text(json.dumps({"class_names": ["p0", "p1", "p2", "p3", "Zoe"]}))
    explain = ("explain", face(0, 1), "--model", lonely_model, "--out", results.parent / "a.png")
    export = ("export", lonely_model, results.parent / "a.tflite", "--to", "litert", "--names")
    for command in ((*explain, "--names"), export):
        status, _, message = run(capsys, *command, folder / "faces")
        assert status == 1 and "not those that" in message and "4 is 'p4', not 'Zoe'" in message


def test_data_are_read_with_the_options_of_training(capsys, folder, lonely_model, tmp_path):
    faces = sorted((folder / "faces").rglob("*.png"))
    lines = [f"{face},{face.parent.name}" for face in faces]
    table = tmp_path / "people.csv"
    table.write_text("\n".join(["photograph,person", *lines]) + "\n")
    options = ("--data-options", "file_column=photograph", "label_column=person")
    arguments = ("evaluate", lonely_model, "--data", table)
    assert "has no such column" in failure(capsys, *arguments)
    status, out, _ = run(capsys, *arguments, *options)
    assert status == 0
    assert out == run(capsys, "evaluate", lonely_model, "--data", folder / "faces")[1].replace(
        str(folder / "faces"), str(table)
    )
    wrong = (*arguments, "--data-options", "columns")
    assert "KEY=VALUE, got 'columns'" in failure(capsys, *wrong, status=2)
    assert "Unknown option size" in failure(capsys, *arguments, "--data-options", "size=3")
    calibration = ("--quantize", "int8", "--representative", tmp_path / "nowhere")
    calibration += ("--data-options", "split=test")
    out = tmp_path / "x.tflite"
    message = failure(capsys, "export", lonely_model, out, "--to", "litert", *calibration)
    assert "nowhere' does not exist" in message
    given = build_parser().parse_args(
        ["evaluate", "m.keras", "--data", "x", "--data-options", "align=false", "a=none", "b=2"]
    )
    assert dict(given.data_options) == {"align": False, "a": None, "b": 2}


def test_evaluate_measures_identification_and_verification(capsys, folder, tmp_path):
    out_folder = tmp_path / "evaluation"
    model_file = folder / "model.keras"
    status, out, err = run(
        capsys, "evaluate", model_file, "--data", folder / "faces", "--pairs",
        folder / "pairs.txt", "--pairs-images", folder / "faces", "--out", out_folder,
    )  # fmt: skip
    assert status == 0, err
    for word in ("top-1", "precision", "most confused", "AUC", "EER", "pairs", "XNorm"):
        assert word in out
    results = json.loads((out_folder / "results.json").read_text())

    model = keras.saving.load_model(model_file, compile=False)
    loaded = kh.data.load_arrays(kh.data.open_source(folder / "faces"), SIZE)
    expected = kh.evaluation.evaluate_classifier(model, loaded.images, loaded.labels)
    found = results["classification"]
    assert found["top1"] == expected.top1
    assert found["top5"] == 1
    assert found["f1_macro"] == pytest.approx(expected.f1_macro)
    assert sum(c["count"] for c in found["most_confused"]) == round(20 * (1 - expected.top1))
    pairs = kh.data.read_lfw_pairs(folder / "pairs.txt", folder / "faces")
    verified = kh.evaluation.evaluate_pairs(model, pairs)
    assert results["verification"]["accuracy"] == verified.accuracy
    assert results["verification"]["threshold"] == pytest.approx(verified.threshold, abs=1e-6)
    assert results["verification"]["tar_at_far"] == {}  # 16 pairs show no rate so low
    if importlib.util.find_spec("matplotlib") is not None:
        assert (out_folder / "roc.png").stat().st_size > 1000
        assert (out_folder / "scores.png").stat().st_size > 1000


def test_verify_uses_what_evaluate_measured(capsys, folder, face, lonely_model):
    run(
        capsys, "evaluate", lonely_model, "--pairs", folder / "pairs.txt", "--pairs-images",
        folder / "faces", "--out", lonely_model.parent,
    )  # fmt: skip
    measured = json.loads((lonely_model.parent / "results.json").read_text())
    _, out, _ = run(capsys, "verify", face(0, 1), face(0, 2), "--model", lonely_model, "--json")
    assert json.loads(out)["threshold"] == measured["verification"]["threshold"]


def test_evaluate_compares_pairs_with_the_protocol_of_their_set(capsys, folder, monkeypatch):
    command = (
        "evaluate", folder / "model.keras", "--pairs", folder / "pairs.txt", "--pairs-images",
        folder / "faces", "--verification-set",
    )  # fmt: skip
    assert "LFW has 6000 pairs, but" in failure(capsys, *command, "lfw")
    assert "'LFV' is no verification set; known: LFW, SLLFW" in failure(capsys, *command, "LFV")
    known = kh.data.verification_set_info("LFW")
    same = dataclasses.replace(known, same=8, different=8, folds=2)
    monkeypatch.setattr(kh.data.verification_sets, "_SETS", (same,))
    status, out, err = run(capsys, *command, "LFW")
    assert status == 0, err
    assert "Verification of 16 pairs" in out


def test_evaluate_judges_at_a_given_threshold(capsys, folder, tmp_path):
    status, _, _ = run(
        capsys, "evaluate", folder / "model.keras", "--pairs", folder / "pairs.txt",
        "--pairs-images", folder / "faces", "--threshold", -1, "--out", tmp_path / "out",
    )  # fmt: skip
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert status == 0
    assert results["verification"]["accuracy"] == 0.5  # everything is accepted
    assert results["verification"]["threshold_source"] == "--threshold"
    assert results["classification"] is None


def test_evaluate_says_that_pairs_without_folds_flatter(capsys, folder, tmp_path):
    lines = (folder / "pairs.txt").read_text().splitlines()[1:9]
    (tmp_path / "pairs.txt").write_text("\n".join(["4", *lines]) + "\n")
    command = (
        "evaluate", folder / "model.keras", "--pairs-images", folder / "faces", "--out",
        tmp_path / "out", "--pairs",
    )  # fmt: skip
    for pairs, source, flatters in (
        (tmp_path / "pairs.txt", "the pairs themselves", True),
        (folder / "pairs.txt", "cross-validation", False),
    ):
        status, _, err = run(capsys, *command, pairs)
        assert status == 0, err
        results = json.loads((tmp_path / "out" / "results.json").read_text())
        assert results["verification"]["threshold_source"] == source
        assert ("note: the pairs have one fold only" in err) == flatters
    assert "one fold" not in run(capsys, *command, tmp_path / "pairs.txt", "--threshold", 0.3)[2]


def test_evaluate_goes_on_without_a_class_that_cannot_be_read(capsys, folder, tmp_path):
    data = broken_faces(folder, tmp_path / "faces")
    status, _, err = run(
        capsys, "evaluate", folder / "model.keras", "--data", data, "--test-fraction", 0.25,
        "--out", tmp_path / "out",
    )  # fmt: skip
    assert status == 0, err
    assert "note: no image of 1 classes could be read, so they are not judged: p2." in err
    found = json.loads((tmp_path / "out" / "results.json").read_text())["classification"]
    assert (found["images"], found["skipped_images"], found["skipped_classes"]) == (4, 1, 1)
    test = kh.data.split_source(kh.data.open_source(folder / "faces"), 0.25)[1]
    loaded = kh.data.load_arrays(test, SIZE)
    rest = loaded.labels != 2
    model = keras.saving.load_model(folder / "model.keras", compile=False)
    expected = kh.evaluation.evaluate_classifier(model, loaded.images[rest], loaded.labels[rest])
    assert found["f1_macro"] == expected.f1_macro


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere names of folders are text")
def test_evaluate_writes_names_that_are_no_text(folder, tmp_path):
    data = tmp_path / "faces"
    shutil.copytree(folder / "faces", data)
    for person in range(PEOPLE):
        (data / f"p{person}").rename(data / f"p{person}\udce9")
    command = [sys.executable, "-m", "keras_hybrid.cli", "evaluate", folder / "model.keras"]
    command += ["--data", data, "--out", tmp_path / "\udce9"]
    answer = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"PYTHONIOENCODING": "utf-8"}
    )
    assert answer.returncode == 0, answer.stderr
    results = (tmp_path / "\udce9" / "results.json").read_text(encoding="utf-8")
    confused = json.loads(results)["classification"]["most_confused"]
    assert confused and all(c["true"].endswith("\udce9") for c in confused)
    assert "\\udce9" in answer.stdout


def test_evaluate_reads_insightfaces_files(capsys, folder, tmp_path):
    pairs = kh.data.read_lfw_pairs(folder / "pairs.txt", folder / "faces")
    names = [name for pair in zip(pairs.left, pairs.right, strict=True) for name in pair]
    images = [(folder / "faces" / name).read_bytes() for name in names]
    file = tmp_path / "lfw.bin"
    file.write_bytes(pickle.dumps((images, pairs.same.tolist()), 2))
    faces = kh.data.open_source(folder / "faces")
    contents = [
        image_record(float(label), Path(path).read_bytes())
        for label, path in zip(faces.labels, faces.paths, strict=True)
    ]
    write(tmp_path, contents)
    model_file = folder / "model.keras"
    status, _, err = run(
        capsys, "evaluate", model_file, "--data", tmp_path, "--pairs", file, "--out",
        tmp_path / "out",
    )  # fmt: skip
    assert status == 0, err
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    model = keras.saving.load_model(model_file, compile=False)
    verified = kh.evaluation.evaluate_pairs(model, kh.data.read_bin(file))
    assert results["verification"]["accuracy"] == verified.accuracy
    assert results["verification"]["pairs_file"] == str(file)
    loaded = kh.data.load_arrays(faces, SIZE)
    expected = kh.evaluation.evaluate_classifier(model, loaded.images, loaded.labels)
    assert results["classification"]["top1"] == expected.top1


def test_evaluate_uses_the_images_that_training_held_out(capsys, folder, tmp_path):
    status, out, _ = run(
        capsys, "evaluate", folder / "model.keras", "--data", folder / "faces",
        "--test-fraction", 0.25, "--seed", 3, "--out", tmp_path / "out",
    )  # fmt: skip
    assert status == 0
    assert "5 of 5 classes" in out
    found = json.loads((tmp_path / "out" / "results.json").read_text())["classification"]
    test = kh.data.split_source(kh.data.open_source(folder / "faces"), 0.25, 3)[1]
    loaded = kh.data.load_arrays(test, SIZE)
    model = keras.saving.load_model(folder / "model.keras", compile=False)
    assert found["top1"] == (
        kh.evaluation.evaluate_classifier(model, loaded.images, loaded.labels).top1
    )


def test_evaluate_does_not_overwrite_a_trainings_results(capsys, folder, tmp_path):
    (tmp_path / "results.json").write_text('{"top1": 0.9}')
    message = failure(
        capsys, "evaluate", folder / "model.keras", "--data", folder / "faces", "--out", tmp_path
    )
    assert "give --out another folder" in message
    assert (tmp_path / "results.json").read_text() == '{"top1": 0.9}'


def test_evaluate_gives_a_model_the_landmarks_of_a_table(capsys, folder, tmp_path):
    small = {k: v for k, v in SMALL["kprpe_*"].items() if k != "input_shape"}
    model = spread(
        kh.applications.KPRPE(
            input_shape=(SIZE, SIZE, 3), **small, landmarks="given", classes=PEOPLE
        )
    )
    model.save(tmp_path / "model.keras")
    names = sorted(path.relative_to(folder / "faces") for path in (folder / "faces").rglob("*.png"))
    landmarks, table = write_tables(names, tmp_path)
    data = ("--data", table, "--images", folder / "faces")
    pairs = ("--pairs", folder / "pairs.txt", "--pairs-images", folder / "faces")
    given = ("--landmarks", landmarks), ("--pairs-landmarks", landmarks)
    status, _, err = run(
        capsys, "evaluate", tmp_path / "model.keras", *data, *given[0], *pairs, *given[1],
        "--flip", "--out", tmp_path / "out",
    )  # fmt: skip
    assert status == 0, err
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    source = kh.data.open_source(table, images=folder / "faces", landmarks=landmarks)
    loaded = kh.data.load_arrays(source, SIZE)
    expected = kh.evaluation.evaluate_classifier(
        model, loaded.images, loaded.labels, flip=True, landmarks=loaded.landmarks
    )
    assert results["classification"]["f1_macro"] == pytest.approx(expected.f1_macro)
    read = kh.data.read_pairs(folder / "pairs.txt", folder / "faces", landmarks=landmarks)
    verified = kh.evaluation.evaluate_pairs(model, read, flip=True)
    assert results["verification"]["auc"] == pytest.approx(verified.auc)
    command = ("evaluate", tmp_path / "model.keras")
    assert "has no landmarks" in failure(capsys, *command, *data)
    assert "--pairs-landmarks" in failure(capsys, *command, *pairs)
    plain = ("evaluate", folder / "model.keras")
    assert "takes no landmarks: leave --landmarks out" in failure(capsys, *plain, *data, *given[0])
    assert "belongs to --pairs-images" in failure(capsys, *command, *data, *given[1], status=2)


def test_evaluate_needs_the_classes_of_the_model(capsys, folder):
    message = failure(capsys, "evaluate", folder / "model.keras", "--data", "synthetic:3x2")
    assert "synthetic:3x2 has 3 classes" in message
    assert "does not exist" in failure(
        capsys, "evaluate", folder / "model.keras", "--data", folder / "nowhere"
    )


def test_evaluate_says_what_is_not_there_or_holds_nothing(capsys, folder, tmp_path):
    command = ("evaluate", folder / "model.keras")
    nowhere = tmp_path / "people"
    assert f"--pairs: {nowhere} does not exist" in failure(capsys, *command, "--pairs", nowhere)
    assert "`spec` is empty" in failure(capsys, *command, "--pairs", "")
    np.savez(tmp_path / "a.npz", x=np.zeros((PEOPLE, 8, 8, 3), np.uint8), y=np.arange(PEOPLE))
    message = failure(capsys, *command, "--data", tmp_path / "a.npz", "--test-fraction", 0.5)
    assert "--test-fraction 0.5 holds none of" in message


def test_evaluate_refuses_classes_of_other_names_or_order(capsys, folder, face, lonely_model):
    results = lonely_model.parent / "results.json"
    command = ("evaluate", lonely_model, "--data", folder / "faces")
    right = [f"p{i}" for i in range(PEOPLE)]
    numbers = [str(i) for i in range(PEOPLE)]  # of a model that was trained on arrays
    for names in (right, numbers, right[:3]):
        results.write_text(json.dumps({"class_names": names}))
        assert run(capsys, *command)[0] == 0
    for names, said in (
        (["p0", "p2", "p1", "p3", "p4"], "1 is 'p1', not 'p2', 2 is 'p2', not 'p1'"),
        ([*right[:4], "Zoe"], "4 is 'p4', not 'Zoe'"),
    ):
        results.write_text(json.dumps({"class_names": names}))
        message = failure(capsys, *command)
        assert f"{results} says" in message and said in message


def test_evaluate_numbers_a_split_as_the_training_split(capsys, folder, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(folder / "faces", data / "train")
    for person in (1, 4):
        shutil.copytree(folder / "faces" / f"p{person}", data / "test" / f"p{person}")
    command = ("evaluate", folder / "model.keras", "--split", "test", "--data")
    archive = shutil.make_archive(str(tmp_path / "data"), "zip", data)
    found = []
    for spec in (data, archive):
        assert run(capsys, *command, spec, "--out", tmp_path / "out")[0] == 0
        results = json.loads((tmp_path / "out" / "results.json").read_text())
        found.append(results["classification"]["top1"])
    faces = kh.data.open_source(folder / "faces")
    chosen = kh.data.Subset(faces, np.flatnonzero(np.isin(faces.labels, (1, 4))))
    loaded = kh.data.load_arrays(chosen, SIZE)
    model = keras.saving.load_model(folder / "model.keras", compile=False)
    expected = kh.evaluation.evaluate_classifier(model, loaded.images, loaded.labels)
    assert found == [expected.top1] * 2
    shutil.copytree(data / "test" / "p1", data / "test" / "stranger")
    message = failure(capsys, *command, data)
    assert f"--split test of {data} has classes that its split train lacks: stranger" in message


# align


def test_align_reads_the_columns_it_is_given(capsys, monkeypatch, tmp_path):
    class Everywhere:
        def __init__(self, path):
            pass

        def find(self, image):
            return [kh.data.Face((0, 0, 64, 64), kh.data.face_template(64), 0.9)]

    monkeypatch.setattr(kh.data, "FaceDetector", Everywhere)
    for i in range(4):
        image_module.new("RGB", (64, 64), (60 * i, 0, 0)).save(tmp_path / f"{i}.png")
    table = tmp_path / "faces.csv"
    table.write_text("name,who,part\n" + "".join(f"{i}.png,p{i},{'ab'[i % 2]}\n" for i in range(4)))
    columns = ("--file-column", "name", "--label-column", "who", "--split-column", "part")
    command = ("align", table, tmp_path / "out", "--detector", "x.onnx", "--image-size", 32)
    assert "`file_column`='file'" in failure(capsys, *command)
    status, _, err = run(capsys, *command, *columns, "--split", "b")
    assert status == 0, err
    assert kh.data.open_source(tmp_path / "out").class_names == ["p1", "p3"]


# training/evaluate.py


def test_the_script_is_the_same_command(capsys, folder):
    from training import evaluate

    arguments = [str(folder / "model.keras"), "--data", str(folder / "faces"), "--flip"]
    assert evaluate.main(arguments) == 0
    from_script = capsys.readouterr().out
    assert run(capsys, "evaluate", *arguments)[:2] == (0, from_script)


def test_the_script_runs_from_anywhere(tmp_path):
    script = Path(__file__).parents[1] / "training" / "evaluate.py"
    finished = subprocess.run(
        [sys.executable, str(script), "none.keras"],
        cwd=tmp_path,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 2
    # Before it come the lines that a backend writes of its own accord.
    assert finished.stderr.splitlines()[-1].startswith("error: Give --data, or --pairs")


# shard


def test_shard_writes_what_opens_as_the_folder_does(capsys, tmp_path):
    pytest.importorskip("array_record", reason="array-record is not installed")
    images, labels = kh.data.synthetic_identities(2, 3, image_size=16)
    np.savez(tmp_path / "faces.npz", x=images, y=labels)
    options = ("--shards", 2, "--image-size", 8, "--workers", 2)
    status, out, _ = run(capsys, "shard", tmp_path / "faces.npz", tmp_path / "out", *options)
    assert status == 0
    facts = dict(line.split(maxsplit=1) for line in out.splitlines() if "left out" not in line)
    assert (facts["images"], facts["classes"], facts["files"]) == ("6", "2", "3")
    expected = kh.data.load_arrays(kh.data.open_source(tmp_path / "faces.npz"), 8)
    found = kh.data.load_arrays(kh.data.open_source(tmp_path / "out"), 8)
    np.testing.assert_array_equal(found.images, expected.images)
    again = failure(capsys, "shard", tmp_path / "faces.npz", tmp_path / "out")
    assert "must be new or empty; it holds images-00000-of-00002.array_record" in again
    wrong = failure(capsys, "shard", "faces", "out", "--quality", 101, status=2)
    assert "--quality must be in [1, 100], got 101" in wrong


def test_shard_reads_the_columns_it_is_given_and_writes_aligned_faces(capsys, tmp_path):
    pytest.importorskip("array_record", reason="array-record is not installed")
    image = pytest.importorskip("PIL.Image")
    face = kh.data.face_template(112)
    points = ",".join(f"{axis}{i}" for i in range(5) for axis in "xy")
    lines = [f"name,who,{points}"]
    for i in range(4):
        pixels = np.random.default_rng(i).integers(0, 256, (150, 140, 3), "uint8")
        image.fromarray(pixels).save(tmp_path / f"{i}.png")
        lines.append(f"{i}.png,{'ab'[i % 2]},{','.join(map(str, (face + 10 + i).ravel()))}")
    table = tmp_path / "faces.csv"
    table.write_text("\n".join(lines))
    columns = ("--file-column", "name", "--label-column", "who")
    options = (*columns, "--align", "--image-size", 32)
    status, out, _ = run(capsys, "shard", table, tmp_path / "out", *options)
    assert status == 0 and "landmarks" in out
    found = kh.data.open_source(tmp_path / "out")
    expected = kh.data.open_source(
        table, align=True, image_size=32, file_column="name", label_column="who"
    )
    assert found.class_names == ["a", "b"] and found.read(0).shape == (32, 32, 3)
    for i in range(4):
        np.testing.assert_array_equal(found.read(i), expected.read(i))
    np.testing.assert_allclose(found.landmarks, expected.landmarks)
    assert "'name'" in failure(capsys, "shard", table, tmp_path / "b", "--file-column", "none")
