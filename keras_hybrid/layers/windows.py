"""Maps cut into windows, and put together again."""

from keras import ops

__all__ = ["merge_windows", "partition_windows"]


def partition_windows(x, height: int, width: int):
    """Cut maps into windows that do not overlap: reshapes and one transpose, all of rank 4.

    Args:
        x: Maps, shape (batch, map height, map width, channels), multiples of a window.
        height: Of a window.
        width: Of a window.

    Returns:
        Tokens of shape (batch · windows, height · width, channels): windows of an image row by row,
        tokens of a window row by row.
    """
    _, _, map_width, channels = x.shape
    x = ops.reshape(x, (-1, height, map_width // width, width * channels))
    x = ops.transpose(x, (0, 2, 1, 3))
    return ops.reshape(x, (-1, height * width, channels))


def merge_windows(x, height: int, width: int, map_height: int, map_width: int):
    """Put windows back into maps, the inverse of :func:`partition_windows`.

    Args:
        x: Tokens, shape (batch · windows, height · width, channels).
        height: Of a window.
        width: Of a window.
        map_height: Of the map.
        map_width: Of the map.

    Returns:
        Maps of shape (batch, map_height, map_width, channels).
    """
    channels = x.shape[-1]
    x = ops.reshape(x, (-1, map_width // width, height, width * channels))
    x = ops.transpose(x, (0, 2, 1, 3))
    return ops.reshape(x, (-1, map_height, map_width, channels))
