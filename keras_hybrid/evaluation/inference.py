"""From images to embeddings or class scores, batch by batch, on any backend."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from keras_hybrid.data.landmarks import check_landmarks, mirror_landmarks, normalize_landmarks

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = [
    "embed",
    "embed_batches",
    "embedding_norms",
    "model_image_size",
    "model_takes_landmarks",
    "predict",
]

FLIP_MODES = ("sum", "concatenate")

# Model → its part up to the embedding, which a compiling backend compiles once, and the variables.
_parts: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def embed(
    embedder: keras.Model | Callable[[np.ndarray], object],
    images: ArrayLike,
    batch_size: int = 64,
    flip: bool = False,
    flip_mode: str = "sum",
    landmarks: ArrayLike | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Embed images as unit vectors, and say how long the vectors were.

    Args:
        embedder: A classifier or backbone with a layer named ``embedding``, whose output is
            taken; any other Keras model or callable from float32 (batch, height, width, channels)
            to (batch, dim). The result for a classifier equals
            ``keras_hybrid.applications.embedding_model(model)``, and costs the one pass that the
            lengths need anyway.
        images: (n, height, width, channels), values in [0, 255] unless the model was built with
            ``include_preprocessing=False``.
        batch_size: Images per step; the last batch is padded to it, so that a compiling backend
            compiles once.
        flip: Whether to embed each image's left-right mirror image, too.
        flip_mode: How the two become one. ``"sum"`` adds the raw embeddings (insightface's way);
            ``"concatenate"`` puts them side by side, which doubles ``dim`` (SphereFace's way).
        landmarks: (n, 5, 2) in pixels (:mod:`keras_hybrid.data.landmarks`), for a model with a
            second input ``landmarks``, which gets what
            :func:`keras_hybrid.data.normalize_landmarks` makes of them, and of the mirrored ones
            with the mirror image; a callable gets a dictionary of ``"image"`` and ``"landmarks"``.

    Returns:
        The embeddings, float32 (n, dim), each of length 1 (or 0 or NaN where the model gave zeros
        or NaN); and the mean length each image's raw embeddings had, float32 (n,). The mean of
        the latter is insightface's XNorm.

    Raises:
        ValueError: If ``images`` has no four axes or is empty, ``batch_size`` is below 1,
            ``flip_mode`` is unknown, the model takes landmarks and none are given, or takes none
            and they are, or has further inputs; landmarks cannot be those of their image; or
            embeddings are not of shape (batch, dim).
    """
    images = _check_images(images)
    _check_batch_size(batch_size)
    batch_size = min(batch_size, len(images))
    batches = _slices(images, landmarks, batch_size)
    return embed_batches(embedder, batches, batch_size=batch_size, flip=flip, flip_mode=flip_mode)


def embedding_norms(
    model: keras.Model,
    images: ArrayLike,
    batch_size: int = 64,
    flip: bool = False,
    landmarks: ArrayLike | None = None,
) -> np.ndarray:
    """Return the length of each image's embedding before normalisation.

    Args:
        model: A functional model with a layer named ``embedding``.
        images: As :func:`embed`.
        batch_size: As :func:`embed`.
        flip: Whether to average over the image and its mirror image.
        landmarks: As :func:`embed`.

    Returns:
        float32 (n,), ≥ 0. Its mean is insightface's XNorm.

    Raises:
        ValueError: If the model has no layer named ``embedding``, or as :func:`embed`.
    """
    if not _has_embedding_layer(model):
        raise ValueError(
            f"Model {getattr(model, 'name', model)!r} has no layer named 'embedding', so there is "
            "no raw embedding to measure."
        )
    return embed(model, images, batch_size=batch_size, flip=flip, landmarks=landmarks)[1]


def embed_batches(
    embedder: keras.Model | Callable[[np.ndarray], object],
    batches: Iterable[np.ndarray | tuple[np.ndarray, np.ndarray]],
    *,
    batch_size: int = 64,
    flip: bool = False,
    flip_mode: str = "sum",
) -> tuple[np.ndarray, np.ndarray]:
    """Embed images that come in batches, as :func:`embed` does; one batch is in memory at a time.

    Args:
        embedder: As :func:`embed`.
        batches: Arrays (at most ``batch_size``, height, width, channels), or tuples of such an
            array and its landmarks in pixels.
        batch_size: As :func:`embed`.
        flip: As :func:`embed`.
        flip_mode: As :func:`embed`.

    Returns:
        As :func:`embed`.

    Raises:
        ValueError: As :func:`embed`.
    """
    _check_batch_size(batch_size)
    if flip_mode not in FLIP_MODES:
        raise ValueError(f"flip_mode must be one of {', '.join(FLIP_MODES)}, got {flip_mode!r}.")
    forward = _forward_function(_raw_embedder(embedder))
    embeddings, norms = [], []
    for views in _outputs(forward, batches, batch_size, flip):
        if views[0].ndim != 2:
            raise ValueError(
                f"Embeddings must have shape (batch, dim), got {views[0].shape}: build the model "
                "with pooling='native', 'avg' or 'max'."
            )
        norms.append(np.mean([np.linalg.norm(view, axis=1) for view in views], axis=0))
        joined = np.concatenate(views, axis=1) if flip_mode == "concatenate" else sum(views)
        embeddings.append(_unit_rows(joined))
    if not embeddings:
        raise ValueError("There are no images to embed.")
    return np.concatenate(embeddings), np.concatenate(norms).astype("float32")


def predict(
    model: keras.Model | Callable[[np.ndarray], object],
    images: ArrayLike,
    batch_size: int = 64,
    flip: bool = False,
    landmarks: ArrayLike | None = None,
) -> np.ndarray:
    """Return a model's outputs for images, averaged over mirror images if asked.

    Args:
        model: Keras model or callable from float32 (batch, height, width, channels) to (batch, …).
        images: As :func:`embed`.
        batch_size: As :func:`embed`.
        flip: Whether to average the outputs for each image and its left-right mirror image.
        landmarks: As :func:`embed`.

    Returns:
        float32 (n, …).

    Raises:
        ValueError: As :func:`embed`, of what concerns images, landmarks and the model's inputs.
    """
    return np.concatenate(list(predict_batches(model, images, batch_size, flip, landmarks)))


def predict_batches(
    model: keras.Model | Callable[[np.ndarray], object],
    images: ArrayLike,
    batch_size: int = 64,
    flip: bool = False,
    landmarks: ArrayLike | None = None,
) -> Iterator[np.ndarray]:
    """Yield what :func:`predict` returns, batch by batch: of many classes all at once is much.

    Args:
        model: As :func:`predict`.
        images: As :func:`predict`.
        batch_size: As :func:`predict`.
        flip: As :func:`predict`.
        landmarks: As :func:`predict`.

    Yields:
        float32 (at most ``batch_size``, …).

    Raises:
        ValueError: As :func:`predict`.
    """
    images = _check_images(images)
    _check_batch_size(batch_size)
    batch_size = min(batch_size, len(images))
    batches = _slices(images, landmarks, batch_size)
    for views in _outputs(_forward_function(model), batches, batch_size, flip):
        yield np.mean(views, axis=0)


def model_image_size(model: object) -> tuple[int, int] | None:
    """Return the (height, width) a functional model takes, or None where it is left open."""
    inputs = getattr(model, "inputs", None)
    if not inputs:
        return None
    shape = inputs[0].shape
    if len(shape) != 4:
        return None
    first = 2 if keras.config.image_data_format() == "channels_first" else 1
    height, width = shape[first : first + 2]
    return None if height is None or width is None else (int(height), int(width))


def model_takes_landmarks(model: object) -> bool:
    """Return whether a functional model has an input ``landmarks`` beside that of the images."""
    inputs = getattr(model, "inputs", None) or []
    return len(inputs) > 1 and any(tensor.name == "landmarks" for tensor in inputs)


def _check_images(images: ArrayLike) -> np.ndarray:
    images = np.asarray(images)
    if images.ndim != 4 or len(images) == 0:
        raise ValueError(
            "images must have shape (n, height, width, channels) with n at least 1, got "
            f"{images.shape}."
        )
    return images


def _slices(
    images: np.ndarray, landmarks: ArrayLike | None, batch_size: int
) -> Iterator[np.ndarray | tuple[np.ndarray, np.ndarray]]:
    """Cut images, and their landmarks if there are any, into what :func:`embed_batches` takes."""
    if landmarks is not None:
        landmarks = check_landmarks(landmarks, len(images), _height_width(images))
    for start in range(0, len(images), batch_size):
        rows = slice(start, start + batch_size)
        yield images[rows] if landmarks is None else (images[rows], landmarks[rows])


def _height_width(images: np.ndarray) -> tuple[int, int]:
    first = 2 if keras.config.image_data_format() == "channels_first" else 1
    return images.shape[first : first + 2]


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}.")


def _has_embedding_layer(model: object) -> bool:
    return (
        isinstance(model, keras.Model)
        and bool(getattr(model, "inputs", None))
        and any(layer.name == "embedding" for layer in model.layers)
    )


def _raw_embedder(embedder: object) -> object:
    """Return the part of a model up to its layer ``embedding``, or the embedder itself."""
    if not _has_embedding_layer(embedder):
        return embedder
    # Quantization and LoRA replace variables, and what was compiled with the former ones is stale.
    variables = [id(variable) for variable in embedder.variables]
    part, known = _parts.get(embedder, (None, None))
    if known != variables:
        part = keras.Model(embedder.input, embedder.get_layer("embedding").output)
        _parts[embedder] = part, variables
    return part


def _forward_function(model: object) -> Callable[[Any], np.ndarray]:
    """Return a function from a batch, of images alone or with landmarks, to NumPy float32."""
    takes_landmarks = model_takes_landmarks(model)
    if isinstance(model, keras.Model):
        count = len(getattr(model, "inputs", None) or [None])
        if count > 1 + takes_landmarks:
            raise ValueError(
                f"Model {model.name!r} takes {count} inputs; only images are given "
                "here. Pass a callable that adds the others."
            )
        function = model.predict_on_batch
    elif callable(model):
        function = model
    else:
        raise ValueError(f"Expected a Keras model or a callable, got {model!r}.")

    def forward(batch: Any) -> np.ndarray:
        if isinstance(model, keras.Model) and isinstance(batch, dict) != takes_landmarks:
            wanted = "landmarks, too, but none are given" if takes_landmarks else "no landmarks"
            raise ValueError(f"Model {model.name!r} takes {wanted}.")
        return np.asarray(keras.ops.convert_to_numpy(function(batch))).astype("float32")

    return forward


def _outputs(
    forward: Callable[[Any], np.ndarray],
    batches: Iterable[np.ndarray | tuple[np.ndarray, np.ndarray]],
    batch_size: int,
    flip: bool,
) -> Iterator[list[np.ndarray]]:
    """Yield the outputs for each batch: those of the images and, if asked, of their mirrors."""
    width_axis = 3 if keras.config.image_data_format() == "channels_first" else 2

    def padded(array: np.ndarray) -> np.ndarray:
        array = array.astype("float32")
        if len(array) >= batch_size:
            return array
        return np.concatenate([array, np.repeat(array[-1:], batch_size - len(array), axis=0)])

    for batch in batches:
        images, landmarks = batch if isinstance(batch, tuple) else (batch, None)
        count = len(images)
        images = padded(images)
        views = [images]
        if flip:
            views.append(np.ascontiguousarray(np.flip(images, axis=width_axis)))
        if landmarks is not None:
            points = [padded(landmarks)]
            points.append(mirror_landmarks(points[0], images.shape[width_axis]))
            size = _height_width(images)
            views = [
                {"image": view, "landmarks": normalize_landmarks(of_view, size)}
                for view, of_view in zip(views, points, strict=False)
            ]
        yield [forward(view)[:count] for view in views]


def _unit_rows(rows: np.ndarray) -> np.ndarray:
    """Scale rows to length 1; rows of zeros stay zeros."""
    lengths = np.linalg.norm(rows.astype("float64"), axis=1, keepdims=True)
    return (rows / np.where(lengths == 0, 1.0, lengths)).astype("float32")
