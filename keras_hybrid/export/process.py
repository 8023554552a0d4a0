"""The separate process a conversion runs in, and its failures told in a few lines."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CONVERSION_MODULE = "keras_hybrid.export.conversion"
_ESSENTIAL_LINES = 8
_DISTRIBUTIONS = {
    "ai_edge_litert": "ai-edge-litert",
}


class ExportError(RuntimeError):
    """A model could not be converted, or the converted file does not agree with the model."""


def require(*modules: str, purpose: str) -> None:
    """Check that optional dependencies are installed, without importing them.

    Args:
        *modules: Names of top-level modules.
        purpose: What they are needed for, to begin the sentence with.

    Raises:
        ImportError: If one or more are missing; the message says how to install them.
    """
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        names = ", ".join(_DISTRIBUTIONS.get(name, name) for name in missing)
        raise ImportError(
            f'{purpose} needs {names}, not installed here: pip install "keras-hybrid[export]"'
        )


def run_conversion(job: Mapping[str, Any], folder: Path, backend: str) -> dict[str, Any]:
    """Run one conversion in a process of its own.

    Args:
        job: What to convert and how, as :mod:`keras_hybrid.export.conversion` reads it; must be
            accepted by ``json.dump``.
        folder: An existing folder for the job's own files.
        backend: The Keras backend of that process.

    Returns:
        What the conversion answered.

    Raises:
        ExportError: If the process fails, with the lines of its output that matter.
    """
    job_file, answer_file, log_file = (
        folder / name for name in ("job.json", "answer.json", "log.txt")
    )
    job_file.write_text(json.dumps(job), encoding="utf-8")
    # Conversion needs no accelerator, and must not compete with the training that may hold it.
    environment = os.environ | {
        "KERAS_BACKEND": backend,
        "CUDA_VISIBLE_DEVICES": "-1",
        "JAX_PLATFORMS": "cpu",
        "TF_CPP_MIN_LOG_LEVEL": os.environ.get("TF_CPP_MIN_LOG_LEVEL", "2"),
        "PYTHONPATH": os.pathsep.join(entry or os.getcwd() for entry in sys.path),
    }
    command = [sys.executable, "-P", "-m", CONVERSION_MODULE, str(job_file), str(answer_file)]
    with log_file.open("wb") as log:
        finished = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            check=False,
        )
    answer = json.loads(answer_file.read_text("utf-8")) if answer_file.is_file() else {}
    if finished.returncode == 0 and "error" not in answer:
        return answer
    reason = answer.get("error") or _essential_lines(log_file.read_text("utf-8", "replace"))
    if not answer and finished.returncode < 0:
        reason = f"the process was ended by signal {-finished.returncode}.\n{reason}"
    raise ExportError(f"Export to {job['format']} failed: {reason}")


def _essential_lines(log: str) -> str:
    """Return the end of a log, without stack frames and the libraries' own chatter."""
    chatter = re.compile(r"^(\s|[IWE]\d{4} |WARNING|INFO|Traceback|\d{4}-\d\d-\d\d .*: [IW] )")
    lines = [line for line in log.splitlines() if line.strip() and not chatter.match(line)]
    return "\n".join(lines[-_ESSENTIAL_LINES:]) or "the process said nothing."
