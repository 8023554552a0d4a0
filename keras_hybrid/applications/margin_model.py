"""The model class of the zoo: a Functional model that knows how to train margins."""

import contextlib
import warnings
from types import SimpleNamespace
from typing import Any

import keras
from keras import ops

from keras_hybrid.layers.margin import (
    ArcFace,
    CosFace,
    CosineClassifier,
    record_embedding_norms,
    recorded_embedding_norms,
)
from keras_hybrid.layers.partial_margin import PartialCosineClassifier, supply_labels
from keras_hybrid.losses.adaptive import AdaptiveMarginLoss, MarginState
from keras_hybrid.losses.base import MarginSoftmax

__all__ = ["MarginModel"]


@keras.saving.register_keras_serializable("keras_hybrid")
class MarginModel(keras.Model):
    """A Functional model that supplies adaptive margin losses with what they need.

    Built as ``MarginModel(inputs, outputs, name=...)`` and in every respect the `keras.Model` of
    the same call: same outputs, weights and ``count_params()``. Compiled with a
    `keras_hybrid.losses.AdaptiveMarginLoss` (`AdaFace`, `CurricularFace`) it also

    - keeps that loss's state, updated by training steps only. The state outlives epochs, appears
      in the logs, is saved in ``.keras`` and ``.weights.h5`` files, and belongs to the loss object:
      compiling again with the same object keeps it, with another one starts anew;
    - hands the loss the norms of the embeddings that the model's `CosineClassifier` got in the same
      step, if the loss asks for them. ``compute_loss`` outside a training or evaluation step takes
      them from a forward pass of its own, in inference mode.

    Margin losses take ids and one-hot labels, and batches may mix them: one-hot in training, where
    an augmentation mixes images, and ids in validation. Keras chooses what ``"accuracy"`` means by
    the first batch; metrics get the labels of all others in that form.

    With a `keras_hybrid.layers.PartialCosineClassifier` as its output layer, a training step tells
    that layer the labels, and gives loss and metrics the labels' columns in what comes out.

    Raises:
        ValueError: On ``compile`` with more than one adaptive loss, with a loss that needs norms
            when the model has no or several `CosineClassifier`, with ``jit_compile=True`` on
            PyTorch and an adaptive loss or a `PartialCosineClassifier`, or with a margin loss on
            what is known to be no cosines: of a dense classifier or of a layer that scales them
            itself.
    """

    # A plain holder (keras would track the metric itself for good, also after compiling anew).
    _adaptive: SimpleNamespace | None = None
    # Whether the labels that Keras chose the metrics by were ids; None before the first batch.
    _metrics_take_ids: bool | None = None

    def compile(self, *args, **kwargs) -> None:
        """Configure training as `keras.Model.compile` does, and set up the loss's state."""
        super().compile(*args, **kwargs)
        self._metrics_take_ids = None
        try:
            self._set_up_loss()
        except ValueError:
            self.compiled = False  # or a notebook's next cell would train with it
            raise

    def _set_up_loss(self) -> None:
        _check_cosines(self, self.loss)
        is_sampled = any(isinstance(layer, PartialCosineClassifier) for layer in self.layers)
        output = getattr(self, "output", None)  # a subclassed model has none
        if is_sampled and output is not None and not keras.utils.is_keras_tensor(output):
            raise ValueError(
                f"Model {self.name!r} has several outputs, or names for them, and a "
                "`PartialCosineClassifier`, whose training steps need labels of one output alone. "
                "Make the classifier's the only output, or use `CosineClassifier`."
            )
        samplers = [x for x in self._flatten_layers() if isinstance(x, PartialCosineClassifier)]
        if any(layer is not self._partial_classifier for layer in samplers):
            warnings.warn(
                f"Model {self.name!r} has a `PartialCosineClassifier` that is not its last layer, "
                "and whose training steps see all classes.",
                stacklevel=3,
            )
        if keras.backend.backend() == "torch" and self.jit_compile and self._has_context:
            raise ValueError(
                "jit_compile=True on PyTorch does not go with an adaptive margin loss or a "
                "`PartialCosineClassifier`, whose steps it cannot trace; leave it out."
            )
        losses = {
            id(loss): loss
            for loss in keras.tree.flatten(self.loss)
            if isinstance(loss, AdaptiveMarginLoss)
        }
        if len(losses) > 1:
            raise ValueError(
                "A model can be compiled with one adaptive margin loss. Received: "
                f"{sorted(type(loss).__name__ for loss in losses.values())}"
            )
        loss = next(iter(losses.values()), None)
        if loss is None:
            self._adaptive = None
            return
        heads = _cosine_classifiers(self) if loss.needs_norms else 1
        if heads != 1:
            advice = (
                "Use a loss that goes without norms, such as `CosFace` or `CurricularFace`."
                if heads
                else 'Build it with `classifier="cosine"`.'
            )
            raise ValueError(
                f"{type(loss).__name__} needs the norms of the embeddings, which come from a "
                f"`keras_hybrid.layers.CosineClassifier`, but model {self.name!r} has "
                f"{heads or 'none'}. {advice}"
            )
        if self._adaptive is None or self._adaptive.loss is not loss:
            self._adaptive = SimpleNamespace(loss=loss, state=MarginState(loss))

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compile as a saved model was; Keras leaves this out if `compile` is overridden.

        A loss that `compile` has come to refuse is left out, so that old files can be read.
        """
        config = keras.saving.deserialize_keras_object(config)
        try:
            _check_cosines(self, config.get("loss"))
        except ValueError as error:
            warnings.warn(f"Model {self.name!r} is without its loss. {error}", stacklevel=2)
            config["loss"] = None
        self.compile(**config)
        if self.optimizer is not None and self.built:
            self.optimizer.build(self.trainable_variables)

    @property
    def margin_state(self) -> MarginState | None:
        """State of the compiled adaptive loss, or None. Saved with the model."""
        return None if self._adaptive is None else self._adaptive.state

    @property
    def metrics(self) -> list:
        """Metrics of the model, the state of an adaptive loss among them."""
        metrics = super().metrics
        return metrics if self.margin_state is None else [*metrics, self.margin_state]

    def make_train_function(self, force=False):
        """Make the function that runs training steps, as `keras.Model` does."""
        # Within the traced function, TensorFlow would make the optimizer's variables behind a
        # conditional each: half of the time until the first step, and memory that stays taken.
        if self.optimizer is not None and not self.optimizer.built:
            self.optimizer.build(self.trainable_variables)
        return super().make_train_function(force)

    def train_step(self, *args, **kwargs):
        """Run one training step of the backend."""
        if not self._has_context:  # PyTorch's compiler takes no step within one
            return super().train_step(*args, **kwargs)
        labels = None
        if self._partial_classifier is not None:
            data = kwargs["data"] if "data" in kwargs else args[-1]  # JAX passes its state first
            _, labels, _ = keras.utils.unpack_x_y_sample_weight(data)
            if isinstance(labels, list | tuple) and len(labels) == 1:
                (labels,) = labels
        with self._recording(), supply_labels(labels):
            return super().train_step(*args, **kwargs)

    def training_loss(self, x, y, sample_weight=None):
        """Return the loss of a batch, a scalar, as a training step computes it.

        For loops of one's own, such as around PyTorch's DistributedDataParallel; ``fit`` does not
        need it. It runs the model in training mode and updates the state of an adaptive loss.
        """
        with self._recording(), supply_labels(y):
            y_pred = self(x, training=True)
            return self.compute_loss(x, y, y_pred, sample_weight, training=True)

    def test_step(self, *args, **kwargs):
        """Run one evaluation step of the backend."""
        with self._recording():
            return super().test_step(*args, **kwargs)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """Compute the total loss as `keras.Model.compute_loss` does."""
        y = self._columns(y, y_pred)
        if self._adaptive is None:
            return super().compute_loss(x, y, y_pred, sample_weight, training)
        loss = self._adaptive.loss
        norms = self._embedding_norms(x) if loss.needs_norms else None
        with loss.supplied(self._adaptive.state, norms, training):
            return super().compute_loss(x, y, y_pred, sample_weight, training)

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        """Update the metrics as `keras.Model.compute_metrics` does."""
        y = self._as_in_the_first_batch(self._columns(y, y_pred), y_pred)
        return super().compute_metrics(x, y, y_pred, sample_weight)

    def _as_in_the_first_batch(self, y, y_pred):
        """Return the labels of one output, ids or one row each, as metrics got the first ones."""
        if not hasattr(y, "shape") or len(getattr(y_pred, "shape", ())) != 2:
            return y
        are_ids = len(y.shape) < 2 or (y.shape[-1] == 1 and y_pred.shape[-1] > 1)  # as Keras does
        if self._metrics_take_ids is None:
            self._metrics_take_ids = are_ids
        if are_ids == self._metrics_take_ids:
            return y
        if are_ids:
            return ops.one_hot(ops.cast(ops.reshape(y, (-1,)), "int32"), y_pred.shape[-1])
        return ops.argmax(y, axis=-1)

    @property
    def _has_context(self) -> bool:
        """Whether a step records norms or supplies labels."""
        losses = keras.tree.flatten(self.loss)
        is_adaptive = any(isinstance(loss, AdaptiveMarginLoss) for loss in losses)
        return is_adaptive or self._partial_classifier is not None

    @property
    def _partial_classifier(self) -> PartialCosineClassifier | None:
        """The output layer, if it samples classes in training."""
        layer = self.layers[-1]
        return layer if isinstance(layer, PartialCosineClassifier) else None

    def _columns(self, y, y_pred):
        """Return where the labels stand in predictions that may be of a sample of the classes."""
        head = self._partial_classifier
        if head is None or y_pred is None or y_pred.shape[-1] == head.classes:
            return y
        if isinstance(y, list | tuple):  # of one output
            return type(y)(map(head.columns, y))
        return head.columns(y)

    def _recording(self):
        if self._adaptive is not None and self._adaptive.loss.needs_norms:
            return record_embedding_norms()
        return contextlib.nullcontext()

    def _embedding_norms(self, x):
        norms = recorded_embedding_norms()
        if norms is None and x is not None:
            # Outside a step: Keras building the loss on symbolic inputs, or a user's own call.
            with record_embedding_norms() as norms:
                self(x, training=False)
        if not norms or len(norms) != 1:
            raise ValueError(
                f"{type(self._adaptive.loss).__name__} needs the norms of the embeddings from "
                f"exactly one call of a `CosineClassifier` in model {self.name!r}. Received: "
                f"{len(norms or [])} calls{' (and no x to make one)' if x is None else ''}"
            )
        return norms[0]


def _check_cosines(model: keras.Model, losses) -> None:
    """Raise ValueError if a margin loss is for an output that is known to be no cosines."""
    outputs = getattr(model, "outputs", None)
    if outputs is None:  # a subclassed model
        return
    if isinstance(losses, dict):
        named = model.output if isinstance(model.output, dict) else {}
        named = {**dict(zip(model.output_names, outputs, strict=True)), **named}
        pairs = [(loss, named.get(name)) for name, loss in losses.items()]
    elif isinstance(losses, list | tuple):
        pairs = list(zip(losses, outputs, strict=False))  # Keras checks the number
    else:
        pairs = [(losses, output) for output in outputs]
    for loss, output in pairs:
        head = _head_without_cosines(output) if isinstance(loss, MarginSoftmax) else None
        if head is not None:
            raise ValueError(
                f"{type(loss).__name__} takes cosines and would clip other outputs to [-1, 1], but "
                f"those of model {model.name!r} come from {head.name!r}, a {type(head).__name__} "
                'layer, which puts out none. Build the model with `classifier="cosine"`, or use '
                "`keras.losses.SparseCategoricalCrossentropy(from_logits=True)`."
            )


def _head_without_cosines(output) -> keras.layers.Layer | None:
    """Return the layer that a tensor comes from if it is known to put out something else."""
    from keras_hybrid.applications.conformer import TwoHeads  # which imports this module

    if not keras.utils.is_keras_tensor(output):  # an output that is not there, or several
        return None
    head, _, index = output._keras_history
    if isinstance(head, keras.Model):
        return _head_without_cosines(head.outputs[index])
    if isinstance(head, keras.layers.Average):  # an ensemble's, of the members' classifiers
        found = map(_head_without_cosines, head.input)
        return next((layer for layer in found if layer is not None), None)
    # A subclass of Dense, or one under another name, may have been made to put out cosines.
    is_dense = type(head) is keras.layers.Dense and head.name.endswith("predictions")
    others = ArcFace | CosFace | TwoHeads | keras.layers.Softmax
    return head if is_dense or isinstance(head, others) else None


def _cosine_classifiers(model: keras.Model) -> int:
    """Return how many a model has, its members' among them."""
    return sum(
        _cosine_classifiers(layer)
        if isinstance(layer, keras.Model)
        else isinstance(layer, CosineClassifier)
        for layer in model.layers
    )
