"""``keras-hybrid list | info | verify | explain | export | convert | evaluate | align | shard``.

Where Keras runs on another backend than ``--backend`` names, the command starts itself again. An
error is one sentence on stderr: exit status 2 for arguments that make no sense, 1 for everything
that fails later.
"""

import contextlib
import importlib.util
import io
import os
import subprocess
import sys
from collections.abc import Sequence

from keras_hybrid.cli.arguments import build_parser
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
    if isinstance(sys.stdout, io.TextIOWrapper):  # a folder's name may be no text
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        given = build_parser().parse_args(argv)
        given.check(given)
        if not _runs_on(given.backend):
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
    except Exception as error:
        if not type(error).__module__.startswith("tensorflow."):
            raise
        # TensorFlow's errors derive from Exception alone; the graph's trace follows the first line.
        return _fail(next(iter(str(error).strip().splitlines()), type(error).__name__), 1)
    return 0


def _fail(error: object, status: int) -> int:
    text = str(error) or type(error).__name__
    if isinstance(error, OSError) and error.strerror and error.filename:
        text = f"{error.filename}: {error.strerror}"
    print(f"error: {text}", file=sys.stderr)
    return status


def _runs_on(wanted: str | None) -> bool:
    """Tell whether Keras, which comes with this package, runs on the wanted backend.

    Raises:
        ImportError: If that backend is not installed.
    """
    if wanted is not None and importlib.util.find_spec(wanted) is None:
        raise ImportError(
            f"The backend {wanted} is not installed: pip install 'keras-hybrid[{wanted}]'"
        )
    import keras

    return wanted in (None, keras.backend.backend())


def _run_again(argv: list[str], backend: str) -> int:
    """Run the same command in a process of its own, where Keras has yet to choose a backend."""
    environment = os.environ | {
        "KERAS_BACKEND": backend,
        "PYTHONPATH": os.pathsep.join(entry or os.getcwd() for entry in sys.path),
    }
    sys.stdout.flush()
    command = [sys.executable, "-P", "-m", "keras_hybrid.cli", *argv]
    return subprocess.run(command, env=environment, check=False).returncode
