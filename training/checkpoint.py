"""What runs beside ``fit``: checkpoints that survive a kill, measurements, and reasons to end."""

import contextlib
import csv
import json
import os
import pathlib
import shutil
import time
from collections.abc import Collection
from typing import Any

import keras
import numpy as np

__all__ = [
    "Checkpoint",
    "StopAtNaN",
    "StopEarly",
    "Throughput",
    "VerifyPairs",
    "averaged_weights",
    "use_averaged_weights",
    "verified_stages",
]

POINTER = "latest.json"
# Files and folders of a run beside its checkpoints, as patterns.
RESULTS = (
    "best.keras",
    "last.keras",
    "results.json",
    "report.html",
    "confusion.png",
    "roc.png",
    "roc_over_training.png",
    "scores.png",
    "model.tflite",
    "model_*.tflite",
    "model.onnx*",
    "saved_model",
    "tensorboard",
)
STAGES = "checkpoint/pairs"  # goes with the checkpoints when a run is thrown away


def check_settings(
    folder: str | os.PathLike, fingerprint: dict, defaults: dict, changeable: Collection[str]
) -> None:
    """Raise ValueError if a folder holds a checkpoint of a run with other settings.

    Args:
        folder: Of the run.
        fingerprint: The settings; a path is the same however it is written.
        defaults: What a setting was for a run that was begun before it had a name.
        changeable: Settings that may be others.
    """
    pointer = pathlib.Path(folder) / "checkpoint" / POINTER
    if not pointer.exists():
        return
    # As JSON gives them back, where a tuple is a list.
    now, known = json.loads(json.dumps([fingerprint, defaults]))
    before = {key: value for key, value in known.items() if key in now}
    before |= json.loads(pointer.read_text())["fingerprint"]

    def is_changed(key: str) -> bool:
        values = before.get(key), now.get(key)
        if all(isinstance(value, str) for value in values):
            return len({*map(os.path.abspath, values)}) > 1
        return values[0] != values[1]

    changed = sorted(filter(is_changed, (now.keys() | before.keys()) - {*changeable}))
    if changed:
        was = {key: before.get(key) for key in changed}
        raise ValueError(
            f"{folder} holds a run with other settings ({was}). Give the same ones to continue it, "
            "another --out, or train.py's --restart to throw it away."
        )


class Checkpoint(keras.callbacks.Callback):
    """Writes everything a run needs to go on, every so many steps and at each epoch's end.

    Model weights, the random states of dropout and drop path, the state of adaptive losses, and the
    optimizer's variables (with its step count, hence the schedule's place) go to one .npz; the
    epoch, the next batch and the history to ``latest.json``, which names the .npz and is replaced
    in one step, last. A kill at any moment leaves the previous checkpoint valid.

    Keras's ``BackupAndRestore`` restarts the epoch it was killed in with the weights of its middle;
    this one goes on with the next batch. ``best.keras`` is the model at its highest validation
    accuracy, with the average of its weights where the optimizer keeps one.

    Args:
        folder: Folder of the run; checkpoints go to ``checkpoint/`` in it, the history also to
            ``history.csv``.
        batches: The ``keras_hybrid.data.Batches`` of ``fit``: knows epoch and batch.
        interval: Steps between checkpoints within an epoch.
        fingerprint: What the run computes; a checkpoint of another run is not continued.
        defaults: What a setting was for a run that was begun before it had a name.
        changeable: Settings that may be others when the run is continued.

    Attributes:
        history: One dictionary of logs for each finished epoch.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        batches,
        interval: int,
        fingerprint: dict,
        defaults: dict | None = None,
        changeable: Collection[str] = (),
    ):
        super().__init__()
        self.folder = pathlib.Path(folder) / "checkpoint"
        self.table = pathlib.Path(folder) / "history.csv"
        self.batches = batches
        self.interval = interval
        self.fingerprint, self.defaults = fingerprint, defaults or {}
        self.changeable = frozenset(changeable)
        self.history: list[dict[str, float]] = []
        self.seconds = 0.0
        self._random_state: dict[str, np.ndarray] = {}
        self._start = self._done = 0
        self._since = time.monotonic()

    def restore(self) -> bool:
        """Load the latest checkpoint into the model, the optimizer and the batches.

        Returns:
            Whether there was one.

        Raises:
            ValueError: If the folder belongs to a run with other settings.
        """
        pointer = self.folder / POINTER
        if not pointer.exists():
            return False
        check_settings(self.folder.parent, self.fingerprint, self.defaults, self.changeable)
        state = json.loads(pointer.read_text())
        if not self.model.optimizer.built:  # Keras's loss scaling makes its variables each time
            self.model.optimizer.build(self.model.trainable_variables)
        with np.load(self.folder / state["file"]) as arrays:
            variables = self._variables()
            if {name for name in arrays.files if name.isdigit()} != variables.keys():
                raise ValueError(f"{self.folder / state['file']} does not fit the model.")
            for key, variable in variables.items():
                variable.assign(arrays[key])
            self._random_state = {key: arrays[key] for key in arrays.files if not key.isdigit()}
        self.history = state["history"]
        self.seconds = state["seconds"]
        self.batches.set_position(state["epoch"], state["batch"])
        return True

    def _variables(self) -> dict[str, Any]:
        variables = list(self.model.variables) + list(self.model.optimizer.variables)
        adaptive = getattr(self.model, "margin_state", None)
        if adaptive is not None:
            variables += adaptive.variables
        kept = {id(v): v for v in variables}
        metrics = {id(v) for v in self.model.metrics_variables} - (
            {id(v) for v in adaptive.variables} if adaptive is not None else set()
        )
        return {f"{i:05d}": v for i, v in enumerate(v for k, v in kept.items() if k not in metrics)}

    def save(self, epoch: int, batch: int) -> None:
        """Write a checkpoint from which a run goes on with ``batch`` of ``epoch``."""
        _sync(self.model)
        self.folder.mkdir(parents=True, exist_ok=True)
        name = f"epoch{epoch:04d}_batch{batch:06d}.npz"
        arrays = {
            key: keras.ops.convert_to_numpy(variable.value)
            for key, variable in self._variables().items()
        }
        arrays.update(_torch_random_state())
        temporary = self.folder / f".{name}.partial"
        with temporary.open("wb") as file:
            np.savez(file, **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.folder / name)
        now = time.monotonic()
        self.seconds += now - self._since
        self._since = now
        state = {
            "file": name,
            "epoch": epoch,
            "batch": batch,
            "seconds": self.seconds,
            "history": self.history,
            "fingerprint": self.fingerprint,
        }
        temporary = self.folder / f".{POINTER}.partial"
        temporary.write_text(json.dumps(state, indent=1))
        os.replace(temporary, self.folder / POINTER)
        for old in self.folder.glob("*.npz"):
            if old.name != name:
                old.unlink()

    def discard(self) -> None:
        """Remove what an earlier run left that this one would mix with its own or pass for it."""
        shutil.rmtree(self.folder, ignore_errors=True)
        for pattern in (self.table.name, *RESULTS):
            for path in self.table.parent.glob(pattern):
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)

    def on_train_begin(self, logs=None):
        """Start the clock."""
        self._since = time.monotonic()

    def on_epoch_begin(self, epoch, logs=None):
        """Remember which batch of the epoch is Keras's first."""
        self._start = self.batches.start_batch
        self._done = self._start
        if self._start == 0:  # the state is from before PyTorch's loader drew its own seed
            self._set_random_state()

    def on_train_batch_begin(self, batch, logs=None):
        """Set PyTorch's random numbers to where a checkpoint within an epoch left them, once."""
        self._set_random_state()

    def _set_random_state(self) -> None:
        # Not before ``fit`` has begun: it runs the model to learn its shapes.
        _set_torch_random_state(self._random_state)
        self._random_state = {}

    def on_train_batch_end(self, batch, logs=None):
        """Write a checkpoint if it is time; of several steps in one execution it sees the last."""
        before, self._done = self._done, self._start + batch + 1
        is_time = self._done // self.interval > before // self.interval
        if is_time and self._done < self.batches.batches_per_epoch:
            self.save(self.batches.epoch, self._done)

    def on_epoch_end(self, epoch, logs=None):
        """Add to the history and write a checkpoint at the next epoch's start."""
        seconds = self.seconds + time.monotonic() - self._since
        if logs is not None:
            logs["seconds"] = seconds  # for the callbacks after this one, too
        logs = {key: float(value) for key, value in (logs or {}).items()}
        self.history.append({"epoch": epoch, **logs, "seconds": seconds})
        if "val_accuracy" in logs and logs["val_accuracy"] >= max(
            row.get("val_accuracy", -1.0) for row in self.history
        ):
            with averaged_weights(self.model):
                self.model.save(self.folder.parent / "best.keras")
        self.save(epoch + 1, 0)
        self._write_csv()

    def _write_csv(self) -> None:
        # Written whole from the checkpoint's history: a resumed run leaves no gap and no repeat.
        columns = dict.fromkeys(key for row in self.history for key in row)
        temporary = self.table.with_name(f".{self.table.name}.partial")
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(columns))
            writer.writeheader()
            writer.writerows(self.history)
        os.replace(temporary, self.table)


def _sync(model: keras.Model) -> None:
    """Bring a model's variables up to date within ``fit``: JAX trains on a copy of the state."""
    sync = getattr(model, "jax_state_sync", None)
    if sync is not None:
        sync()


def _torch_random_state() -> dict[str, np.ndarray]:
    """Return the state of PyTorch's own generators, which Keras's dropout draws from there."""
    if keras.backend.backend() != "torch":
        return {}
    import torch

    state = {"torch_cpu": torch.get_rng_state().numpy()}
    for i, device in enumerate(torch.cuda.get_rng_state_all()):
        state[f"torch_cuda{i}"] = device.numpy()
    return state


def _set_torch_random_state(state: dict[str, np.ndarray]) -> None:
    if not state:
        return
    import torch

    torch.set_rng_state(torch.from_numpy(state["torch_cpu"]))
    for i in range(torch.cuda.device_count()):
        if f"torch_cuda{i}" in state:
            torch.cuda.set_rng_state(torch.from_numpy(state[f"torch_cuda{i}"]), i)


@contextlib.contextmanager
def averaged_weights(model: keras.Model):
    """Put the optimizer's moving average, if it keeps one, in the place of the weights."""
    _sync(model)
    if not _with_average(model).use_ema:
        yield
        return
    kept = [keras.ops.convert_to_numpy(v.value) for v in model.trainable_variables]
    use_averaged_weights(model)
    try:
        yield
    finally:
        for variable, value in zip(model.trainable_variables, kept, strict=True):
            variable.assign(value)


def use_averaged_weights(model: keras.Model) -> None:
    """Overwrite the weights with the optimizer's moving average, if it keeps one."""
    _with_average(model).finalize_variable_values(model.trainable_variables)
    for variable in model.trainable_variables:
        # A copy: JAX gives arrays away when it predicts, and this one is the optimizer's, too.
        variable.assign(keras.ops.convert_to_numpy(variable.value))


def _with_average(model: keras.Model) -> keras.optimizers.Optimizer:
    """The optimizer behind the one that scales losses for float16."""
    return getattr(model.optimizer, "inner_optimizer", model.optimizer)


class StopEarly(keras.callbacks.Callback):
    """Ends a run when the validation accuracy has stopped rising.

    It goes by the checkpoint's history alone, so that a resumed run ends where an uninterrupted one
    would; Keras's ``EarlyStopping`` counts anew. Must come after the checkpoint in the list.

    Args:
        checkpoint: The run's `Checkpoint`.
        patience: Epochs without a better validation accuracy.
    """

    def __init__(self, checkpoint: Checkpoint, patience: int):
        super().__init__()
        self.checkpoint = checkpoint
        self.patience = patience

    def is_time(self) -> bool:
        """Whether the run is over."""
        history = self.checkpoint.history
        best = max(history, key=lambda row: row.get("val_accuracy", -1.0), default=None)
        if best is None or "val_accuracy" not in best:
            return False
        validated = [row["epoch"] for row in history if "val_accuracy" in row]
        return validated[-1] - best["epoch"] >= self.patience

    def on_epoch_end(self, epoch, logs=None):
        """Look at the history, which has this epoch already."""
        if self.is_time():
            self.model.stop_training = True


class StopAtNaN(keras.callbacks.Callback):
    """Ends a run whose loss is no longer a number, saying where and what to try."""

    def on_train_batch_end(self, batch, logs=None):
        """Look at the running mean of the loss."""
        loss = (logs or {}).get("loss")
        if loss is None or np.isfinite(loss):
            return
        optimizer = self.model.optimizer
        step = int(keras.ops.convert_to_numpy(optimizer.iterations))
        rate = float(keras.ops.convert_to_numpy(optimizer.learning_rate))
        optimizer = getattr(optimizer, "inner_optimizer", optimizer)  # of loss scaling
        is_muon = isinstance(optimizer, keras.optimizers.Muon)
        option = "--matrix-learning-rate" if is_muon else "--learning-rate"
        raise FloatingPointError(
            f"The loss is {float(loss)} at step {step} (batch {batch} of the epoch), learning rate "
            f"{rate:.3g}. Try, in this order: a lower {option} or, with --schedule cosine, "
            "more --warmup-epochs; for a loss with a margin --loss cosface with a smaller "
            "--margin, or a smaller --scale; --clip-norm 1; --precision mixed_bfloat16 or float32 "
            "instead of mixed_float16. The last checkpoint is from before."
        )


class Throughput(keras.callbacks.Callback):
    """Adds ``images_per_second`` of training, without validation, to each epoch's logs.

    The first execution of a run, in which a backend compiles, is left out where its epoch has
    others.
    """

    def __init__(self, batches):
        super().__init__()
        self.batches = batches

    def on_train_begin(self, logs=None):
        """Expect a compilation."""
        self._compiled = False

    def on_epoch_begin(self, epoch, logs=None):
        """Start counting."""
        self._begin = self._last = time.monotonic()
        self._steps, self._left = 0, len(self.batches)
        self._begin_after_first, self._first = None, 0

    def on_train_batch_end(self, batch, logs=None):
        """Count a step."""
        # The last execution of an epoch may have fewer steps than Keras counts.
        self._steps = min(batch + 1, self._left)
        self._last = time.monotonic()
        if not self._compiled:
            self._compiled = True
            self._begin_after_first, self._first = self._last, self._steps

    def on_epoch_end(self, epoch, logs=None):
        """Put the rate into the logs that later callbacks see."""
        if logs is None or not self._steps:
            return
        steps, begin = self._steps, self._begin
        if self._steps > self._first > 0:
            steps, begin = steps - self._first, self._begin_after_first
        elapsed = max(self._last - begin, 1e-9)
        logs["images_per_second"] = steps * self.batches.batch_size / elapsed


class VerifyPairs(keras.callbacks.Callback):
    """Verifies pairs of people that are not trained on, every so many epochs.

    Adds ``pairs_accuracy``, ``pairs_accuracy_std``, ``pairs_auc`` and ``pairs_xnorm`` (the mean
    length of an embedding before normalisation) to the epoch's logs. Must come before the
    checkpoint in the list, which keeps them. No threshold and no model is chosen by them. The
    pairs' scores, four bytes each, stay for `verified_stages`.

    Args:
        pairs: ``keras_hybrid.data.PairList``.
        every: Epochs between verifications.
        folder: Folder of the run.
    """

    def __init__(self, pairs, every: int, folder: pathlib.Path):
        super().__init__()
        self.pairs = pairs
        self.every = every
        self.folder = folder / STAGES

    def on_epoch_end(self, epoch, logs=None):
        """Verify, with the average of the weights where the optimizer keeps one."""
        from keras_hybrid import evaluation

        if (epoch + 1) % self.every or logs is None:
            return
        with averaged_weights(self.model):
            found = evaluation.evaluate_pairs(self.model, self.pairs)
        logs["pairs_accuracy"] = found.accuracy
        logs["pairs_accuracy_std"] = found.accuracy_std
        logs["pairs_auc"] = found.auc
        logs["pairs_xnorm"] = found.xnorm
        self.folder.mkdir(parents=True, exist_ok=True)
        np.savez(
            self.folder / f"epoch{epoch + 1:04d}.npz",
            scores=found.scores.astype("float32"),
            same=found.same,
        )


def verified_stages(folder: pathlib.Path) -> dict[int, Any]:
    """Return the ``RocCurve`` of each verification that `VerifyPairs` made, by finished epochs."""
    from keras_hybrid.evaluation import roc_curve

    stages = {}
    for file in sorted((folder / STAGES).glob("epoch*.npz")):
        with np.load(file) as arrays:
            curve = roc_curve(arrays["scores"], arrays["same"])
        stages[int(file.stem.removeprefix("epoch"))] = curve
    return stages
