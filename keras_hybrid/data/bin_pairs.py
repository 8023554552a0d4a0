"""InsightFace's verification files (lfw.bin, cfp_fp.bin, …), read without running what they hold.

Such a file is a pickle of (images, same): encoded images, of which 2i and 2i + 1 are a pair, and
for each pair whether it shows one person. Most were written by Python 2, some by Python 3, some
with numpy arrays. A pickle can call anything when it is loaded, so this reader knows only the names
that numpy arrays, numpy scalars and bytes need, and none of the real functions: stand-ins keep what
these would have been given.

Sources: InsightFace's ``lfw2pack.py`` and ``verification.py``; the pickles of numpy.
"""

import dataclasses
import os
import pickle
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_hybrid.data.files import decode_image
from keras_hybrid.data.pairs import PairList

__all__ = ["read_bin"]


def read_bin(path: str | os.PathLike, folds: int = 10) -> PairList:
    """Read a verification file of InsightFace.

    Args:
        path: The file, such as ``lfw.bin``.
        folds: Number of folds. They are runs of pairs in the file's order, of equal size or with
            one pair more in the first ones, as InsightFace makes them
            (``KFold(folds, shuffle=False)``).

    Returns:
        The pairs. Images are called ``lfw.bin[00017]``, by their place in the file. They stay
        encoded in memory; one that cannot be decoded stops with its name when it is read, since a
        protocol may not lose a pair.

    Raises:
        ValueError: If the file is no such pickle, holds anything but encoded images and truth
            values, or has not two images for each pair.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"`path`: there is no file {path}.")
    content = _unpickle(path)
    if not isinstance(content, list | tuple) or len(content) != 2:
        raise ValueError(f"{path} must hold (images, same), got {_kind(content)}.")
    images = [
        _image(item, f"{path}: image {i}")
        for i, item in enumerate(_items(content[0], f"{path}: the images"))
    ]
    same = [
        _truth(item, f"{path}: pair {i}")
        for i, item in enumerate(_items(content[1], f"{path}: what is the same"))
    ]
    if len(images) != 2 * len(same):
        raise ValueError(f"{path} has {len(images)} images for {len(same)} pairs, not two each.")
    whole = isinstance(folds, int | np.integer) and not isinstance(folds, bool)
    if not whole or not 1 <= folds <= len(same):
        raise ValueError(f"`folds` must lie in 1 … {len(same)}, the pairs, got {folds!r}.")
    digits = len(str(len(images) - 1))
    names = [f"{path.name}[{i:0{digits}}]" for i in range(len(images))]
    sizes = [len(part) for part in np.array_split(np.arange(len(same)), folds)]
    return PairList(
        tuple(names[0::2]),
        tuple(names[1::2]),
        np.array(same),
        np.repeat(np.arange(folds, dtype=np.int32), sizes),
        _Reader(dict(zip(names, images, strict=True))),
    )


@dataclasses.dataclass(frozen=True)
class _Reader:
    """Decodes an image by name."""

    images: Mapping[str, bytes]

    def __call__(self, name: str) -> np.ndarray:
        return decode_image(self.images[name], name)


# What is in the file


def _kind(item: Any) -> str:
    return f"{item.dtype!r} array" if isinstance(item, _Array) else type(item).__name__


def _items(container: Any, where: str) -> Sequence[Any]:
    """The elements of a list, a tuple or an array."""
    if isinstance(container, _Array):
        try:
            container = container.elements()
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
    if not isinstance(container, list | tuple):
        raise ValueError(f"{where} must be a list, got {_kind(container)}.")
    return container


def _image(item: Any, where: str) -> bytes:
    """An encoded image: bytes, or an array of them."""
    if isinstance(item, _Array) and item.dtype == "u1":
        item = item.content
    if not isinstance(item, bytes | bytearray):
        raise ValueError(f"{where} must be an encoded image in bytes, got {_kind(item)}.")
    return bytes(item)


def _truth(item: Any, where: str) -> bool:
    """A truth value, which some files hold as 0 and 1."""
    if not isinstance(item, int) or item not in (0, 1):
        raise ValueError(f"{where} must be True or False, got {item!r:.40}.")
    return bool(item)


# Unpickling


def _unpickle(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            # Text that Python 2 wrote is bytes: nobody can say in which encoding a JPEG is text.
            return _Unpickler(file, encoding="bytes").load()
    except OSError:
        raise
    except Exception as error:  # a damaged file sends the unpickler anywhere
        reason = str(error) or type(error).__name__
        raise ValueError(f"{path} is not a verification file of InsightFace: {reason}") from error


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> "_Call":
        function = _CALLS.get((re.sub(r"^numpy\._?core\.", "numpy.core.", module), name))
        if function is None:
            raise pickle.UnpicklingError(
                f"it asks for {module}.{name}; lists, bytes, truth values and numpy arrays of "
                "these are read, nothing else"
            )
        return _Call(function)

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it refers to objects outside the file")


class _Call:
    """What a pickle may call. Nothing can be set on it, as pickles can on ordinary objects."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]):
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setstate__(self, state: Any):
        raise pickle.UnpicklingError("it sets the state of a function")


class _DType:
    """Stands in for numpy.dtype: its name without the byte order, such as "b1", "u1", "S9", "O"."""

    __slots__ = ("name",)

    def __init__(self, name: bytes | str, *_: Any):
        text = name.decode("ascii") if isinstance(name, bytes) else name
        self.name = re.sub(r"^[<>|=]", "", text)

    def __setstate__(self, state: Any):
        pass  # byte order, which single bytes have not


class _Array:
    """Stands in for a numpy array."""

    __slots__ = ("content", "dtype")

    def __init__(self, content: Any = None, dtype: str = ""):
        self.content = content
        self.dtype = dtype

    def __setstate__(self, state: Any):
        *_, dtype, _, content = state  # version, shape, type, whether in Fortran's order, content
        self.content, self.dtype = content, dtype.name

    def elements(self) -> list[Any]:
        """The elements of a flat array."""
        is_bytes = isinstance(self.content, bytes | bytearray)
        width = re.fullmatch(r"S([1-9][0-9]*)", self.dtype)
        if self.dtype.startswith("O") and isinstance(self.content, list):
            return self.content
        if self.dtype == "b1" and is_bytes:
            return [bool(value) for value in self.content]
        if width and is_bytes:
            step = int(width[1])
            parts = [self.content[i : i + step] for i in range(0, len(self.content), step)]
            return [part.rstrip(b"\0") for part in parts]
        raise ValueError(f"numpy values of type {self.dtype!r} are not read.")


def _scalar(dtype: _DType, content: Any) -> Any:
    """Stands in for numpy's scalar: its value."""
    (value,) = _Array(content, dtype.name).elements()
    return value


def _encode(text: str, encoding: str) -> bytes:
    """Bytes, as Python 3 writes them for Python 2."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it encodes text as {encoding!r:.40}")
    return text.encode("latin1")


_CALLS: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "dtype"): _DType,
    ("numpy", "ndarray"): lambda *_: _Array(),
    ("numpy.core.multiarray", "_reconstruct"): lambda *_: _Array(),
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy.core.numeric", "_frombuffer"): lambda content, dtype, *_: _Array(content, dtype.name),
    ("_codecs", "encode"): _encode,
}
