"""Evaluate a model: ``python training/evaluate.py MODEL.keras --data SPEC --pairs pairs.txt …``.

The same as ``keras-hybrid evaluate …``; see its ``--help``.
"""

import pathlib
import sys

if __package__ in (None, ""):  # run as a file: find the package beside this folder
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    from keras_hybrid import cli

    return cli.main(["evaluate", *(sys.argv[1:] if arguments is None else arguments)])


if __name__ == "__main__":
    sys.exit(main())
