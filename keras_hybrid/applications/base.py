"""What every family's builder shares: its input, its head, its weights and its embedding model."""

import inspect
import os
from collections.abc import Callable, Sequence

import keras
import numpy as np
from keras import ops

from keras_hybrid._arguments import positive_integer
from keras_hybrid.applications.imagenet import ImageNetWeights
from keras_hybrid.applications.margin_model import MarginModel
from keras_hybrid.applications.weight_files import check_layers
from keras_hybrid.initializers import RandomNormal
from keras_hybrid.layers.attention import MultiHeadSelfAttention
from keras_hybrid.layers.channels_last import Rescaling
from keras_hybrid.layers.margin import CosineClassifier
from keras_hybrid.layers.normalization import BatchNormalization, UnitNormalization
from keras_hybrid.layers.regularization import DropPath

__all__ = ["embedding_model"]

# What torchvision and timm normalise ImageNet models with, in units of [0, 255].
IMAGENET_MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
IMAGENET_STD = (0.229 * 255, 0.224 * 255, 0.225 * 255)

# Identities of CASIA-WebFace as Face Transformer's authors clean it: what the zoo's face models of
# that training set have by default.
CASIA_CLASSES = 10_572

POOLINGS = (None, "avg", "max", "native")
CLASSIFIERS = ("cosine", "dense")


def hands_on_to(general: Callable, **defaults) -> Callable[[Callable], Callable]:
    """Let a builder with ``**keywords`` say, as its signature, what ``general`` takes of them.

    Args:
        general: The builder that is given the keywords.
        **defaults: Of these, where they are not ``general``'s own.
    """

    def decorate(builder: Callable) -> Callable:
        signature = inspect.signature(builder)
        own = [
            parameter
            for parameter in signature.parameters.values()
            if parameter.kind is not parameter.VAR_KEYWORD
        ]
        keywords = [
            parameter.replace(default=defaults.get(parameter.name, parameter.default))
            for parameter in inspect.signature(general).parameters.values()
            if parameter.kind is parameter.KEYWORD_ONLY
        ]
        builder.__signature__ = signature.replace(parameters=[*own, *keywords])
        return builder

    return decorate


def image_shape(
    input_tensor, input_shape: Sequence[int] | None, default_shape: tuple[int, int, int]
) -> tuple[int, int, int]:
    """Return the (height, width, channels) that a builder's arguments ask for.

    Args:
        input_tensor: ``None`` or a Keras tensor (batch, height, width, channels) to build on.
        input_shape: ``None`` for the default, or (height, width, channels).
        default_shape: The family's own size.

    Raises:
        ValueError: If the shape is not three positive integers or disagrees with ``input_tensor``.
    """
    if input_tensor is not None and not keras.utils.is_keras_tensor(input_tensor):
        raise ValueError(
            "input_tensor must be a Keras tensor (the output of keras.Input or of a layer), "
            f"got {type(input_tensor).__name__}."
        )
    shape = input_shape
    if shape is None:
        shape = default_shape if input_tensor is None else input_tensor.shape[1:]
    shape = tuple(shape) if isinstance(shape, Sequence) else (shape,)
    sizes = tuple(map(positive_integer, shape))
    if len(sizes) != 3 or None in sizes:
        raise ValueError(
            f"input_shape must be (height, width, channels), three positive integers, got {shape}."
        )
    if input_tensor is not None and sizes != tuple(input_tensor.shape[1:]):
        raise ValueError(
            f"input_shape={sizes} disagrees with input_tensor of shape "
            f"{tuple(input_tensor.shape)}; give one of them."
        )
    return sizes


def check_patches(image, patch_size: int) -> None:
    """Raise ValueError unless the height and width of ``image`` are multiples of a patch's."""
    if patch_size < 1:
        raise ValueError(f"patch_size must be a positive integer, got {patch_size}.")
    height, width = image.shape[1:3]
    if height % patch_size or width % patch_size:
        raise ValueError(
            f"input_shape must be a multiple of patch_size={patch_size}, got {height}x{width}."
        )


def image_input(
    input_tensor,
    input_shape: Sequence[int] | None,
    default_shape: tuple[int, int, int],
    *,
    include_preprocessing: bool,
    mean: float | Sequence[float] = 127.5,
    std: float | Sequence[float] = 127.5,
):
    """Return (model input, normalised tensor) for a builder.

    Args:
        input_tensor: ``None`` or a Keras tensor (batch, height, width, channels) to build on.
        input_shape: ``None`` for the default, or (height, width, channels).
        default_shape: The family's own size.
        include_preprocessing: Whether to map [0, 255] to (x − mean) / std inside the model.
        mean: One number, or one for each channel, in units of [0, 255].
        std: Likewise.

    Raises:
        ValueError: If the shape is not three positive integers, disagrees with ``input_tensor``
            or has another number of channels than the normalisation, or that divides by nought.
    """
    if keras.config.image_data_format() != "channels_last":
        raise ValueError(
            "keras_hybrid models are channels_last; keras.config.image_data_format() is "
            f"{keras.config.image_data_format()!r}."
        )
    shape = image_shape(input_tensor, input_shape, default_shape)
    inputs = keras.Input(shape, name="image") if input_tensor is None else input_tensor
    if not include_preprocessing:
        return inputs, inputs
    for values in (mean, std):
        if isinstance(values, Sequence) and len(values) != shape[-1]:
            raise ValueError(
                f"input_shape={shape} has {shape[-1]} channels, but the normalisation is for "
                f"{len(values)}; give include_preprocessing=False and normalise yourself."
            )
    if not np.all(np.greater(std, 0)):
        raise ValueError(f"The normalisation must divide by positive numbers, got std={std!r}.")
    if isinstance(mean, Sequence) or isinstance(std, Sequence):
        pairs = [(float(m), float(s)) for m, s in zip(*np.broadcast_arrays(mean, std), strict=True)]
        scale, offset = [1.0 / s for _, s in pairs], [-m / s for m, s in pairs]
    else:
        scale, offset = 1.0 / std, -mean / std
    return inputs, Rescaling(scale, offset, name="preprocessing")(inputs)


def mlp(x, width: int, *, dropout: float, name: str, transform=None, activation="gelu"):
    """Two Dense layers with a GELU between, and ``transform`` of the hidden tokens before it.

    ``activation`` is another form of GELU, where the authors use one, or another function's name.
    """
    kind = "gelu" if callable(activation) else activation
    channels = x.shape[-1]
    x = _mlp_dense(width, f"{name}_dense1")(x)
    if transform is not None:
        x = transform(x)
    # By name, Keras's GELU is the exact (erf) form.
    x = keras.layers.Activation(activation, name=f"{name}_{kind}")(x)
    if dropout:
        x = keras.layers.Dropout(dropout, name=f"{name}_dropout1")(x)
    x = _mlp_dense(channels, f"{name}_dense2")(x)
    if dropout:
        x = keras.layers.Dropout(dropout, name=f"{name}_dropout2")(x)
    return x


def _mlp_dense(width: int, name: str) -> keras.layers.Dense:
    # An initialiser for each: one draws the same numbers at every call.
    initializer = RandomNormal(stddev=0.02)
    return keras.layers.Dense(width, kernel_initializer=initializer, name=name)


def transformer_block(
    x,
    *,
    num_heads: int,
    mlp_width: int,
    name: str,
    epsilon: float,
    attention_bias=None,
    qkv_bias: bool = True,
    dropout: float = 0.0,
    attention_dropout: float = 0.0,
    drop_path: float = 0.0,
    mlp_transform: Callable | None = None,
):
    """A pre-norm encoder block: x + MHSA(LN x), then x + MLP(LN x).

    Args:
        x: Tokens, shape (batch, tokens, channels).
        num_heads: Heads of the attention.
        mlp_width: Hidden width of the MLP.
        name: Prefix of the layers' names.
        epsilon: Of both layer normalisations.
        attention_bias: Optional logits, broadcastable to (batch, heads, tokens, tokens).
        qkv_bias: Whether the query-key-value projection has a bias.
        dropout: Rate after both projections.
        attention_dropout: Rate on the attention map.
        drop_path: Rate on both branches.
        mlp_transform: Optional function of the MLP's hidden tokens, applied before the GELU.
    """
    y = keras.layers.LayerNormalization(epsilon=epsilon, name=f"{name}_norm1")(x)
    attention = MultiHeadSelfAttention(
        num_heads,
        qkv_bias=qkv_bias,
        attention_dropout=attention_dropout,
        dropout=dropout,
        name=f"{name}_attention",
    )
    y = attention(y) if attention_bias is None else attention(y, attention_bias=attention_bias)
    x = add_branch(x, y, drop_path, f"{name}_attention")
    y = keras.layers.LayerNormalization(epsilon=epsilon, name=f"{name}_norm2")(x)
    y = mlp(y, mlp_width, dropout=dropout, transform=mlp_transform, name=f"{name}_mlp")
    return add_branch(x, y, drop_path, f"{name}_mlp")


def add_branch(x, branch, drop_path: float, name: str):
    """Add a residual branch that is dropped for whole samples at rate ``drop_path``."""
    if drop_path:
        branch = DropPath(drop_path, name=f"{name}_drop_path")(branch)
    return keras.layers.Add(name=f"{name}_add")([x, branch])


def check_counts(**counts: int | Sequence[int]) -> None:
    """Raise ValueError unless each argument is a positive integer, or a sequence of them."""
    for name, value in counts.items():
        several = isinstance(value, Sequence) and not isinstance(value, str)
        if any(positive_integer(number) is None for number in (value if several else [value])):
            kind = "positive integers" if several else "a positive integer"
            raise ValueError(f"{name} must be {kind}, got {value!r}.")


def linear_drop_path(rate: float, depth: int) -> list[float]:
    """Return drop-path rates that rise linearly from 0 to ``rate`` over ``depth`` blocks.

    Raises:
        ValueError: If it is no rate.
    """
    if not 0 <= rate < 1:
        raise ValueError(f"drop_path must be in [0, 1), got {rate!r}.")
    return [rate * i / max(1, depth - 1) for i in range(depth)]


def build_model(
    inputs,
    features,
    pooled,
    *,
    include_top: bool,
    pooling: str | None,
    classes: int,
    classifier: str,
    classifier_activation,
    weights,
    name: str,
    embedding_dim: int | None = None,
    centers_per_class: int = 1,
    dense: Callable[..., keras.layers.Layer] = keras.layers.Dense,
    imagenet: ImageNetWeights | None = None,
) -> keras.Model:
    """Close a builder: pooling or classifier, then weights.

    Args:
        inputs: The model's input tensor.
        features: Tokens (batch, tokens, channels) or a map (batch, height, width, channels).
        pooled: Callable without arguments that returns the family's own pooled vector.
        include_top: Whether the model ends in ``predictions``.
        pooling: Of ``features`` when ``include_top`` is false: ``None``, "avg", "max", "native".
        classes: Number of classes.
        classifier: "cosine" or "dense".
        classifier_activation: Of a dense classifier; must be ``None`` for cosines.
        weights: ``None``, a path to .weights.h5 or .keras, or "imagenet" if ``imagenet`` fits.
        name: Of the model.
        embedding_dim: ``None``: the pooled vector is the embedding. A number: a projection to
            that width without bias, batch-normalised, as face recognition uses it.
        centers_per_class: Of a cosine classifier.
        dense: What makes the dense classifier; called as ``keras.layers.Dense``.
        imagenet: What ``weights="imagenet"`` means; ``None``: nothing.

    Raises:
        ValueError: For a combination of arguments that has no meaning, each naming its argument.
    """
    if pooling not in POOLINGS:
        raise ValueError(f"pooling must be one of {POOLINGS}, got {pooling!r}.")
    if classifier not in CLASSIFIERS:
        raise ValueError(f"classifier must be one of {CLASSIFIERS}, got {classifier!r}.")
    _check_weights(weights, imagenet)
    root = _root_inputs(inputs)
    if include_top or pooling == "native":
        x = pooled()
        if embedding_dim is not None:
            x = keras.layers.Dense(
                embedding_dim,
                use_bias=False,
                kernel_initializer=RandomNormal(stddev=0.02),
                name="embedding_projection",
            )(x)
            x = BatchNormalization(epsilon=1e-5, momentum=0.9, name="embedding_norm")(x)
        # Float32 whatever the policy: cosines and norms of half-precision vectors lose digits.
        x = keras.layers.Activation("linear", dtype="float32", name="embedding")(x)
    if not include_top:
        if pooling in ("avg", "max"):
            axes = tuple(range(1, len(features.shape) - 1))
            x = (ops.mean if pooling == "avg" else ops.max)(features, axis=axes)
        elif pooling is None:
            x = features
        model = keras.Model(root, x, name=name)
    else:
        number = positive_integer(classes)
        if number is None:
            raise ValueError(f"classes must be a positive integer, got {classes!r}.")
        if classifier == "cosine":
            if classifier_activation is not None:
                raise ValueError(
                    "classifier_activation must be None for classifier='cosine', whose output is "
                    f"cosθ; got {classifier_activation!r}."
                )
            x = CosineClassifier(number, centers_per_class=centers_per_class, name="predictions")(x)
        else:
            if centers_per_class != 1:
                raise ValueError(
                    "centers_per_class must be 1 for classifier='dense', which has no centres; "
                    f"got {centers_per_class!r}."
                )
            x = dense(
                number,
                activation=classifier_activation,
                kernel_initializer=RandomNormal(stddev=0.02),
                dtype="float32",
                name="predictions",
            )(x)
        model = MarginModel(root, x, name=name)
    if weights == "imagenet":
        imagenet.load(model)
    elif weights is not None:
        check_layers(model, weights)
        model.load_weights(weights)
    return model


def _check_weights(weights, imagenet: ImageNetWeights | None) -> None:
    takes_imagenet = imagenet is not None and imagenet.fits
    if weights is None or (takes_imagenet if weights == "imagenet" else os.path.exists(weights)):
        return
    accepted = "None, 'imagenet'" if takes_imagenet else "None"
    message = f"weights must be {accepted} or the path of an existing .weights.h5 or .keras file"
    if weights == "imagenet" and imagenet is not None:
        message += f" ('imagenet' is keras.applications.{imagenet.network}'s: {imagenet.needs})"
    raise ValueError(f"{message}, got {weights!r}.")


def _root_inputs(tensor):
    """Return the keras.Input that ``tensor`` was computed from (itself, for an Input)."""
    roots = keras.utils.get_source_inputs(tensor)
    return roots[0] if len(roots) == 1 else roots


def embedding_model(model: keras.Model) -> keras.Model:
    """Return image → L2-normalised embedding, sharing ``model``'s weights.

    Args:
        model: A model with a layer named ``embedding``, as every builder with ``include_top=True``
            or ``pooling="native"`` returns.

    Returns:
        A model whose output has shape (batch, dim), float32, each row of Euclidean length 1.

    Raises:
        ValueError: If ``model`` has no layer named ``embedding``.
    """
    names = [layer.name for layer in model.layers]
    if "embedding" not in names:
        raise ValueError(
            f"model {model.name!r} has no layer named 'embedding'; build it with include_top=True "
            "or pooling='native'."
        )
    x = model.get_layer("embedding").output
    x = UnitNormalization(axis=-1, dtype="float32", name="unit_embedding")(x)
    return keras.Model(model.input, x, name=f"{model.name}_embedding")
