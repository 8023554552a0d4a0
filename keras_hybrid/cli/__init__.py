"""``keras-hybrid list | info | verify | explain | export | convert | evaluate | shard``.

Arguments are read before Keras is imported, so that ``--backend`` can choose what it runs on. An
error is one sentence on stderr: exit status 2 for arguments that make no sense, 1 for everything
that fails later.
"""

import contextlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Sequence

from keras_hybrid.cli.arguments import BACKENDS, build_parser
from keras_hybrid.cli.errors import UsageError

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments without the program's name; ``None``: the process's own.

    Returns:
        The exit status: 0, 1 for a failure, 2 for wrong arguments.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        given = build_parser().parse_args(argv)
        given.check(given)
        if not _set_backend(given.backend):
            return _run_again(argv, given.backend)
        given.run(given)
        sys.stdout.flush()
    except UsageError as error:
        return _fail(error, 2)
    except SystemExit as exit_:  # --help and --version
        return int(exit_.code or 0)
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except (ValueError, ImportError, OSError, RuntimeError, MemoryError) as error:
        return _fail(error, 1)
    return 0


def _fail(error: object, status: int) -> int:
    text = str(error) or type(error).__name__
    if isinstance(error, OSError) and error.strerror and error.filename:
        text = f"{error.filename}: {error.strerror}"
    print(f"error: {text}", file=sys.stderr)
    return status


def _set_backend(wanted: str | None) -> bool:
    """Choose Keras's backend; return False if Keras already runs on another one.

    Raises:
        ImportError: If the backend, or without a wish every backend, is not installed.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    installed = [name for name in BACKENDS if importlib.util.find_spec(name) is not None]
    if wanted is not None and wanted not in installed:
        raise ImportError(
            f"The backend {wanted} is not installed: pip install 'keras-hybrid[{wanted}]'"
        )
    if "keras" in sys.modules:
        import keras

        return wanted in (None, keras.backend.backend())
    if wanted is not None:
        os.environ["KERAS_BACKEND"] = wanted
    elif "KERAS_BACKEND" not in os.environ and "tensorflow" not in installed:
        if not installed:
            raise ImportError(
                "Keras needs a backend: pip install 'keras-hybrid[tensorflow]', [jax] or [torch]"
            )
        os.environ["KERAS_BACKEND"] = installed[0]
    return True


def _run_again(argv: list[str], backend: str) -> int:
    """Run the same command in a process of its own, where Keras has yet to choose a backend."""
    environment = os.environ | {
        "KERAS_BACKEND": backend,
        "PYTHONPATH": os.pathsep.join(entry or os.getcwd() for entry in sys.path),
    }
    sys.stdout.flush()
    command = [sys.executable, "-P", "-m", "keras_hybrid.cli", *argv]
    return subprocess.run(command, env=environment, check=False).returncode
