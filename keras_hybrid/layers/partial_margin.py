"""A cosine classifier for very many classes, which trains against a sample of them at each step."""

import contextlib
import math
import threading
from collections.abc import Iterator
from typing import Any

import keras
from keras import ops

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
        **kwargs: As of `keras.layers.Layer`.

    Raises:
        ValueError: If an argument is out of range, the input is not (batch, dim), labels are not
            ids, or the batch is larger than the sample.

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
        kernel_initializer="glorot_uniform",
        seed: int | None = None,
        **kwargs,
    ):
        super().__init__(classes, centers_per_class, kernel_initializer, **kwargs)
        if not 0 < sampling_rate <= 1:
            raise ValueError(
                f"sampling_rate must lie in (0, 1]. Received: sampling_rate={sampling_rate!r}"
            )
        self.sampling_rate = float(sampling_rate)
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    @property
    def sampled(self) -> int:
        """Number of classes in a training step."""
        # Rounded first: 0.07 · 100 is a little more than 7.
        return math.ceil(round(self.sampling_rate * self.classes, 6))

    def call(self, embedding, training=None):
        """Return cosθ."""
        labels = _supplied.labels
        if not training or labels is None or self.sampled == self.classes:
            return self.cosine(embedding)
        return self.cosine(embedding, ops.take(self.centers, self.sample(labels), axis=0))

    def sample(self, labels):
        """Draw the classes of a step.

        Args:
            labels: Ids, shape (batch,) or (batch, 1).

        Returns:
            Ids, shape (``sampled``,), int32, all different.
        """
        # What is no class has no column; in range, it disturbs no draw on any backend.
        labels = ops.clip(_flat_ids(labels), 0, self.classes - 1)
        batch = ops.shape(labels)[0]
        if isinstance(batch, int) and batch > self.sampled:
            raise ValueError(
                f"A batch of {batch} may have more classes than the {self.sampled} that are "
                f"sampled of {self.classes}: raise sampling_rate={self.sampling_rate}, make the "
                "batch smaller, or use CosineClassifier."
            )
        priority = keras.random.uniform((self.classes,), dtype="float32", seed=self.seed_generator)
        # The batch's own classes come last, so the others are drawn before any of them.
        behind = ops.broadcast_to(ops.convert_to_tensor(-1.0, "float32"), ops.shape(labels))
        priority = ops.scatter_update(priority, ops.expand_dims(labels, -1), behind)
        others = ops.cast(ops.top_k(priority, self.sampled)[1], "int32")
        is_repeated = ops.not_equal(self.columns(labels), ops.arange(batch, dtype="int32"))
        # A class that occurs again in the batch leaves its column to one more of the others.
        spare = others[self.sampled - batch :]
        which = ops.cumsum(ops.cast(is_repeated, "int32")) - 1
        spare = ops.take(spare, ops.clip(which, 0, self.classes))  # from -1 before the first
        own = ops.where(is_repeated, spare, labels)
        # Where the batch's size is not known in advance, a batch that is too large fails here.
        return ops.reshape(ops.concatenate([own, others[: self.sampled - batch]]), (self.sampled,))

    def columns(self, labels):
        """Return where each image's class stands in the training output: (batch,), int32.

        An id that is not a class stands nowhere: -1, which makes the losses not a number.
        """
        labels = _flat_ids(labels)
        is_same = ops.equal(ops.expand_dims(labels, 1), ops.expand_dims(labels, 0))
        first = ops.cast(ops.argmax(ops.cast(is_same, "int32"), axis=1), "int32")
        is_class = ops.logical_and(labels >= 0, labels < self.classes)
        return ops.where(is_class, first, -1)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {**super().get_config(), "sampling_rate": self.sampling_rate, "seed": self.seed}


def _flat_ids(labels):
    """Return ids (batch,), int32."""
    shape = labels.shape
    if len(shape) > 2 or (len(shape) == 2 and shape[1] != 1):
        raise ValueError(
            "PartialCosineClassifier needs labels as ids, shape (batch,) or (batch, 1). "
            f"Received: shape {tuple(shape)}"
        )
    return ops.cast(ops.reshape(labels, (-1,)), "int32")
