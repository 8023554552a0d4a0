"""Tokens on the grid of an image's places."""

import math
from collections.abc import Sequence

import numpy as np

__all__ = ["has_class_token", "on_grid", "token_grid"]


def token_grid(tokens: int, size: tuple[int, int]) -> tuple[int, int] | None:
    """Return (rows, columns) with the proportions of ``size``, or None if there is no such grid.

    Args:
        tokens: Number of tokens, without a class token.
        size: (height, width) of the image.
    """
    height, width = size
    divisor = math.gcd(height, width)
    rows, columns = height // divisor, width // divisor
    scale = math.isqrt(max(tokens, 0) // (rows * columns))
    if scale and rows * columns * scale * scale == tokens:
        return rows * scale, columns * scale
    return None


def has_class_token(tokens: int, size: tuple[int, int]) -> bool:
    """Return whether the tokens are a grid of the image's proportions and one before it."""
    return not token_grid(tokens, size) and bool(token_grid(tokens - 1, size))


def on_grid(values: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Put tokens on their grid, leaving out a class token; maps stay what they are.

    Args:
        values: Maps (batch, rows, columns, channels) or tokens (batch, tokens, channels).
        size: (height, width) of the image.

    Returns:
        Array of shape (batch, rows, columns, channels).

    Raises:
        ValueError: If the tokens are no grid with the image's proportions.
    """
    if values.ndim == 4:
        return values
    batch, tokens, channels = values.shape
    if has_class_token(tokens, size):
        values, tokens = values[:, 1:], tokens - 1
    grid = token_grid(tokens, size)
    if grid is None:
        raise ValueError(
            f"{tokens} tokens are no grid with the proportions of {size[0]}x{size[1]} images, with "
            "or without a class token."
        )
    return values.reshape(batch, *grid, channels)
