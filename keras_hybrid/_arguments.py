"""What the checks of arguments share throughout the package."""

import operator
from typing import Any

__all__: list[str] = []


def positive_integer(value: Any) -> int | None:
    """Return a positive integer of Python or NumPy as an ``int``, and None for all else."""
    try:
        number = operator.index(value)
    except TypeError:
        return None
    return number if number > 0 else None
