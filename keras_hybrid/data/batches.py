"""Batches for ``fit``, from arrays or read lazily from a source; they resume anywhere."""

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import keras
import numpy as np

from keras_hybrid.data.files import UnreadableImageError, resize_image, size_pair
from keras_hybrid.data.landmarks import check_landmarks, normalize_landmarks, resize_landmarks
from keras_hybrid.data.loading import checked_image, read_image
from keras_hybrid.data.sources import ImageSource

__all__ = ["Batches"]

_LOGGER = logging.getLogger(__name__)


class Batches(keras.utils.PyDataset):
    """Batches whose content is a pure function of (seed, epoch, batch number).

    The order of an epoch is ``np.random.default_rng([seed, epoch]).permutation(n)`` and the
    augmentation of a batch gets the seed ``(seed, epoch, batch)``: a run resumed at
    ``(epoch, start_batch)`` sees the batches an uninterrupted run would have seen, to the last bit,
    with any number of threads.

    ```python
    batches = Batches(loaded.images, loaded.labels, 64, augment=face_augmentation(), workers=2)
    model.fit(batches, epochs=10, shuffle=False)
    for images, labels in batches: ...       # one epoch by hand,
    batches.on_epoch_end()                   # then the next
    ```

    Give ``shuffle=False`` to ``fit``: Keras would permute the order of the batches once more, with
    a random state that no checkpoint keeps.

    Keras calls ``on_epoch_end()`` also when ``fit`` starts, before any epoch. It therefore advances
    only after the epoch's last batch was asked for. Where an epoch has so few batches that Keras
    asks for all of them to learn their shapes (one or two), add ``callbacks=[batches.callback()]``
    to ``fit``: it states the position at the start of every epoch.

    ``fit`` counts an epoch's steps once. Finish an epoch broken off in the middle by itself:
    ``fit(batches, initial_epoch=e, epochs=e + 1)``, then ``fit`` the rest.

    Reading ahead is done by this object's own threads and not by those of ``PyDataset``, whose
    queue, with several workers, gives batches it had read to learn their shapes before batch 0.

    Args:
        images: uint8 or float (n, height, width, channels), or an :class:`ImageSource` to be read
            lazily. An unreadable image of a source is replaced by the next readable one of its
            class, reported once and listed in ``skipped``.
        labels: Whole numbers (n,); None takes the source's.
        batch_size: Images per batch.
        shuffle: Whether every epoch has its own order; False for evaluation.
        seed: Seed of order and augmentation.
        augment: ``augment(images, seed=(…))``, such as :func:`face_augmentation`; or, where it has
            a true ``takes_labels``, ``augment(images, labels, seed=(…))``, which returns both, such
            as :func:`image_augmentation`; or None. Landmarks need a true ``moves_landmarks``: it
            gets the keyword ``landmarks``, too, and returns (images, landmarks) for the images.
        epoch: Epoch to begin with.
        start_batch: Batch of that epoch to begin with.
        drop_remainder: Whether a last, smaller batch is left out.
        image_size: Side, or (height, width), that images of a source are resized to; None if they
            all have one size.
        workers: Threads that read ahead; 0 prepares each batch when it is asked for, as does any
            number where ``augment`` has a false ``thread_safe``.
        max_queue_size: Largest number of batches read ahead.
        use_multiprocessing: Must be False: threads suffice, since decoding and numpy release the
            interpreter's lock.
        landmarks: (n, 5, 2) in pixels of ``images`` as they are given (of a source: its own
            ``landmarks``), for a model with a second input ``landmarks``. Batches are then
            ``({"image": …, "landmarks": …}, labels)``. An image of a source whose landmarks are not
            finite or lie far outside of it counts as unreadable.

    Attributes:
        skipped: (name, reason) of the unreadable images met so far.

    Raises:
        ValueError: If an argument does not fit.
    """

    def __init__(
        self,
        images: np.ndarray | ImageSource,
        labels: np.ndarray | None = None,
        batch_size: int = 32,
        *,
        shuffle: bool = True,
        seed: int = 0,
        augment: Callable[..., np.ndarray] | None = None,
        epoch: int = 0,
        start_batch: int = 0,
        drop_remainder: bool = False,
        image_size: int | tuple[int, int] | None = None,
        workers: int = 0,
        max_queue_size: int = 8,
        use_multiprocessing: bool = False,
        landmarks: np.ndarray | None = None,
    ):
        super().__init__(workers=1, use_multiprocessing=False, max_queue_size=max_queue_size)
        if use_multiprocessing:
            raise ValueError("`use_multiprocessing` must be False: use `workers` threads.")
        for name, value, lowest in (
            ("batch_size", batch_size, 1),
            ("seed", seed, 0),
            ("workers", workers, 0),
            ("max_queue_size", max_queue_size, 1),
        ):
            if not isinstance(value, (int, np.integer)) or value < lowest:
                raise ValueError(
                    f"`{name}` must be an integer of at least {lowest}, got {value!r}."
                )
        self._is_lazy = isinstance(images, ImageSource)
        if self._is_lazy:
            labels = images.labels if labels is None else labels
        else:
            images = np.asarray(images)
            if images.ndim != 4:
                raise ValueError(
                    f"`images` must have shape (n, height, width, channels), got {images.shape}."
                )
            if image_size is not None:
                raise ValueError("`image_size` belongs to a source; an array has its size.")
        labels = np.asarray(labels)
        if labels.shape == (len(images), 1):
            labels = labels[:, 0]
        if labels.shape != (len(images),) or labels.dtype.kind not in "iu":
            raise ValueError(
                f"`labels` must be whole numbers of shape ({len(images)},), "
                f"got {labels.dtype} of shape {labels.shape}."
            )
        if landmarks is not None:
            size = None if self._is_lazy else images.shape[1:3]
            landmarks = check_landmarks(landmarks, len(images), size)
            if augment is not None and not getattr(augment, "moves_landmarks", False):
                raise ValueError(
                    f"`augment`={augment!r} does not move landmarks with the pixels; "
                    "face_augmentation() does."
                )
        self.images = images
        self.landmarks = landmarks
        self.labels = labels.astype(np.int32)
        self.batch_size = int(batch_size)
        self.shuffle = shuffle
        self.seed = int(seed)
        self.augment = augment
        self.image_size = None if image_size is None else size_pair(image_size)
        self.skipped: list[tuple[str, str]] = []
        count = len(self.labels)
        self.batches_per_epoch = (
            count // self.batch_size if drop_remainder else -(-count // self.batch_size)
        )
        if not self.batches_per_epoch:
            raise ValueError(f"{count} images make no batch of `batch_size`={batch_size}.")
        self._threads = int(workers) if getattr(augment, "thread_safe", True) else 0
        self._ahead = min(2 * self._threads, max_queue_size)
        self._unreadable: set[int] = set()
        self._futures: dict[tuple[int, int], Future] = {}
        self._order: tuple[int, np.ndarray] | None = None
        self._make_threading()
        self.set_position(epoch, start_batch)

    def _make_threading(self) -> None:
        self._lock = threading.Lock()
        self._pool = None

    def __getstate__(self):
        return {
            **self.__dict__,
            "_lock": None,
            "_pool": None,
            "_futures": {},
        }

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._make_threading()

    @property
    def epoch(self) -> int:
        """The epoch whose batches are given."""
        return self._epoch

    @property
    def start_batch(self) -> int:
        """The batch of the epoch that index 0 stands for."""
        return self._start_batch

    def set_position(self, epoch: int, start_batch: int = 0) -> None:
        """Go to a batch of an epoch.

        Args:
            epoch: The epoch, from 0.
            start_batch: The batch, from 0; the number of batches stands for the next epoch's start.

        Raises:
            ValueError: If there is no such batch.
        """
        if epoch < 0:
            raise ValueError(f"`epoch` must not be negative, got {epoch}.")
        if not 0 <= start_batch <= self.batches_per_epoch:
            raise ValueError(
                f"`start_batch` must lie in [0, {self.batches_per_epoch}], got {start_batch}."
            )
        if start_batch == self.batches_per_epoch:
            epoch, start_batch = epoch + 1, 0
        with self._lock:
            self._epoch, self._start_batch = int(epoch), int(start_batch)
            self._is_finished = False
            for future in self._futures.values():
                future.cancel()
            self._futures.clear()

    def on_epoch_end(self) -> None:
        """Go to the next epoch, if this one's last batch has been asked for."""
        if self._is_finished:
            self.set_position(self._epoch + 1)

    def callback(self) -> keras.callbacks.Callback:
        """A callback for ``fit`` that states the position at both ends of every epoch.

        The first epoch of ``fit`` begins at the position that this object has now.
        """
        return _Position(self)

    def to_tf_dataset(self):
        """A ``tf.data.Dataset`` of the same batches, for ``fit`` on TensorFlow.

        Keras turns a ``PyDataset`` into a data set with autotuning, and TensorFlow 2.21 can miss
        the signal that ends the autotuner when an epoch is over: ``fit`` then waits for the rest of
        the autotuner's period, up to a minute for each epoch. This one has no autotuning; the
        threads of this object read ahead for it.

        Each iteration gives what is left of the epoch this object stands at then. ``fit`` needs
        ``callbacks=[batches.callback()]``, which moves on to the next epoch.

        Returns:
            Data set whose elements are what ``batches[i]`` gives, from the first batch left in the
            epoch to the last; its length is that of this object now.

        Raises:
            ImportError: If TensorFlow is not installed.
        """
        import tensorflow as tf

        signature = keras.tree.map_structure(
            lambda array: tf.TensorSpec((None, *array.shape[1:]), array.dtype), self[0]
        )
        options = tf.data.Options()
        options.autotune.enabled = False
        return (
            tf.data.Dataset.from_generator(
                lambda: (self[index] for index in range(len(self))), output_signature=signature
            )
            .apply(tf.data.experimental.assert_cardinality(len(self)))
            .with_options(options)
        )

    def __len__(self) -> int:
        """Batches left in the epoch."""
        return self.batches_per_epoch - self._start_batch

    def __getitem__(self, index: int) -> tuple[Any, np.ndarray]:
        """A batch of the epoch.

        Args:
            index: Which one, from ``start_batch``.

        Returns:
            ``(images, labels)``: what ``augment`` returns (uint8 for :func:`face_augmentation`), or
            the images as stored (uint8) without; int32 (batch,), or what ``augment`` makes of
            them. With ``landmarks`` the images are the value ``"image"`` of a dictionary; its value
            ``"landmarks"``, float32 (batch, 5, 2), are those that :func:`normalize_landmarks`
            gives.
        """
        with self._lock:
            epoch, batch = self._epoch, self._start_batch + index
            if not self._start_batch <= batch < self.batches_per_epoch:
                raise IndexError(f"batch {index} of {self.batches_per_epoch - self._start_batch}")
            if batch == self.batches_per_epoch - 1:
                self._is_finished = True
            future = self._futures.pop((epoch, batch), None)
            if self._threads:
                self._pool = self._pool or ThreadPoolExecutor(self._threads, "batches")
                last = min(batch + 1 + self._ahead, self.batches_per_epoch)
                for other in range(batch + 1, last):
                    if (epoch, other) not in self._futures and len(self._futures) < self._ahead:
                        self._futures[epoch, other] = self._pool.submit(self._make, epoch, other)
        return self._make(epoch, batch) if future is None else future.result()

    def _make(self, epoch: int, batch: int) -> tuple[Any, np.ndarray]:
        """Batch ``batch`` of epoch ``epoch``, a pure function of both."""
        rows = self._permutation(epoch)[batch * self.batch_size : (batch + 1) * self.batch_size]
        labels, seed = self.labels[rows], (self.seed, epoch, batch)
        if self._is_lazy:
            images, landmarks = self._read(rows)
        else:
            images = self.images[rows]
            landmarks = None if self.landmarks is None else self.landmarks[rows]
        if self.augment is not None:
            given = {} if landmarks is None else {"landmarks": landmarks}
            if getattr(self.augment, "takes_labels", False):
                images, labels = self.augment(images, labels, seed=seed, **given)
            else:
                images = self.augment(images, seed=seed, **given)
            if landmarks is not None:
                images, landmarks = images
        if landmarks is None:
            return images, labels
        points = normalize_landmarks(landmarks, images.shape[1:3])
        return {"image": images, "landmarks": points}, labels

    def _permutation(self, epoch: int) -> np.ndarray:
        """The order of an epoch; the latest one is kept."""
        count = len(self.labels)
        if not self.shuffle:
            return np.arange(count)
        kept = self._order
        if kept is None or kept[0] != epoch:
            kept = epoch, np.random.default_rng([self.seed, epoch]).permutation(count)
            self._order = kept
        return kept[1]

    def _read(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Images of the source, resized and with the unreadable replaced, and their landmarks."""
        images, landmarks = [], []
        rows = rows.tolist()
        for row, found in zip(rows, self.images.read_many(rows), strict=True):
            read, stored = self._usable(row, found)
            image = stored if self.image_size is None else resize_image(stored, self.image_size)
            images.append(image)
            if images[-1].shape != images[0].shape:
                raise ValueError(
                    f"{self.images.paths[row]} is {images[-1].shape[:2]}, others are "
                    f"{images[0].shape[:2]}: give an `image_size`."
                )
            if self.landmarks is not None:
                zoom = np.divide(image.shape[1::-1], stored.shape[1::-1])
                landmarks.append(resize_landmarks(self.landmarks[read], zoom))
        return np.stack(images), np.stack(landmarks) if landmarks else None

    def _usable(self, row: int, found: np.ndarray | UnreadableImageError) -> tuple[int, np.ndarray]:
        """The image found in a row, or the next readable one of its class, and its row."""
        try:
            return row, checked_image(found, self.images, row, self.landmarks)
        except UnreadableImageError as error:
            self._note(row, error)
        same_class = np.flatnonzero(self.labels == self.labels[row])
        after = np.searchsorted(same_class, row)
        for other in np.roll(same_class, -after)[1:].tolist():
            if other in self._unreadable:
                continue
            try:
                return other, read_image(self.images, other, self.landmarks)
            except UnreadableImageError as error:
                self._note(other, error)
        raise ValueError(
            f"No image with label {self.labels[row]} can be read; one is {self.images.paths[row]}."
        )

    def _note(self, row: int, error: UnreadableImageError) -> None:
        """Report an unreadable image once."""
        with self._lock:
            if row in self._unreadable:
                return
            self._unreadable.add(row)
            self.skipped.append((error.path, error.reason))
        _LOGGER.warning(
            "%s: %s; another image of its class takes its place (%d so far)",
            error.path,
            error.reason,
            len(self.skipped),
        )


class _Position(keras.callbacks.Callback):
    """Sets the position of batches at both ends of every epoch of ``fit``."""

    def __init__(self, batches: Batches):
        super().__init__()
        self._batches = batches
        self._next = (batches.epoch, batches.start_batch)

    def on_epoch_begin(self, epoch, logs=None):
        """Go to the epoch that follows the one before."""
        self._batches.set_position(*self._next)
        self._next = (self._next[0] + 1, 0)

    def on_epoch_end(self, epoch, logs=None):
        """Leave the epoch, if ``fit`` did not do so itself and its last batch was asked for."""
        self._batches.on_epoch_end()
