"""Augmentation of labelled images with Keras's own layers, as what ``Batches`` takes.

A chain of ``keras.layers.Random…`` has a random state that every call moves on, so that a run which
is resumed, or read ahead by threads, would see other pictures. :class:`LayerAugmentation` compiles
the chain into a function of images, labels and the random states (``jax.jit``, ``tf.function``;
PyTorch runs it as it is) and derives the states from the seed of the call: on one backend, the same
seed gives the same batch. Backends draw different numbers; for face crops
:func:`keras_hybrid.data.face_augmentation` gives the same pictures on all of them.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from keras_hybrid.data.pillow_augmentation import RandAugment, RandomResizedCrop

__all__ = ["LayerAugmentation", "image_augmentation"]

_DTYPE = "float32"  # whatever the global policy: half precision cannot tell 255 grey levels apart


class LayerAugmentation:
    """Keras's preprocessing layers as a pure function of (images, labels, seed).

    ```python
    augment = LayerAugmentation(
        [keras.layers.RandomFlip("horizontal")], classes=10, mixing=[keras.layers.MixUp(0.8)]
    )
    model.fit(Batches(images, labels, 128, augment=augment), shuffle=False)
    ```

    Args:
        layers: Applied in this order, each to the whole batch.
        classes: Number of classes: labels are returned one-hot. ``None`` leaves labels alone, which
            ``mixing`` does not allow.
        mixing: Layers that blend images and labels, such as `keras.layers.MixUp` and
            `keras.layers.CutMix`; one of them, drawn for each batch, comes last.
        first: Functions ``f(images, seed=…)`` of arrays, before the layers, such as
            :class:`RandAugment`.
        mixing_epochs: Epochs in which there is mixing; ``None``: all. It takes the seeds that
            ``Batches`` gives, (seed, epoch, batch).
        value_range: What the images are clipped to at the end; ``None``: nothing.

    Raises:
        ValueError: If ``mixing`` is given without ``classes``.
    """

    takes_labels = True

    @property
    def thread_safe(self) -> bool:
        """Whether it may run beside a training step.

        On PyTorch, Keras draws MixUp's weights by setting PyTorch's own generator for a moment, and
        a step's dropout may draw from it just then.
        """
        return keras.backend.backend() != "torch"

    def __init__(
        self,
        layers: Sequence[keras.layers.Layer] = (),
        classes: int | None = None,
        mixing: Sequence[keras.layers.Layer] = (),
        first: Sequence[Callable[..., np.ndarray]] = (),
        mixing_epochs: int | None = None,
        value_range: tuple[float, float] | None = None,
    ):
        if mixing and classes is None:
            raise ValueError("`mixing` blends labels and needs the number of `classes`.")
        self.layers = list(layers)
        self.classes = classes
        self.mixing = list(mixing)
        self.first = list(first)
        self.mixing_epochs = mixing_epochs
        self.value_range = value_range
        self._chains: dict[int | None, _Chain] = {}
        self._lock = threading.Lock()

    def __getstate__(self):
        return {**self.__dict__, "_chains": {}, "_lock": None}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._lock = threading.Lock()

    def __call__(self, images: np.ndarray, labels: np.ndarray, seed: int | Sequence[int] = 0):
        """Augment a batch.

        Args:
            images: (batch, height, width, 3) in [0, 255], uint8 or float.
            labels: Whole numbers (batch,).
            seed: Non-negative integer or several, fixing every draw.

        Returns:
            ``(images, labels)``, tensors of the backend: float32 (batch, height, width, 3) and,
            with ``classes``, float32 (batch, classes) that sum to 1; otherwise ``labels``.

        Raises:
            ValueError: If a label is not a class, or a seed is negative or not of three numbers
                where ``mixing_epochs`` needs the epoch.
        """
        key = [int(part) for part in np.atleast_1d(seed)]
        if any(part < 0 for part in key):
            raise ValueError(f"`seed` must hold non-negative integers, got {seed!r}.")
        targets = labels
        if self.classes is not None:
            targets = one_hot(labels, self.classes)
        for function in self.first:
            images = function(images, seed=key)
        generator = np.random.default_rng(key)
        choice = int(generator.integers(len(self.mixing))) if self._mixes(key) else None
        with self._lock:  # threads of a loader share the chain, and PyTorch's runs eagerly
            if choice not in self._chains:
                more = [] if choice is None else [self.mixing[choice]]
                self._chains[choice] = _Chain([*self.layers, *more], self.value_range)
            images, mixed = self._chains[choice](images, targets, generator)
        return images, (labels if self.classes is None else mixed)

    def _mixes(self, key: list[int]) -> bool:
        if not self.mixing or self.mixing_epochs is None:
            return bool(self.mixing)
        if len(key) != 3:
            raise ValueError(
                f"`mixing_epochs` needs a `seed` of three, (seed, epoch, batch), got {key}."
            )
        return key[1] < self.mixing_epochs


class _Chain:
    """Layers compiled into a function of images, labels and random states."""

    def __init__(self, layers: list[keras.layers.Layer], value_range: tuple[float, float] | None):
        self.layers = layers
        self.value_range = value_range
        self.states: list[keras.Variable] | None = None
        self._function: Callable[..., Any] | None = None

    def __call__(self, images, labels, generator: np.random.Generator):
        if self.states is None:
            self._build(images.shape)
        states = [
            # The second number counts a layer's draws within the call.
            np.array([generator.integers(2**31 - 1), 0], keras.backend.standardize_dtype(v.dtype))
            for v in self.states
        ]
        return self._function(images, labels, states)

    def _build(self, shape) -> None:
        for layer in self.layers:
            if not layer.built:
                layer.build(tuple(shape))
                layer.built = True
        seen = {id(v): v for layer in self.layers for v in _random_states(layer)}
        self.states = list(seen.values())
        backend = keras.backend.backend()
        if backend == "jax":
            import jax

            self._function = jax.jit(self._run)
        elif backend == "tensorflow":
            import tensorflow as tf

            self._function = tf.function(self._run)
        else:
            self._function = self._run

    def _run(self, images, labels, states):
        states = [keras.ops.convert_to_tensor(state) for state in states]
        with keras.StatelessScope(state_mapping=list(zip(self.states, states, strict=True))):
            data = {
                "images": keras.ops.cast(images, _DTYPE),
                "labels": keras.ops.convert_to_tensor(labels),
            }
            for layer in self.layers:
                data = layer(data, training=True)
        images = keras.ops.cast(data["images"], _DTYPE)
        if self.value_range is not None:
            images = keras.ops.clip(images, *self.value_range)
        return images, data["labels"]


def _random_states(layer: keras.layers.Layer) -> list[keras.Variable]:
    """The states of a layer's random generators, and of the layers in it."""
    return [v for v in layer.variables if v.name == "seed_generator_state"]


def one_hot(labels: np.ndarray, classes: int) -> np.ndarray:
    """Return float32 (n, classes) for whole numbers (n,).

    Raises:
        ValueError: If a label is not a class.
    """
    labels = np.asarray(labels)
    if labels.size and (labels.min() < 0 or labels.max() >= classes):
        raise ValueError(
            f"`labels` must lie in [0, {classes}), got {labels.min()} to {labels.max()}."
        )
    masses = np.zeros((len(labels), classes), _DTYPE)
    masses[np.arange(len(labels)), labels] = 1
    return masses


def image_augmentation(
    image_size: int,
    classes: int | None = None,
    *,
    flip: bool = True,
    flip_vertical: bool = False,
    crop_padding: int = 0,
    shift: float = 0.0,
    scale: float = 0.0,
    rotation: float = 0.0,
    jitter: float = 0.0,
    rand_augment: float = 0.0,
    erasing: float = 0.0,
    mixup: float = 0.0,
    cutmix: float = 0.0,
    mixing_epochs: int | None = None,
    resized_crop: float = 0.0,
) -> LayerAugmentation:
    """Build the usual augmentation of image classification.

    Args:
        image_size: Side of the images in pixels.
        classes: Number of classes for one-hot labels; ``None`` for labels as they are.
        flip: Mirror half of the images left to right.
        flip_vertical: Turn half of the images upside down.
        crop_padding: Pixels of a black border out of which a crop of the old size is cut: a shift
            by whole pixels.
        shift: Largest shift, as a fraction of the side; black outside.
        scale: Largest relative change of size.
        rotation: Largest rotation in degrees; black outside.
        jitter: Largest change of brightness, as a share of 255, and largest relative change of
            contrast and saturation.
        rand_augment: Magnitude of :class:`RandAugment` with two operations, in [0, 10], 0 for none.
            It comes before Keras's layers.
        erasing: Probability that a rectangle is erased.
        mixup: α of MixUp's Beta(α, α), 0 for none.
        cutmix: α of CutMix, 0 for none; with both, each batch has one of the two.
        mixing_epochs: Epochs with MixUp and CutMix; ``None``: all.
        resized_crop: Smallest share of the area for :class:`RandomResizedCrop`, which comes first;
            0 for none.

    Returns:
        What ``Batches(augment=…)`` takes.

    Raises:
        ValueError: If a number is out of its range; the message names it.
    """
    for name, value, limit in (
        ("shift", shift, 1),
        ("scale", scale, 0.9),
        ("rotation", rotation, 180),
        ("jitter", jitter, 1),
        ("rand_augment", rand_augment, 10),
        ("erasing", erasing, 1),
        ("mixup", mixup, 10),
        ("cutmix", cutmix, 1),
        ("crop_padding", crop_padding, image_size),
        ("resized_crop", resized_crop, 1),
    ):
        if not 0 <= value <= limit:
            raise ValueError(f"`{name}` must lie in [0, {limit}], got {value!r}.")
    make = keras.layers
    common = {"dtype": _DTYPE}
    outside = {"fill_mode": "constant", "fill_value": 0.0, **common}
    layers = []
    if crop_padding:
        # Half a pixel more: with nearest neighbours every shift of whole pixels is equally likely.
        reach = (crop_padding + 0.499) / image_size
        layers.append(make.RandomTranslation(reach, reach, interpolation="nearest", **outside))
    if flip:
        layers.append(make.RandomFlip("horizontal", **common))
    if flip_vertical:
        layers.append(make.RandomFlip("vertical", **common))
    if rotation:
        layers.append(make.RandomRotation(rotation / 360, **outside))
    if shift:
        layers.append(make.RandomTranslation(shift, shift, **outside))
    if scale:
        layers.append(make.RandomZoom(scale, **outside))
    if jitter:
        # A lone number would only raise contrast; saturation is multiplied by f / (1 - f).
        factors = {
            "brightness_factor": (-jitter, jitter),
            "contrast_factor": (jitter, jitter),
            "saturation_factor": ((1 - jitter) / (2 - jitter), (1 + jitter) / (2 + jitter)),
        }
        layers.append(make.RandomColorJitter((0, 255), **factors, **common))
    if erasing:
        layers.append(make.RandomErasing((erasing, erasing), **common))
    mixing = [make.MixUp(mixup, **common)] if mixup else []
    if cutmix:
        mixing.append(make.CutMix((cutmix, cutmix), **common))
    first = [RandomResizedCrop((resized_crop, 1.0))] if resized_crop else []
    if rand_augment:
        first.append(RandAugment(magnitude=rand_augment))
    # Keras's saturation leaves the range.
    return LayerAugmentation(layers, classes, mixing, first, mixing_epochs, (0, 255))
