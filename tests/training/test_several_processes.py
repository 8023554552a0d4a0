"""Replicas and processes, two of them, train as one device does on the same batches."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import keras
import pytest

from tests import cases

ROOT = pathlib.Path(__file__).resolve().parents[2]
HERE = pathlib.Path(__file__).parent
EXAMPLES = ROOT / "training" / "examples"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]

BACKEND = keras.backend.backend()


def environment(**more):
    """One thread each, and one device where nothing else is said."""
    path = os.pathsep.join([str(ROOT), *(entry for entry in sys.path if entry)])
    own = {"KERAS_BACKEND": BACKEND, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    if BACKEND == "jax":
        own["XLA_FLAGS"] = cases.xla_flags(1)
    return os.environ | own | more


def run(*command, **more):
    subprocess.run([*map(str, command)], env=environment(**more), check=True, cwd=ROOT)


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("localhost", 0))
        return listening.getsockname()[1]


def torchrun(*command):
    run(*TORCHRUN, "--master-port", free_port(), *command)


@pytest.fixture(scope="module")
def on_replicas(tmp_path_factory):
    file = tmp_path_factory.mktemp("replicas") / "answer.json"
    run(sys.executable, HERE / "train_on_replicas.py", file)
    return json.loads(file.read_text())


@pytest.mark.slow
@pytest.mark.skipif(BACKEND != "tensorflow", reason="MirroredStrategy is TensorFlow's")
@pytest.mark.parametrize("name", ["arcface", "curricularface", "adaface"])
def test_a_mirrored_strategy_trains_as_one_device(on_replicas, name):
    one, two = on_replicas[name]["one"], on_replicas[name]["two"]
    assert one.keys() == two.keys() and one["loss"][0] > one["loss"][-1] > 0
    for key in one:
        # AdaFace's deviation of the norms is the mean of those within each replica.
        tolerance = 1e-2 if name == "adaface" else 1e-4
        assert two[key] == pytest.approx(one[key], rel=tolerance, abs=1e-5), key


@pytest.mark.slow
@pytest.mark.skipif(BACKEND != "tensorflow", reason="MirroredStrategy is TensorFlow's")
def test_replicas_that_sample_classes_learn(on_replicas):
    # Each replica draws for its own images, so nothing is the same but the aim.
    loss = on_replicas["sampled"]["two"]["loss"]
    assert loss[0] > loss[-1] > 0


@pytest.fixture(scope="module")
def in_processes(tmp_path_factory):
    folders = [tmp_path_factory.mktemp(name) for name in ("one", "two")]
    run(sys.executable, HERE / "train_in_processes.py", folders[0])
    torchrun(HERE / "train_in_processes.py", folders[1])
    files = [folders[0] / "0.json", folders[1] / "0.json", folders[1] / "1.json"]
    return [json.loads(file.read_text()) for file in files]


@pytest.mark.slow
@pytest.mark.skipif(BACKEND != "torch", reason="DistributedDataParallel is PyTorch's")
@pytest.mark.parametrize(
    ("name", "tolerance"),
    # What an adaptive loss keeps is averaged over the processes after the step, not within it.
    [("cosface", 1e-5), ("curricularface", 1e-3), ("adaface", 1e-2)],
)
def test_two_processes_of_pytorch_train_as_one(in_processes, name, tolerance):
    one, first, second = (answer[name] for answer in in_processes)
    assert one["losses"][0] > one["losses"][-1] > 0
    assert first["losses"] == pytest.approx(one["losses"], rel=tolerance)
    assert first["weights"] == second["weights"]
    assert first["weights"] == pytest.approx(one["weights"], rel=tolerance)
    assert first["state"] == second["state"]
    assert first["state"] == pytest.approx(one["state"], rel=tolerance, abs=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(BACKEND != "torch", reason="DistributedDataParallel is PyTorch's")
def test_processes_that_sample_classes_keep_the_same_weights(in_processes):
    _, first, second = (answer["sampled"] for answer in in_processes)
    assert first["weights"] == second["weights"]
    assert sum(first["losses"][:5]) > sum(first["losses"][-5:])


@pytest.mark.slow
@pytest.mark.skipif(BACKEND != "torch", reason="DistributedDataParallel is PyTorch's")
def test_the_command_of_the_documentation_runs(tmp_path):
    torchrun(EXAMPLES / "ddp_torch.py", "--epochs", 2, "--out", tmp_path)
    losses = json.loads((tmp_path / "losses.json").read_text())
    assert len(losses) == 12 and losses[-1] < losses[0]
    assert keras.saving.load_model(tmp_path / "model.keras").count_params() > 0


@pytest.mark.skipif(BACKEND != "torch", reason="DistributedDataParallel is PyTorch's")
def test_a_batch_that_the_processes_do_not_divide_is_refused(monkeypatch, capsys):
    from training.examples import ddp_torch

    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setattr(sys, "argv", ["ddp_torch.py", "--batch-size", "16"])
    with pytest.raises(SystemExit):
        ddp_torch.main()
    message = "--batch-size must be a multiple of the number of processes, 3; got 16."
    assert message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(BACKEND != "jax", reason="jax.distributed")
def test_two_processes_of_jax_train_as_one(tmp_path):
    """Images are split over the processes, and classes over the two devices of each."""
    script = [sys.executable, EXAMPLES / "multi_host_jax.py", "--epochs", 2]
    run(*script, "--out", tmp_path / "one", JAX_PLATFORMS="cpu")
    script += ["--coordinator", f"localhost:{free_port()}", "--processes", 2, "--mesh-model", 2]
    script += ["--out", tmp_path / "two", "--process"]
    two_devices = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": cases.xla_flags(2)}
    other = subprocess.Popen([*map(str, script), "1"], env=environment(**two_devices), cwd=ROOT)
    try:
        run(*script, 0, **two_devices)
        assert other.wait(60) == 0
    finally:
        other.kill()
    one, two = (
        json.loads((tmp_path / folder / "history.json").read_text()) for folder in ("one", "two")
    )
    assert one["loss"][0] > one["loss"][-1] > 0
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)
    models = [keras.saving.load_model(tmp_path / f / "model.keras") for f in ("one", "two")]
    for first, second in zip(*(model.get_weights() for model in models), strict=True):
        assert second == pytest.approx(first, abs=1e-4)
