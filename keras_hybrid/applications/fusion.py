"""Two models, or more, as one: late fusion of their features, and an ensemble of their answers.

Source: the report "Towards a robust and EfficientNet Architecture for Face Recognition", section
3.3.1, which names both beside the hybrid it builds (``efficientnet_vit``): extract features with
EfficientNet and ViT and concatenate them before the classifier, or train both and average their
predictions. It gives no numbers and no code; the registered models join its EfficientNet-B0 and its
ViT-P8S8.

The members' graphs are copied into one graph, their layers' names behind the member's, rather than
called as models within the model: Grad-CAM, attention maps, exports, freezing by name and patterns
of learning rates then see every layer, and no name is used twice. Weights are copied; the members
given stay as they are. Every member gets images in [0, 255], resized to its own size where that
differs, and normalises them itself.

A word on averaging embeddings: networks trained apart put one face in unrelated directions, so
their embeddings have no common average. ``average="similarities"`` joins such embeddings instead,
which averages the cosines between images; ``average="embeddings"`` is for members that are trained
together, or from one another.
"""

import re
from collections.abc import Sequence

import keras

from keras_hybrid.applications.base import CASIA_CLASSES, build_model, image_input
from keras_hybrid.applications.convolution import batch_norm
from keras_hybrid.applications.registry import ModelInfo, create_model, model_info, register_model
from keras_hybrid.initializers import RandomNormal
from keras_hybrid.layers.margin import CosineClassifier
from keras_hybrid.layers.normalization import UnitNormalization

__all__ = ["Ensemble", "LateFusion"]

PAPER = (
    "Mitra Roy, Shaw and Kundu 2024, Face Transformer - Rethinking Model Incorporating "
    "EfficientNet Into ViT"
)
MEMBERS = ("efficientnet_b0_face", "vit_p8s8")
AVERAGES = ("embeddings", "similarities", "logits", "probabilities")

# A model, the name of a registered one, or that and arguments for it.
Member = keras.Model | str | tuple[str, dict]


class _Member:
    """A model that becomes part of a graph.

    Args:
        model: Functional or Sequential.
        prefix: Of its layers' names there.
        trained: Whether its weights are copied, not only its layers.
    """

    def __init__(self, model: keras.Model, prefix: str, trained: bool):
        self.model, self.prefix, self.trained = model, prefix, trained
        names = [layer.name for layer in model.layers]
        self.features = model.get_layer("embedding").output if "embedding" in names else None
        if self.features is None:
            self.features = model.outputs[0]
        self.head = model.layers[-1] if names[-1] == "predictions" else None

    def vector(self, image):
        """Return the embedding, the output or its average over the places, for an image."""
        height, width, channels = self.model.inputs[0].shape[1:]
        if channels != image.shape[-1]:
            raise ValueError(
                f"members take images of one number of channels, but {self.prefix!r} takes "
                f"{channels} and the input has {image.shape[-1]}."
            )
        if None not in (height, width) and (height, width) != tuple(image.shape[1:3]):
            image = keras.layers.Resizing(height, width, name=f"{self.prefix}_resizing")(image)
        copies: dict[int, keras.Operation] = {}
        graph = keras.Model(self.model.inputs, self.features)
        x = graph._run_through_graph(image, lambda operation: self._copy(operation, copies))
        if len(x.shape) > 2:
            x = keras.layers.Reshape((-1, x.shape[-1]), name=f"{self.prefix}_places")(x)
            x = keras.layers.GlobalAveragePooling1D(name=f"{self.prefix}_pool")(x)
        for layer in graph.layers:
            if layer.weights:
                self._hand_over(layer, copies[id(layer)])
        return x

    def answer(self, vector):
        """Return what the member's own classifier says of its embedding."""
        copies: dict[int, keras.Operation] = {}
        answer = self._copy(self.head, copies)(vector)
        self._hand_over(self.head, copies[id(self.head)])
        return answer

    def _hand_over(self, layer: keras.layers.Layer, copy: keras.layers.Layer) -> None:
        """Give a copy the weights of a trained member's layer, and freeze what is frozen in it."""
        if not self.trained:
            return
        copy.set_weights(layer.get_weights())
        # Those that hold others first: Keras sets what is within a layer, too.
        for theirs, ours in zip(layer._flatten_layers(), copy._flatten_layers(), strict=True):
            ours.trainable = theirs.trainable

    def _copy(self, operation: keras.Operation, copies: dict[int, keras.Operation]):
        if id(operation) not in copies:
            config, name = operation.get_config(), f"{self.prefix}_{operation.name}"
            if "name" in config:
                config["name"] = name
            copies[id(operation)] = type(operation).from_config(config)
            copies[id(operation)].name = name
        return copies[id(operation)]


def _members(
    members: Sequence[Member], input_tensor, input_shape, include_preprocessing: bool, **arguments
):
    """Return the input, the image in [0, 255] and a `_Member` for each of ``members``.

    Args:
        members: As the builders have them.
        input_tensor: As the builders have it.
        input_shape: As the builders have it.
        include_preprocessing: As the builders have it.
        **arguments: For members given by name.
    """
    members = tuple(members)
    if len(members) < 2:
        raise ValueError(f"members must be two models or more, got {len(members)}.")
    specified = []
    for member in members:
        pair = member if isinstance(member, tuple) else (member, {})
        if len(pair) != 2 or not (isinstance(pair[0], str) or _is_graph_of_an_image(pair[0])):
            raise ValueError(
                "members must be Functional or Sequential models of one image with one output, "
                f"names of registered models, or (name, arguments), got {member!r}."
            )
        specified.append(pair)
    first, own = specified[0]
    if isinstance(first, str):
        default_shape = own.get("input_shape") or model_info(first).input_shape
    else:
        default_shape = tuple(first.inputs[0].shape[1:])
    inputs, image = image_input(
        input_tensor,
        input_shape,
        default_shape,
        include_preprocessing=include_preprocessing,
        mean=0.0,
        std=1.0,
    )
    parts: list[_Member] = []
    for model, own in specified:
        trained = not isinstance(model, str) or own.get("weights") is not None
        if isinstance(model, str):
            own = {"input_shape": tuple(image.shape[1:]), **arguments, **own}
            model = create_model(model, **own)
        # PyTorch's names of parameters have no dots, those of keras.applications do.
        prefix, taken = model.name.replace(".", "_"), [part.prefix for part in parts]
        if prefix in taken:
            prefix = next(p for i in range(1, len(members)) if (p := f"{prefix}_{i}") not in taken)
        parts.append(_Member(model, prefix, trained))
    return inputs, image, parts


def member_names(layers: Sequence[tuple[str, keras.layers.Layer]]) -> list[str]:
    """Return what the names of each member's layers begin with, before an underscore.

    Args:
        layers: Those of a model, with their names, which may have lost what they began with.

    Returns:
        The names in order; none for a model that is not fused.
    """
    names, members = {id(layer): name for name, layer in layers}, []
    for name, layer in layers:
        # What puts the members' vectors together: the layers before it are named by the builders.
        if isinstance(layer, keras.layers.Reshape | keras.layers.Concatenate) and re.fullmatch(
            r"features_\d+|joined", name
        ):
            for vector in keras.tree.flatten(layer.input):
                end = names.get(id(vector._keras_history.operation), "")
                match = re.fullmatch(r"(.+?)_(?:projection|(?:unit_)?embedding)", end)
                if match is not None:
                    members.append(match[1])
    return members


def _is_graph_of_an_image(model) -> bool:
    try:
        return len(model.inputs) == len(model.outputs) == 1 and len(model.inputs[0].shape) == 4
    except (AttributeError, TypeError, ValueError):  # no model, subclassed, or not built
        return False


def _tokens(vectors: list, name: str):
    """Put vectors of one width below one another: (batch, vectors, width)."""
    rows = [
        keras.layers.Reshape((1, vector.shape[-1]), dtype="float32", name=f"{name}_{i}")(vector)
        for i, vector in enumerate(vectors)
    ]
    return keras.layers.Concatenate(axis=1, dtype="float32", name=name)(rows)


def LateFusion(
    include_top: bool = True,
    weights: str | None = None,
    input_tensor=None,
    input_shape: Sequence[int] | None = None,
    pooling: str | None = None,
    classes: int = CASIA_CLASSES,
    classifier_activation=None,
    include_preprocessing: bool = True,
    name: str = "late_fusion",
    *,
    members: Sequence[Member] = MEMBERS,
    classifier: str = "cosine",
    centers_per_class: int = 1,
    embedding_dim: int = 512,
) -> keras.Model:
    """Build one model on the features of several: joined, projected, batch-normalised, classified.

    The features side by side and one linear layer are the same as a linear layer for each and the
    sum (here the mean, which the normalisation makes the same), so that is how it is computed.

    Args:
        include_top: Whether to end in the ``predictions`` layer.
        weights: ``None``, or the path of a .weights.h5 or .keras file.
        input_tensor: Optional Keras tensor to build on.
        input_shape: (height, width, channels); default: the first member's.
        pooling: Without top: ``None`` for the members' projected features (batch, members,
            embedding_dim), ``"avg"`` or ``"max"`` over the members, ``"native"`` for the embedding.
        classes: Number of classes.
        classifier_activation: Only with ``classifier="dense"``.
        include_preprocessing: Whether there is a layer for images of bytes. Images are in [0, 255]
            in either case: the members normalise them.
        name: Of the model.
        members: Two or more of: a Functional or Sequential model, whose layer ``embedding``, or
            output, averaged over its places, is its feature; the name of a registered model, built
            for ``input_shape``; such a name and a dictionary of arguments.
        classifier: ``"cosine"`` (train it with a margin loss) or ``"dense"``.
        centers_per_class: Sub-centres of the cosine classifier.
        embedding_dim: Width of the joint embedding.

    Returns:
        A Functional model from (batch, height, width, channels) to cosθ (batch, classes), float32
        in [−1, 1].

    Raises:
        ValueError: If an argument has no meaning; the message names it.
    """
    arguments = {"include_top": False, "pooling": "native"}
    inputs, image, parts = _members(
        members, input_tensor, input_shape, include_preprocessing, **arguments
    )
    projected = [
        keras.layers.Dense(
            embedding_dim,
            use_bias=False,
            kernel_initializer=RandomNormal(stddev=0.02),
            name=f"{part.prefix}_projection",
        )(part.vector(image))
        for part in parts
    ]
    x = _tokens(projected, "features")

    def pooled():
        mean = keras.layers.GlobalAveragePooling1D(dtype="float32", name="fusion")(x)
        return batch_norm(mean, "embedding_norm")

    return build_model(
        inputs,
        x,
        pooled,
        include_top=include_top,
        pooling=pooling,
        classes=classes,
        classifier=classifier,
        classifier_activation=classifier_activation,
        weights=weights,
        name=name,
        centers_per_class=centers_per_class,
    )


def Ensemble(
    include_top: bool = True,
    weights: str | None = None,
    input_tensor=None,
    input_shape: Sequence[int] | None = None,
    pooling: str | None = None,
    classes: int = CASIA_CLASSES,
    classifier_activation=None,
    include_preprocessing: bool = True,
    name: str = "ensemble",
    *,
    members: Sequence[Member] = MEMBERS,
    average: str = "embeddings",
    classifier: str = "cosine",
    centers_per_class: int = 1,
) -> keras.Model:
    """Build the average of several models.

    Args:
        include_top: Whether to end in the ``predictions`` layer.
        weights: ``None``, or the path of a .weights.h5 or .keras file.
        input_tensor: Optional Keras tensor to build on.
        input_shape: (height, width, channels); default: the first member's.
        pooling: Without top: ``None`` for the members' vectors (batch, members, dim), side by side
            (batch, 1, dims) unless embeddings are averaged; ``"avg"`` or ``"max"`` over the second
            axis, ``"native"`` for the embedding.
        classes: Number of classes.
        classifier_activation: Only of a dense classifier; of the members' where their classifiers
            are averaged, which must then all be given by name.
        include_preprocessing: Whether there is a layer for images of bytes. Images are in [0, 255]
            in either case: the members normalise them.
        name: Of the model.
        members: As ``LateFusion`` takes them.
        average: ``"embeddings"``: the embedding is the mean of the members' embeddings, each of
            length 1, and has a classifier of its own. ``"similarities"``: these are put side by
            side, so that the cosine between two images is the mean of the members'; a classifier
            of its own. ``"logits"``: ``predictions`` is the mean of what the members' classifiers
            (layers ``predictions``, behind ``embedding``) put out, be it logits or cosines; the
            embedding is theirs side by side, of length 1 where the classifier is a cosine.
            ``"probabilities"``: so, after softmax, which a classifier may have as its activation.
        classifier: ``"cosine"`` (train it with a margin loss) or ``"dense"``; of the members given
            by name, where their classifiers are averaged.
        centers_per_class: Sub-centres of the ensemble's own cosine classifier.

    Returns:
        A Functional model from (batch, height, width, channels) to cosθ (batch, classes), float32
        in [−1, 1], or to logits or probabilities.

    Raises:
        ValueError: If an argument has no meaning; the message names it.
    """
    if average not in AVERAGES:
        raise ValueError(f"average must be one of {AVERAGES}, got {average!r}.")
    own_classifier = average in ("embeddings", "similarities")
    arguments = {"include_top": False, "pooling": "native"}
    if not own_classifier:
        arguments = {
            "classes": classes,
            "classifier": classifier,
            "classifier_activation": classifier_activation,
        }
    inputs, image, parts = _members(
        members, input_tensor, input_shape, include_preprocessing, **arguments
    )
    if not own_classifier:
        _check_activation(members, average, classifier_activation)
        _check_heads(parts, average, classes)
    vectors = [
        part.vector(image)
        if not own_classifier and not isinstance(part.head, CosineClassifier)
        else UnitNormalization(axis=-1, dtype="float32", name=f"{part.prefix}_unit_embedding")(
            part.vector(image)
        )
        for part in parts
    ]
    widths = [vector.shape[-1] for vector in vectors]
    if average == "embeddings":
        if len(set(widths)) > 1:
            raise ValueError(
                f"average='embeddings' needs members of one width, got {widths}; use "
                "average='similarities'."
            )
        x = _tokens(vectors, "features")
    else:
        joined = keras.layers.Concatenate(dtype="float32", name="joined")(vectors)
        x = keras.layers.Reshape((1, sum(widths)), dtype="float32", name="features")(joined)

    def answers(classes, **_):
        """The layer ``predictions`` that averages the members' classifiers."""

        def predictions(embedding):
            outputs, start = [], 0
            for part, width in zip(parts, widths, strict=True):
                answer = part.answer(embedding[:, start : start + width])
                if average == "probabilities" and not _is_softmax(part.head):
                    answer = keras.layers.Softmax(
                        dtype="float32", name=f"{part.prefix}_probabilities"
                    )(answer)
                outputs.append(answer)
                start += width
            return keras.layers.Average(dtype="float32", name="predictions")(outputs)

        return predictions

    return build_model(
        inputs,
        x,
        lambda: keras.layers.GlobalAveragePooling1D(dtype="float32", name="fusion")(x),
        include_top=include_top,
        pooling=pooling,
        classes=classes,
        classifier=classifier if own_classifier else "dense",
        classifier_activation=classifier_activation,
        weights=weights,
        name=name,
        centers_per_class=centers_per_class,
        **({} if own_classifier else {"dense": answers}),
    )


def _check_activation(members: Sequence[Member], average: str, classifier_activation) -> None:
    """Raise ValueError if there is an activation, but a member's classifier is made already."""
    for member in members:
        model = member[0] if isinstance(member, tuple) else member
        if classifier_activation is not None and not isinstance(model, str):
            raise ValueError(
                f"classifier_activation must be None where average={average!r} and a member is a "
                f"model, here {model.name!r}, which has a classifier of its own; got "
                f"{classifier_activation!r}."
            )


def _check_heads(parts: list[_Member], average: str, classes: int) -> None:
    """Raise ValueError unless every member has a classifier of these classes to average."""
    for part in parts:
        if part.head is None or part.head.input is not part.features:
            raise ValueError(
                f"average={average!r} needs members with a layer 'predictions' on a layer "
                f"'embedding', but {part.prefix!r} has none."
            )
        if part.head.output.shape[-1] != classes:
            raise ValueError(
                f"classes={classes}, but member {part.prefix!r} has {part.head.output.shape[-1]}."
            )
        if average == "probabilities" and isinstance(part.head, CosineClassifier):
            raise ValueError(
                "average='probabilities' needs logits, but the classifier of "
                f"{part.prefix!r} puts out cosines; use average='logits'."
            )
        activation = getattr(part.head, "activation", None)
        if average == "probabilities" and not (
            activation in (None, keras.activations.linear) or _is_softmax(part.head)
        ):
            name = getattr(activation, "__name__", activation)
            raise ValueError(
                "average='probabilities' needs classifiers with classifier_activation=None or "
                f"'softmax', but that of {part.prefix!r} is {name!r}."
            )


def _is_softmax(layer: keras.layers.Layer) -> bool:
    return getattr(layer, "activation", None) is keras.activations.softmax


for _name, _builder, _parameters, _macs in (
    ("ensemble_efficientnet_vit", Ensemble, 73_336_476, 13_320_550_736),
    ("late_fusion_efficientnet_vit", LateFusion, 73_862_812, 13_321_075_024),
):
    register_model(
        _builder,
        ModelInfo(
            name=_name,
            family="fusion",
            paper=PAPER,
            input_shape=(112, 112, 3),
            classes=CASIA_CLASSES,
            classifier="cosine",
            parameters=_parameters,
            macs=_macs,
            reconstruction=True,
        ),
    )
