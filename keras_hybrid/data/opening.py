"""From what a user names to a source."""

import inspect
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from keras_hybrid.data.alignment import AlignedSource
from keras_hybrid.data.array_sources import ArraySource, NpzSource, TFDSSource
from keras_hybrid.data.files import some
from keras_hybrid.data.recordio import RecordIOSource
from keras_hybrid.data.shards import ShardSource, is_sharded
from keras_hybrid.data.sources import CSVSource, FolderSource, ImageSource, ZipSource
from keras_hybrid.data.synthetic import synthetic_identities

__all__ = ["open_source"]


def open_source(
    spec: str | os.PathLike | tuple[np.ndarray, np.ndarray] | ImageSource,
    *,
    split: str | None = None,
    images: str | os.PathLike | None = None,
    image_size: int | None = None,
    align: bool = False,
    **options: Any,
) -> ImageSource:
    """Open whatever holds labelled images.

    Args:
        spec: One of

            - a folder or a .zip with a folder per identity (:class:`FolderSource`,
              :class:`ZipSource`);
            - a .csv of files and labels (:class:`CSVSource`);
            - an .npz of arrays (:class:`NpzSource`);
            - a .rec, or a folder with train.rec (:class:`RecordIOSource`);
            - a folder that :func:`write_shards` has written (:class:`ShardSource`);
            - ``"tfds:NAME"`` (:class:`TFDSSource`);
            - ``"synthetic:IDENTITIESxIMAGES"``, e.g. ``"synthetic:32x24"``
              (:func:`keras_hybrid.data.synthetic_identities`);
            - a tuple ``(images, labels)`` of arrays (:class:`ArraySource`);
            - a source, which is returned as it is.
        split: Sub-folder, value of the split column, suffix of the arrays, TFDS split or name of
            the .rec in a folder; not for synthetic identities and arrays: see
            :func:`split_source`.
        images: For a .csv: the folder or .zip its files are relative to.
        image_size: For synthetic identities: their height and width (default 64). With ``align``:
            the side of the crops (default 112). Other sources keep the size of their images;
            :func:`keras_hybrid.data.load_arrays` resizes.
        align: Whether photographs with landmarks are aligned when they are read
            (:class:`AlignedSource`).
        **options: Further keyword arguments of the source's class; for synthetic identities
            ``seed`` and ``first_identity``.

    Returns:
        The source.

    Raises:
        ValueError: If the specification, the split or an option is not known.
    """
    if align:
        source = open_source(spec, split=split, images=images, **options)
        return AlignedSource(source, **({} if image_size is None else {"image_size": image_size}))
    if isinstance(spec, ImageSource):
        return _build(lambda: spec, spec, split, images, options, {})
    if isinstance(spec, tuple):
        if len(spec) != 2:
            raise ValueError(f"A tuple must be (images, labels), got {len(spec)} elements.")
        return _build(ArraySource, "arrays", split, images, options, {}, *spec)
    text = os.fspath(spec)
    if not text:  # a path made of it would be the current folder
        raise ValueError("`spec` is empty; name a folder, a file or a data set.")
    if text.startswith("synthetic:"):
        match = re.fullmatch(r"synthetic:(\d+)x(\d+)", text)
        if not match:
            raise ValueError(
                f"{text!r} must be 'synthetic:IDENTITIESxIMAGES', e.g. 'synthetic:32x24'."
            )
        size = {} if image_size is None else {"image_size": image_size}
        return _build(
            _synthetic_source, text, split, images, options, {}, *map(int, match.groups()), **size
        )
    if text.startswith("tfds:"):
        name = text.removeprefix("tfds:")
        return _build(TFDSSource, text, None, images, options, {"split": split or "train"}, name)
    path = Path(text)
    suffix = "" if path.is_dir() else path.suffix.lower()  # a folder may be called data.zip
    splitting = {"split": split}
    if suffix == ".csv":
        return _build(CSVSource, text, None, None, options, splitting, path, images)
    if suffix == ".npz":
        return _build(NpzSource, text, None, images, options, splitting, path)
    if suffix == ".zip":
        return _build(ZipSource, text, None, images, options, splitting, path)
    if path.is_dir():
        has_records = any((path / f"{name}.rec").is_file() for name in {"train", split or "train"})
        source = RecordIOSource if has_records else FolderSource
        source = ShardSource if is_sharded(path / (split or "")) else source
        try:
            return _build(source, text, None, images, options, splitting, path)
        except ValueError:
            if split is None and (parts := _sharded_parts(path)):
                raise ValueError(
                    f"{text} has shards in its folders {some(parts)}: choose one of them by "
                    "`split`."
                ) from None
            raise
    if suffix == ".rec" or path.with_name(f"{path.name}.rec").is_file():
        return _build(RecordIOSource, text, split, images, options, {"split": None}, path)
    problem = "is a file of unknown type" if path.is_file() else "does not exist"
    raise ValueError(
        f"{text!r} {problem}. Accepted: a folder or .zip with a folder per identity, a .csv, an "
        ".npz, a .rec, 'tfds:NAME', 'synthetic:IDENTITIESxIMAGES' or a tuple (images, labels)."
    )


def _sharded_parts(path: Path) -> list[str]:
    return sorted(part.name for part in path.iterdir() if part.is_dir() and is_sharded(part))


def _build(maker, spec, split, images, options, keywords, *arguments, **more) -> ImageSource:
    """Call a source's class; say which option does not belong to it."""
    if split is not None:
        raise ValueError(f"`split`={split!r}: {spec} has no splits; use split_source().")
    if images is not None:
        raise ValueError(f"`images`={str(images)!r} belongs to a .csv, not to {spec}.")
    parameters = inspect.signature(maker).parameters
    accepted = [
        name
        for position, name in enumerate(parameters)
        if position >= len(arguments) and name not in (*keywords, *more)
    ]
    unknown = sorted(set(options) - set(accepted))
    if unknown:
        raise ValueError(
            f"Unknown option {some(unknown)} for {spec}; accepted: {some(accepted, 20) or 'none'}."
        )
    return maker(*arguments, **keywords, **more, **options)


def _synthetic_source(
    num_identities: int,
    images_per_identity: int,
    image_size: int = 64,
    seed: int = 0,
    first_identity: int = 0,
) -> ArraySource:
    """Synthetic identities as a source."""
    arrays = synthetic_identities(
        num_identities, images_per_identity, image_size, seed, first_identity
    )
    names = [f"synthetic_{first_identity + i:05d}" for i in range(num_identities)]
    return ArraySource(*arrays, class_names=names, name="synthetic")
