"""Image sources whose images lie in memory: arrays, .npz files, TensorFlow Datasets."""

import os
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from keras_hybrid.data.files import decode_image, some
from keras_hybrid.data.sources import ImageSource, check_range, number_labels

__all__ = ["ArraySource", "NpzSource", "TFDSSource"]


class ArraySource(ImageSource):
    """Images and labels in memory.

    Args:
        images: uint8 or float in [0, 255], (n, height, width, 3); grey as (n, height, width) or
            (n, height, width, 1) becomes RGB. Floats are rounded.
        labels: (n,) whole numbers 0 … classes − 1 without a gap, or texts, which are numbered as a
            table's (:class:`CSVSource`).
        classes: Number of classes, if it is to be checked.
        class_names: Names of the classes; classes without an image are then allowed.
        name: What messages call it.

    Raises:
        ValueError: If shapes, values or labels do not fit.
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        *,
        classes: int | None = None,
        class_names: Sequence[str] | None = None,
        name: str = "array",
    ):
        images, labels = np.asarray(images), np.asarray(labels)
        if images.ndim == 3:
            images = images[..., None]
        if images.ndim != 4 or images.shape[-1] not in (1, 3) or not len(images):
            raise ValueError(
                "`images` must have shape (n, height, width), (n, height, width, 1) or "
                f"(n, height, width, 3) with n ≥ 1, got {np.shape(images)}."
            )
        if labels.ndim == 2 and labels.shape[1] == 1:
            labels = labels[:, 0]
        if labels.shape != (len(images),):
            raise ValueError(f"`labels` must have shape ({len(images)},), got {labels.shape}.")
        self._images = _as_bytes(images)
        where = [f"{name}[{i}]" for i in range(len(images))]
        if any(isinstance(value, str | bytes) for value in labels.tolist()):
            texts = [v.decode() if isinstance(v, bytes) else str(v) for v in labels.tolist()]
            labels, found = number_labels(texts, where, classes)
            class_names = _checked_names(found, class_names)
            number = {text: label for label, text in enumerate(class_names)}
            labels = np.array([number[found[label]] for label in labels], np.int32)
        else:
            labels = _whole_numbers(labels, where)
            if class_names is None:
                advice = "; name all classes in `class_names` if some of them have none"
                check_range(labels, classes, where, advice)
                class_names = [str(label) for label in range(int(labels.max()) + 1)]
            elif labels.max() >= len(class_names):
                worst = int(np.argmax(labels))
                raise ValueError(
                    f"{where[worst]}: label {labels[worst]} with {len(class_names)} `class_names`."
                )
        self.labels = labels.astype(np.int32)
        self.class_names = list(class_names)
        self.paths = where

    def read(self, index: int) -> np.ndarray:
        """Read one image; see :meth:`ImageSource.read`."""
        image = self._images[index]
        return np.repeat(image, 3, axis=-1) if image.shape[-1] == 1 else image

    def stamps(self) -> Iterable[str]:
        """Shape and checksum of each image."""
        return (
            f"{image.shape}/{zlib.crc32(np.ascontiguousarray(image))}" for image in self._images
        )


def _as_bytes(images: np.ndarray) -> np.ndarray:
    """Images as uint8, or a message saying which values are expected."""
    if images.dtype == np.uint8:
        return images
    if images.dtype.kind not in "iuf":
        raise ValueError(f"`images` must be uint8 or float, got {images.dtype}.")
    low, high = float(images.min()), float(images.max())
    if not (low >= 0 and high <= 255):
        raise ValueError(f"`images` must lie in [0, 255], got [{low:g}, {high:g}].")
    if images.dtype.kind == "f" and 0 < high <= 1:
        raise ValueError("`images` must lie in [0, 255], got [0, 1]: multiply them by 255.")
    return np.rint(images).astype(np.uint8)


def _whole_numbers(labels: np.ndarray, where: Sequence[str]) -> np.ndarray:
    """Labels as int64, or a message naming the first that is none."""
    if labels.dtype.kind not in "iufO":
        raise ValueError(f"`labels` must be whole numbers or names, got {labels.dtype}.")
    numbers = labels.astype(np.float64)
    wrong = np.flatnonzero(~(np.isfinite(numbers) & (numbers == np.rint(numbers))))
    if len(wrong):
        raise ValueError(f"{where[wrong[0]]}: label {labels[wrong[0]]} is not a whole number.")
    if numbers.min() < 0:
        worst = int(np.argmin(numbers))
        raise ValueError(f"{where[worst]}: label {labels[worst]} is negative.")
    return numbers.astype(np.int64)


def _checked_names(found: Sequence[str], class_names: Sequence[str] | None) -> Sequence[str]:
    """The given class names if they contain the found ones."""
    if class_names is None:
        return found
    unknown = sorted(set(found) - set(class_names))
    if unknown:
        raise ValueError(f"`class_names` lacks {some(unknown)}.")
    return class_names


class NpzSource(ArraySource):
    """Arrays of an .npz file: ``x`` and ``y``, or ``images`` and ``labels``.

    With ``split="train"`` they are ``x_train`` and ``y_train`` (or ``images_train`` …).

    Args:
        path: The file.
        split: Suffix of the arrays' names, or None.
        classes: Number of classes, if it is to be checked.
        class_names: Names of the classes.

    Raises:
        ValueError: If the file or its arrays do not fit.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        split: str | None = None,
        *,
        classes: int | None = None,
        class_names: Sequence[str] | None = None,
    ):
        suffix = f"_{split}" if split else ""
        pairs = [(x + suffix, y + suffix) for x, y in (("x", "y"), ("images", "labels"))]
        try:
            with np.load(path, allow_pickle=False) as arrays:
                held = arrays.files
                names = next((pair for pair in pairs if {*pair} <= {*held}), ())
                found = [arrays[name] for name in names]
        except FileNotFoundError as error:
            raise ValueError(f"`path`: there is no file {path}.") from error
        except (
            zipfile.BadZipFile,
            zlib.error,
            EOFError,
            OSError,
            RuntimeError,  # a member with a password
            TypeError,  # a single array, .npy
            ValueError,  # Python objects
        ) as error:
            raise ValueError(
                f"`path`: {path} is not a complete .npz file of numbers and texts: {error}"
            ) from error
        if not found:
            raise ValueError(
                f"{path} must hold x{suffix} and y{suffix}, or images{suffix} and "
                f"labels{suffix}; it holds {some(held)}."
            )
        super().__init__(*found, classes=classes, class_names=class_names, name=Path(path).name)


class TFDSSource(ImageSource):
    """A split of a TensorFlow Datasets builder; images stay encoded in memory.

    Args:
        name: The builder's name, with a version or configuration if wanted (``"cifar10"``).
        split: Split, with slicing if wanted (``"train[:80%]"``).
        image_key: Feature of the image.
        label_key: Feature of the label: a ClassLabel, another integer or a text. Texts, and
            integers with gaps, are numbered in sorted order within the split.
        data_dir: Where the data sets lie, or None for the default.
        download: Whether to download and prepare a missing data set.

    Raises:
        ImportError: If tensorflow-datasets is not installed.
        ValueError: If the builder, the split or a feature does not exist.
    """

    def __init__(
        self,
        name: str,
        split: str | None = "train",
        *,
        image_key: str = "image",
        label_key: str = "label",
        data_dir: str | os.PathLike | None = None,
        download: bool = True,
    ):
        try:
            import tensorflow_datasets as tfds
        except ImportError as error:
            raise ImportError(
                "TensorFlow Datasets sources need tensorflow-datasets and TensorFlow: "
                "pip install 'keras-hybrid[train,tensorflow]'"
            ) from error
        try:
            builder = tfds.builder(name, data_dir=data_dir)
        except tfds.core.DatasetNotFoundError as error:
            raise ValueError(f"`name`={name!r} is no data set of TensorFlow Datasets.") from error
        features = builder.info.features
        for argument, key in (("image_key", image_key), ("label_key", label_key)):
            if key not in features:
                raise ValueError(
                    f"`{argument}`={key!r}: {name} has no such feature; it has {some([*features])}."
                )
        if download:
            builder.download_and_prepare()
        split = "train" if split is None else split
        decoders = tfds.decode.PartialDecoding(
            {image_key: True, label_key: True}, {image_key: tfds.decode.SkipDecoding()}
        )
        try:
            dataset = builder.as_dataset(split=split, decoders=decoders, shuffle_files=False)
        except (ValueError, KeyError) as error:
            known = sorted(builder.info.splits or ())
            raise ValueError(f"`split`={split!r}: {name} has {some(known)} ({error}).") from error
        self._encoded, labels = [], []
        for example in tfds.as_numpy(dataset):
            self._encoded.append(example[image_key])
            labels.append(example[label_key])
        if not labels:
            raise ValueError(f"`split`={split!r} of {name} is empty.")
        self.paths = [f"tfds:{name}/{split}[{i}]" for i in range(len(labels))]
        if isinstance(features[label_key], tfds.features.ClassLabel):
            self.labels = _whole_numbers(np.asarray(labels), self.paths).astype(np.int32)
            self.class_names = list(features[label_key].names)
        else:
            texts = [v.decode() if isinstance(v, bytes) else str(v) for v in labels]
            self.labels, self.class_names = number_labels(texts, self.paths, None)

    def encoded(self, index: int) -> bytes:
        """The image as the data set stores it; see :meth:`ImageSource.encoded`."""
        return self._encoded[index]

    def read(self, index: int) -> np.ndarray:
        """Read one image; see :meth:`ImageSource.read`."""
        return decode_image(self._encoded[index], self.paths[index])

    def stamps(self) -> Iterable[str]:
        """Size and checksum of each encoded image."""
        return (f"{len(data)}/{zlib.crc32(data)}" for data in self._encoded)
