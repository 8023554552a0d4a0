"""Convolutional building blocks that several families' builders share.

Everything is normalised as PyTorch's defaults have it, ε = 1e-5 and a momentum of 0.1 (Keras: 0.9),
and padded alike on all sides, which for even sizes and stride 2 differs from Keras's ``same``.
"""

from collections.abc import Sequence

import keras

from keras_hybrid.initializers import VarianceScaling
from keras_hybrid.layers.channels_last import Conv2D, DepthwiseConv2D
from keras_hybrid.layers.normalization import BatchNormalization

__all__: list[str] = []

EPSILON = 1e-5
MOMENTUM = 0.9


def check_rows(stages: Sequence[Sequence], columns: Sequence[str]) -> None:
    """Raise ValueError unless each of ``stages`` has an element for each column of their table."""
    for stage in stages:
        if not isinstance(stage, Sequence) or len(stage) != len(columns):
            raise ValueError(
                f"stages must have ({', '.join(columns)}) for each stage, got {stage!r}."
            )


def he_normal(mode: str = "fan_out") -> keras.initializers.Initializer:
    """Return He et al. 2015's normal distribution, drawn as PyTorch draws it, without a cut.

    Args:
        mode: ``"fan_out"`` keeps the variance of the gradients, ``"fan_in"`` that of the maps.
    """
    return VarianceScaling(2.0, mode, "untruncated_normal")


def batch_norm(x, name: str, epsilon: float = EPSILON):
    """Batch normalisation with PyTorch's defaults."""
    return BatchNormalization(epsilon=epsilon, momentum=MOMENTUM, name=name)(x)


def conv_norm(
    x,
    filters: int | None,
    kernel_size: int,
    *,
    name: str,
    initializer: keras.initializers.Initializer,
    strides: int = 1,
    groups: int = 1,
    activation: str | None = None,
    epsilon: float = EPSILON,
    keras_padding: bool = False,
):
    """Convolution without bias, batch normalisation, activation.

    Args:
        x: Maps, shape (batch, height, width, channels).
        filters: Channels put out; ``None``: a depthwise convolution.
        kernel_size: Odd.
        name: Prefix of the layers' names.
        initializer: Of the kernel.
        strides: Of the convolution.
        groups: Of the convolution; as many as there are channels in and out: depthwise.
        activation: ``None``, ``"prelu"`` with one slope for each channel, or a name Keras knows.
        epsilon: Of the normalisation.
        keras_padding: Whether to pad as Keras's ``same``.
    """
    padding = "same" if strides == 1 or keras_padding else "valid"
    if padding == "valid" and kernel_size > 1:
        x = keras.layers.ZeroPadding2D(kernel_size // 2, name=f"{name}_padding")(x)
    # An initializer draws the same numbers every time it is called.
    initializer = initializer.clone()
    common = {"strides": strides, "padding": padding, "use_bias": False, "name": f"{name}_conv"}
    if filters is None or groups == filters == x.shape[-1]:
        x = DepthwiseConv2D(kernel_size, depthwise_initializer=initializer, **common)(x)
    else:
        x = Conv2D(filters, kernel_size, groups=groups, kernel_initializer=initializer, **common)(x)
    x = batch_norm(x, f"{name}_norm", epsilon)
    if activation == "prelu":
        return keras.layers.PReLU(
            keras.initializers.Constant(0.25), shared_axes=[1, 2], name=f"{name}_prelu"
        )(x)
    if activation is not None:
        x = keras.layers.Activation(activation, name=f"{name}_{activation}")(x)
    return x


def inverted_residual(
    x,
    hidden: int | None,
    filters: int,
    *,
    name: str,
    initializer: keras.initializers.Initializer,
    strides: int = 1,
    activation: str,
    epsilon: float = EPSILON,
    keras_padding: bool = False,
):
    """Expand 1×1, depthwise 3×3, project 1×1 linearly; added to the input where shapes agree.

    Args:
        x: Maps, shape (batch, height, width, channels).
        hidden: Channels between; ``None``: no expansion.
        filters: Channels put out.
        name: Prefix of the layers' names.
        initializer: Of all kernels.
        strides: Of the depthwise convolution.
        activation: After expansion and depthwise convolution, as in ``conv_norm``.
        epsilon: As in ``conv_norm``.
        keras_padding: As in ``conv_norm``.
    """
    common = {"initializer": initializer, "epsilon": epsilon, "keras_padding": keras_padding}
    y = x
    if hidden is not None:
        y = conv_norm(y, hidden, 1, name=f"{name}_expand", activation=activation, **common)
    y = conv_norm(
        y, None, 3, strides=strides, name=f"{name}_depthwise", activation=activation, **common
    )
    y = conv_norm(y, filters, 1, name=f"{name}_project", **common)
    if strides > 1 or x.shape[-1] != filters:
        return y
    return keras.layers.Add(name=f"{name}_add")([x, y])


def squeeze_excitation(
    x,
    width: int,
    *,
    name: str,
    initializer: keras.initializers.Initializer,
    activation: str = "relu",
):
    """Scale each channel by sigmoid(W₂ f(W₁ mean(x))): Hu et al. 2018 (arXiv:1709.01507).

    Args:
        x: Maps, shape (batch, height, width, channels).
        width: Channels between the two projections, which have biases.
        name: Prefix of the layers' names.
        initializer: Of both kernels.
        activation: The f between them; ReLU in the paper.
    """
    y = keras.layers.GlobalAveragePooling2D(keepdims=True, name=f"{name}_pool")(x)
    steps = (("reduce", width, activation), ("expand", x.shape[-1], "sigmoid"))
    for step, channels, function in steps:
        y = Conv2D(
            channels,
            1,
            activation=function,
            kernel_initializer=initializer.clone(),
            name=f"{name}_{step}",
        )(y)
    return keras.layers.Multiply(name=f"{name}_scale")([x, y])
