"""A cosine classifier for very many classes, which trains against a sample of them at each step."""

import contextlib
import math
import threading
from collections.abc import Iterator
from typing import Any

import keras
from keras import ops

from keras_hybrid._arguments import positive_integer
from keras_hybrid.distribution import ClassParallel
from keras_hybrid.layers.margin import CosineClassifier

__all__ = ["PartialCosineClassifier", "supply_labels"]


class _Supplied(threading.local):
    """The labels of a training step; replicas of a mirrored strategy have threads of their own."""

    labels: Any = None


_supplied = _Supplied()


@contextlib.contextmanager
def supply_labels(labels) -> Iterator[None]:
    """Tell the `PartialCosineClassifier` called in this context the classes of its batch.

    Args:
        labels: Ids, shape (batch,) or (batch, 1), or None for no sampling.
    """
    outer, _supplied.labels = _supplied.labels, labels
    try:
        yield
    finally:
        _supplied.labels = outer


@keras.saving.register_keras_serializable("keras_hybrid")
class PartialCosineClassifier(CosineClassifier):
    """`CosineClassifier` whose training steps see the batch's classes and a sample of the others.

    Source: Partial FC (An et al. 2022, https://arxiv.org/abs/2203.15565, section 3.2). Cosines and
    their gradients take time and memory in proportion to ``sampling_rate``: at millions of
    identities they are most of a step. Evaluation, inference and exports see all classes, and the
    weights are those of a `CosineClassifier`; `keras_hybrid.transfer_weights` takes them from one
    model to the other (Keras's weight files tell layers by their classes, too).

    In a training step of `keras_hybrid.applications.MarginModel`, which knows the labels, the
    output is (batch, ``sampled``): first, for each image in turn, the cosine with its own class
    where that class occurs for the first time in the batch, and with one more sampled class where
    it occurs again; then the rest of the sample. All columns are of different classes. The model
    gives loss and metrics the labels' columns; accuracy in training is among the sampled classes.

    Under a `keras_hybrid.distribution.ClassParallel` that splits the classes, every device draws an
    equal part of the sample among its own classes, as the authors' do. Elsewhere ``shards`` draws
    the same.

    Deviation: the optimizer also moves the centres that are not in the sample, by its momentum and
    weight decay, as it does for every weight without gradient; the authors leave them at rest.

    ```python
    trunk = kh.create_model("facerec_small", include_top=False, pooling="native")
    head = kh.layers.PartialCosineClassifier(100_000, sampling_rate=0.1, name="predictions")
    model = kh.applications.MarginModel(trunk.input, head(trunk.output))
    model.compile("adam", loss=kh.losses.CosFace())
    model.fit(images, labels)
    ```

    Args:
        classes: Number of classes.
        sampling_rate: Share of the classes in a training step, in (0, 1]; the authors use 0.1 to
            0.3. At 1 it is the full head.
        centers_per_class: As in `CosineClassifier`.
        kernel_initializer: As in `CosineClassifier`.
        seed: Of the draws.
        shards: Number of equal ranges of the classes that are sampled apart, each with an equal
            part of the sample; no batch may be larger than that part. By default the ``model`` of
            the `ClassParallel` in force, otherwise 1.
        **kwargs: As of `keras.layers.Layer`.

    Raises:
        ValueError: If an argument is out of range, the input is not (batch, dim), labels are not
            ids, or the batch is larger than each shard's part of the sample.

    Call arguments:
        embedding: Embedding, shape (batch, dim), any norm.
        training: Whether it may sample.

    Output:
        cosθ, shape (batch, classes), or (batch, ``sampled``) in training; float32, in [-1, 1].
    """

    def __init__(
        self,
        classes: int,
        sampling_rate: float = 0.3,
        centers_per_class: int = 1,
        kernel_initializer=None,
        seed: int | None = None,
        shards: int | None = None,
        **kwargs,
    ):
        super().__init__(classes, centers_per_class, kernel_initializer, **kwargs)
        if not 0 < sampling_rate <= 1:
            raise ValueError(
                f"sampling_rate must lie in (0, 1]. Received: sampling_rate={sampling_rate!r}"
            )
        self.sampling_rate = float(sampling_rate)
        self.seed = seed
        self._shards = None if shards is None else positive_integer(shards)
        if shards is not None and (self._shards is None or self.classes % self._shards):
            raise ValueError(
                f"shards must be a positive integer that divides the {self.classes} classes. "
                f"Received: shards={shards!r}"
            )
        self.seed_generator = keras.random.SeedGenerator(seed)

    @property
    def shards(self) -> int:
        """Number of ranges of the classes that are sampled apart."""
        return self._shards or _mesh_shards()

    @property
    def sampled(self) -> int:
        """Number of classes in a training step."""
        return self.shards * self._count

    @property
    def _count(self) -> int:
        """Number of classes that each shard has in a training step."""
        # Rounded first: 0.07 · 100 is a little more than 7.
        return math.ceil(round(self.sampling_rate * self.classes / self.shards, 6))

    def call(self, embedding, training=None):
        """Return cosθ."""
        labels = _supplied.labels
        if not training or labels is None or self.sampled == self.classes:
            return self.cosine(embedding)
        sample, kept = self._sample(labels), self.centers.shape[1:]
        if self.shards == 1:
            centers = ops.expand_dims(ops.take(self.centers, sample[0], axis=0), 0)
        else:
            # Each from its own shard: a gather from all would bring a mesh's shards together.
            shards = _split(ops.reshape(self.centers, (self.shards, -1, *kept)))
            centers = ops.vectorized_map(lambda one: ops.take(*one, axis=0), (shards, sample))
        return self.cosine(embedding, ops.reshape(_split(centers), (self.sampled, *kept)))

    def sample(self, labels):
        """Draw the classes of a step.

        Args:
            labels: Ids, shape (batch,) or (batch, 1).

        Returns:
            Ids, shape (``sampled``,), int32, all different.
        """
        first = ops.arange(self.shards, dtype="int32") * (self.classes // self.shards)
        return ops.reshape(self._sample(labels) + ops.expand_dims(first, 1), (self.sampled,))

    def _sample(self, labels):
        """Return the ids within each shard, (shards, sampled of each), int32."""
        shards, count, size = self.shards, self._count, self.classes // self.shards
        # What is no class has no column; in range, it disturbs no draw on any backend.
        labels = ops.clip(_flat_ids(labels), 0, self.classes - 1)
        shard, label = labels // size, labels % size
        batch = ops.shape(labels)[0]
        if isinstance(batch, int) and batch > count:
            raise ValueError(
                f"A batch of {batch} may have more classes than the {count} that are sampled of "
                f"{size}{', of each shard' * (shards > 1)}: raise sampling_rate="
                f"{self.sampling_rate}, make the batch smaller, or use CosineClassifier."
            )
        priority = keras.random.uniform((shards, size), dtype="float32", seed=self.seed_generator)
        # The batch's own classes come last, so the others are drawn before any of them.
        behind = ops.broadcast_to(ops.convert_to_tensor(-1.0, "float32"), ops.shape(labels))
        priority = ops.scatter_update(priority, ops.stack([shard, label], axis=1), behind)
        others = ops.cast(_largest(_split(priority), count), "int32")
        is_first = ops.equal(self._first(labels), ops.arange(batch, dtype="int32"))
        is_here = ops.equal(shard, ops.expand_dims(ops.arange(shards, dtype="int32"), 1))
        is_own = ops.logical_and(is_here, is_first)
        # A class of another shard, or that occurs again, leaves its column to one of the others.
        which = ops.cumsum(ops.cast(ops.logical_not(is_own), "int32"), axis=1) - 1
        which = ops.clip(which, 0, self.classes)  # from -1 before the first
        spare = ops.take_along_axis(others[:, count - batch :], which, axis=1)
        own = ops.where(is_own, label, spare)
        # Where the batch's size is not known in advance, a batch that is too large fails here.
        both = ops.concatenate([own, others[:, : count - batch]], axis=1)
        return _split(ops.reshape(both, (shards, count)))

    def columns(self, labels):
        """Return where each image's class stands in the training output: (batch,), int32.

        An id that is not a class stands nowhere: -1, which makes the losses not a number.
        """
        labels = _flat_ids(labels)
        is_class = ops.logical_and(labels >= 0, labels < self.classes)
        shard = labels // (self.classes // self.shards)
        return ops.where(is_class, shard * self._count + self._first(labels), -1)

    def _first(self, labels):
        """Return where in the batch each label occurs first: (batch,), int32."""
        is_same = ops.equal(ops.expand_dims(labels, 1), ops.expand_dims(labels, 0))
        return ops.cast(ops.argmax(ops.cast(is_same, "int32"), axis=1), "int32")

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {
            **super().get_config(),
            "sampling_rate": self.sampling_rate,
            "seed": self.seed,
            "shards": self._shards,
        }


def _mesh_shards() -> int:
    """Return over how many devices the distribution in force splits the classes."""
    distribution = keras.distribution.distribution()
    return distribution.class_shards if isinstance(distribution, ClassParallel) else 1


def _split(tensor):
    """Lay a tensor (shards, ...) out as the distribution in force does the centres, if one does.

    Otherwise XLA may split or gather it in another way, and add up the gradients of all centres
    over the groups of devices, in place of those of the sample.
    """
    distribution = keras.distribution.distribution()
    return distribution.split(tensor) if isinstance(distribution, ClassParallel) else tensor


def _largest(values, count):
    """Return where the largest values of each row stand."""
    if values.shape[0] == 1:
        return ops.top_k(values, count)[1]
    # XLA copies all rows to every device for top_k, not for a sort.
    return ops.argsort(-values, axis=-1)[:, :count]


def _flat_ids(labels):
    """Return ids (batch,), int32."""
    shape = labels.shape
    if len(shape) > 2 or (len(shape) == 2 and shape[1] != 1):
        raise ValueError(
            "PartialCosineClassifier needs labels as ids, shape (batch,) or (batch, 1). "
            f"Received: shape {tuple(shape)}"
        )
    return ops.cast(ops.reshape(labels, (-1,)), "int32")
