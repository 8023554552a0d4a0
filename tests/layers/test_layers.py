"""The building blocks against their formulas, written out in NumPy."""

import itertools

import keras
import numpy as np
import pytest
from keras import ops

from keras_hybrid import layers
from keras_hybrid.applications.botnet import BottleneckAttention
from keras_hybrid.applications.conformer import TwoHeads
from keras_hybrid.applications.facerec import PatchConvolutions
from keras_hybrid.applications.kprpe import KeypointOffsets, KeypointRelativeBias
from keras_hybrid.applications.san import PairwiseAttention, PatchwiseAttention
from tests.gradients import value_and_gradient

BATCH, TOKENS, WIDTH = 2, 6, 8
GRID = (2, 3)
RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(BATCH, TOKENS, WIDTH)).astype("float32")

# Name → (layer, shape of its input).
LAYERS = {
    "MultiHeadSelfAttention": (
        lambda: layers.MultiHeadSelfAttention(
            2, 3, qkv_bias=False, scale=0.1, attention_dropout=0.1, dropout=0.2, output_dim=5
        ),
        X.shape,
    ),
    "ConvolutionalAttention": (lambda: layers.ConvolutionalAttention(2, head_dim=3), X.shape),
    "ConvolutionalProjection": (
        lambda: layers.ConvolutionalProjection(GRID, strides=2, use_bias=False, shortcut=True),
        X.shape,
    ),
    "ConvolutionalProjectionAttention": (
        lambda: layers.ConvolutionalProjectionAttention(
            2, GRID, kernel_size=5, scale=0.1, attention_dropout=0.1, dropout=0.2
        ),
        X.shape,
    ),
    "SequencePooling": (lambda: layers.SequencePooling("glorot_normal"), X.shape),
    "LearnedPositionEmbedding": (lambda: layers.LearnedPositionEmbedding("zeros"), X.shape),
    "SinusoidalPositionEmbedding": (lambda: layers.SinusoidalPositionEmbedding(99.0), X.shape),
    "RelativePositionBias": (lambda: layers.RelativePositionBias(GRID, 4), X.shape),
    "DropPath": (lambda: layers.DropPath(0.3, seed=5), X.shape),
    "ImageToPatches": (lambda: layers.ImageToPatches(2), (2, 4, 6, 3)),
    "ClassToken": (lambda: layers.ClassToken("ones"), X.shape),
    "FullyConvolutionalTransformer": (
        lambda: layers.FullyConvolutionalTransformer(2, 3, dilations=(1, 3), epsilon=1e-4),
        (2, 4, 6, 8),
    ),
    "FullyConvolutionalTransformer without linear layers": (
        lambda: layers.FullyConvolutionalTransformer(
            4, 2, 1, "batch", linear=False, convolution=False, dilations=()
        ),
        (2, 3, 2, 8),
    ),
    "PairwiseAttention": (lambda: PairwiseAttention(3, 6, 3, 2, "hadamard"), (2, 3, 4, 8)),
    "PatchwiseAttention": (lambda: PatchwiseAttention(3, 6, 3, 2), (2, 3, 4, 8)),
    "BottleneckAttention": (lambda: BottleneckAttention(2), (2, 2, 3, 8)),
    "TwoHeads": (lambda: TwoHeads(3, 5, "softmax", "he_normal"), (2, WIDTH)),
    "KeypointOffsets": (lambda: KeypointOffsets(GRID), (2, 5, 2)),
    "KeypointRelativeBias": (lambda: KeypointRelativeBias(GRID, 4, 1, 0.9), (2, 6, 3 * 4 * 9)),
    "PatchConvolutions": (lambda: PatchConvolutions(4, (5, 6), 3), (2, 3, 4 * 4 * 3)),
}
every_layer = pytest.mark.parametrize("name", LAYERS)


def numpy(tensor):
    return ops.convert_to_numpy(tensor)


def randomised(layer, *shapes):
    """Build a layer and give every weight, biases too, a value that shows in the output."""
    layer.build(*shapes)
    random = np.random.default_rng(1)
    layer.set_weights([random.normal(0, 0.5, weight.shape) for weight in layer.get_weights()])
    return layer


def softmax(x):
    x = np.exp(x - x.max(axis=-1, keepdims=True))
    return x / x.sum(axis=-1, keepdims=True)


# --- what every layer promises --------------------------------------------------------------------


@every_layer
def test_a_layer_comes_back_from_its_configuration(name):
    make, shape = LAYERS[name]
    layer = make()
    copy = keras.layers.deserialize(keras.layers.serialize(layer))
    assert type(copy) is type(layer) and copy.get_config() == layer.get_config()
    x = RANDOM.normal(size=shape).astype("float32")
    layer.build(shape)
    copy.build(shape)
    if layer.get_weights():
        copy.set_weights(layer.get_weights())
    np.testing.assert_array_equal(numpy(copy(x)), numpy(layer(x)))


@every_layer
def test_symbolic_shapes_are_the_real_ones_and_the_batch_is_free(name):
    make, shape = LAYERS[name]
    layer = make()
    symbolic = layer(keras.Input(shape[1:]))
    output = numpy(layer(np.ones(shape, "float32")))
    free = None if output.shape[0] == shape[0] else 1
    assert (
        symbolic.shape
        == (free, *output.shape[1:])
        == layer.compute_output_shape((None, *shape[1:]))
    )


@every_layer
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_computes_in_half_and_keeps_weights_whole(name, policy):
    make, shape = LAYERS[name]
    layer = type(make()).from_config({**make().get_config(), "dtype": policy})
    symbolic = layer(keras.Input(shape[1:]))
    assert symbolic.dtype == policy.removeprefix("mixed_")
    assert {v.dtype for v in layer.trainable_variables} <= {"float32"}


@every_layer
def test_maps_are_channels_last_whatever_keras_is_set_to(name):
    make, shape = LAYERS[name]
    x = RANDOM.normal(size=shape).astype("float32")
    layer = randomised(make(), shape)
    expected = numpy(layer(x))
    keras.config.set_image_data_format("channels_first")
    try:
        copy = type(layer).from_config(layer.get_config())
        copy.build(shape)
        copy.set_weights(layer.get_weights())
        for each in (layer, copy):
            np.testing.assert_array_equal(numpy(each(x)), expected)
    finally:
        keras.config.set_image_data_format("channels_last")


@pytest.mark.parametrize(
    "name",
    [
        "MultiHeadSelfAttention",
        "ConvolutionalAttention",
        "ConvolutionalProjection",
        "ConvolutionalProjectionAttention",
        "SequencePooling",
        "SinusoidalPositionEmbedding",
        "RelativePositionBias",
        "ClassToken",
    ],
)
def test_a_map_is_not_taken_for_tokens(name):
    make, _ = LAYERS[name]
    with pytest.raises(ValueError, match="expected ndim=3, found ndim=4"):
        make()(X.reshape(BATCH, *GRID, WIDTH))


# --- attention ------------------------------------------------------------------------------------


def attention_in_numpy(layer, x, heads, head_dim, scale, bias=0.0):
    """One head after the other: softmax(scale · q kᵀ + bias) v, heads side by side, projected."""
    kernel, offset, output_kernel, output_offset = layer.get_weights()
    results, maps = [], []
    for sample, image in enumerate(x):
        columns = []
        for head in range(heads):
            query, key, value = (
                image @ kernel[:, start : start + head_dim] + offset[start : start + head_dim]
                for start in (part * heads * head_dim + head * head_dim for part in range(3))
            )
            logits = scale * query @ key.T
            full = np.broadcast_to(bias, (len(x), heads, *logits.shape))
            maps.append(softmax(logits + full[sample, head]))
            columns.append(maps[-1] @ value)
        results.append(np.concatenate(columns, axis=-1) @ output_kernel + output_offset)
    return np.array(results), np.array(maps).reshape(len(x), heads, *maps[0].shape)


@pytest.mark.parametrize(
    "options", [{}, {"head_dim": 3}, {"scale": 0.25}], ids=["plain", "head_dim", "scale"]
)
@pytest.mark.parametrize(
    "bias_shape",
    [None, (BATCH, 2, TOKENS, TOKENS), (1, 2, TOKENS, TOKENS), (TOKENS, TOKENS)],
    ids=str,
)
def test_attention_is_the_formula(options, bias_shape):
    layer = randomised(layers.MultiHeadSelfAttention(2, **options), X.shape)
    head_dim = options.get("head_dim", WIDTH // 2)
    bias = None if bias_shape is None else RANDOM.normal(size=bias_shape).astype("float32")
    expected, maps = attention_in_numpy(
        layer,
        X,
        heads=2,
        head_dim=head_dim,
        scale=options.get("scale", 1 / np.sqrt(head_dim)),
        bias=0.0 if bias is None else bias,
    )
    np.testing.assert_allclose(numpy(layer(X, attention_bias=bias)), expected, atol=1e-5)
    np.testing.assert_allclose(numpy(layer.attention_scores(X, bias)), maps, atol=1e-5)


def test_attention_has_the_biases_it_is_told_to_have():
    names = {
        (True, True): ["kernel", "bias", "kernel", "bias"],
        (False, True): ["kernel", "kernel", "bias"],
        (True, False): ["kernel", "bias", "kernel"],
        (False, False): ["kernel", "kernel"],
    }
    for (qkv, output), expected in names.items():
        layer = layers.MultiHeadSelfAttention(2, qkv_bias=qkv, output_bias=output)
        layer.build(X.shape)
        assert [v.name for v in layer.weights] == expected


def test_each_member_of_a_group_may_have_logits_of_its_own():
    layer = randomised(layers.MultiHeadSelfAttention(2), X.shape)
    x = RANDOM.normal(size=(6, TOKENS, WIDTH)).astype("float32")
    bias = RANDOM.normal(size=(3, 2, TOKENS, TOKENS)).astype("float32")
    expected = numpy(layer(x, attention_bias=np.concatenate([bias, bias])))
    np.testing.assert_allclose(numpy(layer(x, attention_bias=bias)), expected, atol=1e-6)


@pytest.mark.parametrize("option", ["attention_dropout", "dropout"])
def test_dropout_of_attention_acts_in_training_only(option):
    layer = randomised(layers.MultiHeadSelfAttention(2, **{option: 0.5}), X.shape)
    calm = numpy(layer(X))
    np.testing.assert_array_equal(numpy(layer(X, training=False)), calm)
    assert np.abs(numpy(layer(X, training=True)) - calm).max() > 0.1


def test_a_logit_of_minus_infinity_hides_a_key():
    layer = randomised(layers.MultiHeadSelfAttention(2), X.shape)
    bias = np.zeros((TOKENS, TOKENS), "float32")
    bias[:, 2] = -np.inf
    assert not numpy(layer.attention_scores(X, bias))[..., 2].any()
    changed = X.copy()
    changed[:, 2] += 1
    others = [i for i in range(TOKENS) if i != 2]
    before, after = (numpy(layer(x, attention_bias=bias))[:, others] for x in (X, changed))
    np.testing.assert_allclose(after, before, atol=1e-6)


@pytest.mark.parametrize("scale_position", [True, False])
def test_bottleneck_attention_sees_rows_and_columns_between_query_and_key(scale_position):
    shape, head_dim = (2, 2, 3, 8), 4
    layer = randomised(BottleneckAttention(2, scale_position), shape)
    kernel, rows, columns = (
        numpy(v) for v in (layer.qkv.kernel, layer.height_table, layer.width_table)
    )
    image = RANDOM.normal(size=shape).astype("float32")
    expected = np.zeros((2, 6, 8))
    for sample, head in itertools.product(range(2), range(2)):
        tokens = image[sample].reshape(6, 8)
        query, key, value = (
            tokens @ kernel[:, part * 8 + head * head_dim :][:, :head_dim] for part in range(3)
        )
        logits = query @ key.T / 2
        for i, j in itertools.product(range(6), range(6)):
            offset = rows[j // 3 - i // 3 + 1] + columns[j % 3 - i % 3 + 2]
            logits[i, j] += query[i] @ offset / (2 if scale_position else 1)
        expected[sample, :, head * head_dim :][:, :head_dim] = softmax(logits) @ value
    np.testing.assert_allclose(numpy(layer(image)).reshape(2, 6, 8), expected, atol=1e-5)
    np.testing.assert_allclose(numpy(layer.attention_scores(image)).sum(-1), 1, atol=1e-5)


def footprint_attention_in_numpy(layer, x):
    """One pixel after the other, as Zhao et al. 2020, eqs. 2 and 4, have it."""

    def linear(name, x):
        kernel, *bias = getattr(layer, name).get_weights()
        return x @ kernel[0, 0] + sum(bias)

    def norm_relu(name, x):
        gamma, beta, mean, variance = getattr(layer, name).get_weights()
        return np.maximum(0, (x - mean) / np.sqrt(variance + 1e-5) * gamma + beta)

    def gamma(x):
        x = linear("reduce", norm_relu("relation_norm", x))
        return linear("expand", norm_relu("reduced_norm", x))

    def padded(x):
        return np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")

    delta = {
        "subtraction": lambda a, b: a - b,
        "summation": lambda a, b: a + b,
        "concatenation": lambda a, b: np.concatenate([np.broadcast_to(a, b.shape), b], axis=-1),
        "hadamard": lambda a, b: a * b,
        "dot": lambda a, b: (a * b).sum(axis=-1, keepdims=True),
    }[layer.relation]
    query, key, value = linear("query", x), padded(linear("key", x)), padded(linear("value", x))
    batch, height, width, _ = x.shape
    place = np.stack(np.meshgrid(np.linspace(-1, 1, width), np.linspace(-1, 1, height)), axis=-1)
    result = np.zeros((batch, height, width, value.shape[-1]))
    for b, i, j in itertools.product(range(batch), range(height), range(width)):
        keys = key[b, i : i + 3, j : j + 3].reshape(9, -1)
        values = value[b, i : i + 3, j : j + 3].reshape(9, -1)
        if isinstance(layer, PairwiseAttention):
            place_map = linear("position", place)[np.newaxis]
            others = padded(place_map)[0, i : i + 3, j : j + 3].reshape(9, 2)
            offset = place_map[0, i, j] - others
            logits = gamma(np.concatenate([delta(query[b, i, j], keys), offset], axis=-1))
            weights = softmax(logits.T).T
        else:
            seen = [delta(query[b, i, j], keys).ravel()]
            if layer.relation == "concatenation":
                seen = [query[b, i, j], keys.ravel()]
            weights = gamma(np.concatenate(seen)).reshape(9, -1)
        channels = np.arange(values.shape[-1]) % weights.shape[-1]
        result[b, i, j] = (weights[:, channels] * values).sum(axis=0)
    return result


@pytest.mark.parametrize(
    "relation", ["subtraction", "summation", "concatenation", "hadamard", "dot"]
)
@pytest.mark.parametrize("kind", [PairwiseAttention, PatchwiseAttention])
def test_footprint_attention_is_the_formula(kind, relation):
    shape = (2, 3, 4, 8)
    layer = kind(3, 6, kernel_size=3, share=2, relation=relation)
    layer.build(shape)
    random = np.random.default_rng(1)
    for variable in layer.variables:
        value = random.normal(0, 0.5, variable.shape)
        variable.assign(np.abs(value) if "variance" in variable.name else value)
    x = RANDOM.normal(size=shape).astype("float32")
    expected = footprint_attention_in_numpy(layer, x)
    np.testing.assert_allclose(numpy(layer(x)), expected, rtol=1e-4, atol=1e-4)


def test_a_footprint_larger_than_the_map_is_refused():
    with pytest.raises(ValueError, match=r"input_shape is too small.*kernel_size=7.*3x4"):
        PairwiseAttention(3, 6, kernel_size=7, share=2)(np.zeros((2, 3, 4, 8), "float32"))


def test_fully_convolutional_transformer_is_the_published_block():
    """Its attention is ``keras.layers.MultiHeadAttention`` on maps, as in the authors' code."""
    shape = (2, 5, 4, 6)
    layer = randomised(layers.FullyConvolutionalTransformer(dropout=0.0), shape)
    x = ops.convert_to_tensor(RANDOM.normal(size=shape), "float32")
    query, key, value = (n(d(x)) for n, d in zip(layer.norms, layer.depthwise, strict=True))
    assert query.shape == shape and key.shape == value.shape == (2, 3, 2, 6)
    assert [n.epsilon for n in (*layer.norms, layer.focus_norm)] == [1e-3, 1e-3, 1e-3, 1e-5]
    attention = keras.layers.MultiHeadAttention(2, key_dim=6)
    attention(query, value, key)
    ours = [w for d in (*layer.dense, layer.output_dense) for w in d.get_weights()]
    attention.set_weights(
        [w.reshape(v.shape) for w, v in zip(ours, attention.weights, strict=True)]
    )
    z = x + layer.output_convolution(attention(query, value, key))
    y = layer.focus_norm(z)
    assert [b.dilation_rate for b in layer.branches] == [(1, 1), (2, 2)]
    expected = z + layer.focus(layer.branches[0](y) + layer.branches[1](y))
    np.testing.assert_allclose(numpy(layer(x)), numpy(expected), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["attention", "logits"])
def test_the_number_of_tokens_may_be_free(kind):
    tokens = keras.Input((None, 8))
    kinds = {"attention": layers.MultiHeadSelfAttention, "logits": layers.ConvolutionalAttention}
    layer = kinds[kind](2)
    model = keras.Model(tokens, layer(tokens))
    for count in (3, 5):
        x = np.random.default_rng(0).normal(size=(2, count, 8)).astype("float32")
        expected = keras.ops.convert_to_numpy(layer(x))
        np.testing.assert_allclose(model.predict(x, verbose=0), expected, atol=1e-5)


@pytest.mark.parametrize("head_dim", [None, 3])
def test_convolutional_attention_is_the_scaled_product_without_softmax(head_dim):
    layer = randomised(layers.ConvolutionalAttention(2, head_dim), X.shape)
    query_kernel, query_bias, key_kernel, key_bias = layer.get_weights()
    width = head_dim or WIDTH // 2
    query = (X @ query_kernel + query_bias).reshape(BATCH, TOKENS, 2, width)
    key = (X @ key_kernel + key_bias).reshape(BATCH, TOKENS, 2, width)
    expected = np.einsum("bqhd,bkhd->bhqk", query, key) / np.sqrt(width)
    np.testing.assert_allclose(numpy(layer(X)), expected, atol=1e-5)


@pytest.mark.parametrize(
    "layer",
    [
        layers.MultiHeadSelfAttention,
        layers.ConvolutionalAttention,
        lambda heads: layers.ConvolutionalProjectionAttention(heads, GRID),
    ],
    ids=["self", "convolutional", "projection"],
)
def test_heads_must_divide_the_channels(layer):
    with pytest.raises(ValueError, match=r"num_heads=3 does not divide the 8 channels"):
        layer(3)(X)
    for wrong in (0, -2):
        with pytest.raises(ValueError, match=rf"num_heads must be a positive integer.*{wrong}"):
            layer(wrong)


# --- convolutional projections --------------------------------------------------------------------


def statistics_too(layer):
    """Give a built layer's weights values that show, variances positive ones."""
    random = np.random.default_rng(1)
    for weight in layer.weights:
        value = random.normal(0, 0.5, weight.shape)
        weight.assign(np.abs(value) + 0.1 if weight.name == "moving_variance" else value)
    return layer


def projection_in_numpy(layer, x, first):
    """Depthwise convolution cell by cell, batch normalisation, linear map, shortcut."""
    (height, width), step, size = layer.grid_size, layer.strides, layer.kernel_size
    grid = x[:, first:].reshape(BATCH, height, width, WIDTH)
    border = (size // 2, size // 2)
    padded = np.pad(grid, ((0, 0), border, border, (0, 0)))
    kernel = numpy(layer.convolution.kernel)[..., 0]
    cells = list(itertools.product(range(0, height, step), range(0, width, step)))
    convolved = [
        (padded[:, i : i + size, j : j + size] * kernel).sum(axis=(1, 2)) for i, j in cells
    ]
    norm = layer.norm
    gamma, beta, mean, variance = (
        numpy(v) for v in (norm.gamma, norm.beta, norm.moving_mean, norm.moving_variance)
    )
    y = (np.stack(convolved, axis=1) - mean) / np.sqrt(variance + 1e-5) * gamma + beta
    y = np.concatenate([x[:, :first], y], axis=1) @ numpy(layer.linear.kernel)
    y += numpy(layer.linear.bias) if layer.use_bias else 0
    if layer.shortcut:
        means = [grid[:, i : i + step, j : j + step].mean(axis=(1, 2)) for i, j in cells]
        y += np.concatenate([x[:, :first], np.stack(means, axis=1)], axis=1)
    return y


@pytest.mark.parametrize("first", [0, 1], ids=["grid", "class token"])
@pytest.mark.parametrize("strides", [1, 2])
@pytest.mark.parametrize("grid", [(2, 3), (4, 3)], ids=["smaller than the kernel", "larger"])
@pytest.mark.parametrize("options", [{}, {"shortcut": True}, {"use_bias": False}], ids=str)
def test_convolutional_projection_is_the_formula(first, strides, grid, options):
    cells = grid[0] * grid[1]
    x = RANDOM.normal(size=(BATCH, first + cells, WIDTH)).astype("float32")
    layer = layers.ConvolutionalProjection(grid, bool(first), strides, **options)
    layer.build(x.shape)
    statistics_too(layer)
    expected = projection_in_numpy(layer, x, first)
    assert expected.shape[1] == first + (cells if strides == 1 else cells // 3)
    np.testing.assert_allclose(numpy(layer(x)), expected, atol=1e-5)


@pytest.mark.parametrize("grid", [(5, 5), (4, 6), (2, 7)], ids=str)
@pytest.mark.parametrize("strides", [2, 3, 4])
def test_the_shortcut_is_the_mean_of_the_tokens_that_are_there(grid, strides):
    x = RANDOM.normal(size=(BATCH, *grid, WIDTH)).astype("float32")
    layer = layers.ConvolutionalProjection(grid, False, strides, shortcut=True)
    layer.build((BATCH, grid[0] * grid[1], WIDTH))
    rows, columns = (range(0, size, strides) for size in grid)
    expected = [
        [x[:, i : i + strides, j : j + strides].mean(axis=(1, 2)) for j in columns] for i in rows
    ]
    expected = np.moveaxis(np.array(expected), 2, 0)
    assert expected.shape[1:3] == layer._output_grid()
    np.testing.assert_allclose(numpy(layer._means(ops.convert_to_tensor(x))), expected, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"shortcut": True, "scale": 0.3}], ids=str)
def test_convolutional_projection_attention_is_the_formula(options):
    x = RANDOM.normal(size=(BATCH, 1 + TOKENS, WIDTH)).astype("float32")
    layer = layers.ConvolutionalProjectionAttention(2, GRID, class_token=True, **options)
    layer.build(x.shape)
    statistics_too(layer)
    query, key, value = (
        projection_in_numpy(part, x, 1).reshape(BATCH, -1, 2, WIDTH // 2)
        for part in (layer.query, layer.key, layer.value)
    )
    assert query.shape[1] == 7 and key.shape[1] == value.shape[1] == 3
    # The whole width's scale, not the head's.
    logits = np.einsum("bqhd,bkhd->bhqk", query, key) * options.get("scale", WIDTH**-0.5)
    np.testing.assert_allclose(numpy(layer.attention_scores(x)), softmax(logits), atol=1e-5)
    mixed = np.einsum("bhqk,bkhd->bqhd", softmax(logits), value).reshape(x.shape)
    expected = mixed @ numpy(layer.projection.kernel) + numpy(layer.projection.bias)
    np.testing.assert_allclose(numpy(layer(x)), expected, atol=1e-5)


# The first line: what oneDNN 3.11 and 3.12 get wrong in bfloat16 on a CPU with AMX.
@pytest.mark.parametrize(
    ("kernel", "strides", "channels"),
    [
        *[(4, 4, 24), (8, 1, 8), (8, 8, 28), ((1, 4), 4, 16), (10, 10, 16), (16, 16, 22)],
        *[(1, 1, 64), (2, 2, 32), (3, 1, 24), (3, 2, 16), (4, 4, 3), (4, 4, 48), (7, 4, 3)],
        *[(16, 16, 3), (5, 1, 16), (7, 1, 8), (8, 4, 3), (4, 2, 64), (9, 1, 12), (1, 2, 64)],
    ],
    ids=str,
)
@pytest.mark.parametrize("groups", [1, 2])
def test_a_convolution_in_bfloat16_is_that_of_float32(kernel, strides, channels, groups):
    half, whole = (
        layers.Conv2D(64, kernel, strides, groups=groups, dtype=policy)
        for policy in ("mixed_bfloat16", "float32")
    )
    # Numbers that bfloat16 has, too: what differs is of the sums, and of rounding them.
    random = np.random.default_rng(0)
    x = random.integers(-8, 8, (2, 32, 32, groups * channels)).astype("float32")
    whole.build(x.shape)
    weights = [random.integers(-8, 8, weight.shape) for weight in whole.get_weights()]
    whole.set_weights(weights)
    half.build(x.shape)
    half.set_weights(weights)
    found, expected = half(x), numpy(whole(x))
    assert keras.backend.standardize_dtype(found.dtype) == "bfloat16"
    found = numpy(ops.cast(found, "float32"))
    assert np.linalg.norm(found - expected) <= 0.005 * np.linalg.norm(expected)


@pytest.mark.parametrize(
    ("arguments", "options", "is_slow"),
    [
        ((3,), {"strides": 2, "padding": "same"}, True),
        ((5,), {"padding": "same", "use_bias": False}, True),
        ((3,), {"padding": "same"}, False),
    ],
    ids=["strided", "wide", "fast"],
)
def test_a_depthwise_convolution_in_bfloat16_may_be_trained_in_float32(
    arguments, options, is_slow, monkeypatch
):
    layer = layers.DepthwiseConv2D(*arguments, dtype="mixed_bfloat16", **options)
    x = RANDOM.normal(size=(BATCH, 6, 7, WIDTH)).astype("float32")
    randomised(layer, x.shape)
    is_chosen = keras.backend.backend() != "jax" and is_slow
    assert layer._is_slow_in_bfloat16(ops.convert_to_tensor(x)) is is_chosen
    found = []
    for chosen in (is_chosen, False):
        monkeypatch.setattr(layer, "_is_slow_in_bfloat16", lambda x, chosen=chosen: chosen)
        y = layer(x, training=True)
        assert keras.backend.standardize_dtype(y.dtype) == "bfloat16"
        found.append(
            value_and_gradient(lambda x: ops.cast(layer(x, training=True), "float32") ** 2, x)
        )
    for ours, theirs in zip(*found, strict=True):
        assert np.abs(theirs).max() > 1
        np.testing.assert_allclose(ours, theirs, atol=0.02 * np.abs(theirs).max())


def test_a_map_smaller_than_the_kernel_is_trained_in_float32_where_bfloat16_is_asked_for():
    layer = layers.DepthwiseConv2D(3, padding="same", dtype="mixed_bfloat16")
    is_chosen = keras.backend.backend() != "jax"
    for side, expected in ((2, is_chosen), (3, False)):
        assert layer._is_slow_in_bfloat16(ops.ones((1, side, 3, 2))) is expected
    assert not layers.DepthwiseConv2D(3)._is_slow_in_bfloat16(ops.ones((1, 2, 2, 2)))


def test_convolutional_projection_names_what_does_not_fit():
    with pytest.raises(ValueError, match=r"grid_size=\(2, 3\) has 6 cells.*7 tokens"):
        layers.ConvolutionalProjection(GRID)(np.ones((1, 7, WIDTH)))
    with pytest.raises(ValueError, match="kernel_size must be odd and positive, got 2"):
        layers.ConvolutionalProjection(GRID, kernel_size=2)


# --- positions ------------------------------------------------------------------------------------


@pytest.mark.parametrize("base", [10_000.0, 100.0])
def test_sinusoidal_positions_are_the_formula(base):
    layer = layers.SinusoidalPositionEmbedding(base)
    table = np.zeros((TOKENS, WIDTH))
    for n, i in itertools.product(range(TOKENS), range(WIDTH // 2)):
        angle = n / base ** (2 * i / WIDTH)
        table[n, 2 * i], table[n, 2 * i + 1] = np.sin(angle), np.cos(angle)
    np.testing.assert_allclose(numpy(layer(X)), X + table, atol=1e-6)
    assert not layer.weights


def test_sinusoidal_positions_need_an_even_width():
    with pytest.raises(ValueError, match=r"even number of channels.*7"):
        layers.SinusoidalPositionEmbedding()(X[..., :7])


def test_sinusoidal_positions_need_a_fixed_number_of_tokens():
    with pytest.raises(ValueError, match=r"fixed number of tokens.*\(None, None, 8\)"):
        layers.SinusoidalPositionEmbedding()(keras.Input((None, WIDTH)))


def test_learned_positions_add_one_vector_to_each_token():
    layer = randomised(layers.LearnedPositionEmbedding(), X.shape)
    (table,) = layer.get_weights()
    assert table.shape == (1, TOKENS, WIDTH)
    np.testing.assert_allclose(numpy(layer(X)), X + table, atol=1e-6)


def test_relative_positions_depend_on_the_offset_alone():
    layer = randomised(layers.RelativePositionBias(GRID, 4), X.shape)
    bias = numpy(layer(X))
    assert bias.shape == (1, 4, TOKENS, TOKENS)
    cells = list(itertools.product(range(GRID[0]), range(GRID[1])))
    seen = {}
    for (i, query), (j, key) in itertools.product(enumerate(cells), repeat=2):
        offset = (query[0] - key[0], query[1] - key[1])
        np.testing.assert_array_equal(bias[0, :, i, j], seen.setdefault(offset, bias[0, :, i, j]))
    assert len(seen) == 3 * 5 == len({value.tobytes() for value in seen.values()})
    assert layer.get_weights()[0].shape == (15, 4)


@pytest.mark.parametrize("offset", [(1, 0), (0, 1), (-1, 2)])
def test_relative_offsets_are_query_minus_key(offset):
    """Row (dy + h − 1)(2w − 1) + (dx + w − 1) of the table, as in Swin's own code."""
    layer = layers.RelativePositionBias(GRID, 1)
    layer.build(X.shape)
    (height, width), table = GRID, np.zeros((15, 1), "float32")
    table[(offset[0] + height - 1) * (2 * width - 1) + offset[1] + width - 1] = 1
    layer.set_weights([table])
    bias = numpy(layer(X))[0, 0].reshape(*GRID, *GRID)
    marked = {
        (query_row - key_row, query_column - key_column)
        for query_row, query_column, key_row, key_column in np.argwhere(bias).tolist()
    }
    assert marked == {offset}


def test_relative_positions_need_the_tokens_of_their_grid():
    with pytest.raises(ValueError, match=r"grid_size=\(2, 2\) has 4 cells.*6 tokens"):
        layers.RelativePositionBias((2, 2), 1)(X)
    with pytest.raises(ValueError, match="num_heads must be a positive integer, got 0"):
        layers.RelativePositionBias((2, 2), 0)


# --- tokens and pooling ---------------------------------------------------------------------------


def test_patches_are_cut_row_by_row_and_flattened_by_row_column_channel():
    images = RANDOM.normal(size=(2, 4, 6, 3)).astype("float32")
    patches = numpy(layers.ImageToPatches(2)(images))
    expected = [
        images[:, row : row + 2, column : column + 2].reshape(2, -1)
        for row in (0, 2)
        for column in (0, 2, 4)
    ]
    np.testing.assert_array_equal(patches, np.stack(expected, axis=1))


@pytest.mark.parametrize("shape", [(5, 4, 3), (4, 5, 3), (None, 4, 3)])
def test_patches_must_tile_the_image(shape):
    with pytest.raises(ValueError, match=r"patch_size=2.*multiples"):
        layers.ImageToPatches(2)(keras.Input(shape))
    with pytest.raises(ValueError, match="patch_size must be a positive integer, got 0"):
        layers.ImageToPatches(0)
    with pytest.raises(ValueError, match="expected ndim=4, found ndim=3"):
        layers.ImageToPatches(2)(X)


@pytest.mark.parametrize(
    "layer",
    [
        layers.ClassToken,
        layers.LearnedPositionEmbedding,
        layers.SequencePooling,
        lambda: layers.MultiHeadSelfAttention(4),
        lambda: layers.ConvolutionalProjectionAttention(4, (4, 8)),
    ],
    ids=["token", "positions", "pooling", "attention", "convolutional"],
)
def test_default_weights_have_the_authors_deviation_and_no_cut(layer):
    """PyTorch's ``trunc_normal_(std=0.02)`` cuts at ±2; Keras's truncated normal at ±0.04."""
    keras.utils.set_random_seed(0)
    layer = layer()
    layer.build((None, 32, 1024))
    tables = [v for v in layer.get_weights() if v.ndim != 1 and v.size >= 1024 and np.ptp(v) > 0]
    tables = [v for v in tables if v.ndim != 4]  # Depthwise kernels begin as PyTorch's own.
    assert tables
    for values in tables:
        assert np.std(values) == pytest.approx(0.02, rel=0.08)
        # A normal distribution has 4.6 % of its draws there.
        assert 0.025 < np.mean(np.abs(values) > 0.04) < 0.07


def test_class_token_comes_first_and_is_the_same_for_every_image():
    layer = randomised(layers.ClassToken(), X.shape)
    output = numpy(layer(X))
    (token,) = layer.get_weights()
    np.testing.assert_array_equal(output[:, 1:], X)
    np.testing.assert_array_equal(output[:, :1], np.repeat(token, BATCH, axis=0))


def test_class_token_survives_infinite_features():
    """A half-precision overflow elsewhere must not make the token itself not-a-number."""
    layer = randomised(layers.ClassToken(), X.shape)
    assert np.isfinite(numpy(layer(np.full_like(X, np.inf)))[:, 0]).all()


def test_sequence_pooling_is_the_formula():
    layer = randomised(layers.SequencePooling(), X.shape)
    kernel, bias = layer.get_weights()
    weights = softmax((X @ kernel + bias)[..., 0])
    np.testing.assert_allclose(numpy(layer.token_weights(X)), weights, atol=1e-6)
    np.testing.assert_allclose(numpy(layer(X)), np.einsum("bn,bnc->bc", weights, X), atol=1e-5)


def test_patch_convolutions_see_each_patch_alone():
    layer = randomised(PatchConvolutions(4, (5, 6), 3), (None, 3, 48))
    patches = RANDOM.normal(size=(2, 3, 48)).astype("float32")
    together = numpy(layer(patches))
    assert together.shape == (2, 3, 6)
    for sample, patch in itertools.product(range(2), range(3)):
        alone = numpy(layer(patches[sample : sample + 1, patch : patch + 1]))
        np.testing.assert_allclose(alone[0, 0], together[sample, patch], atol=1e-5)


def test_patch_convolutions_are_convolution_relu_maximum_and_mean():
    layer = randomised(PatchConvolutions(4, (5,), 1), (None, 1, 48))
    patch = RANDOM.normal(size=(1, 1, 48)).astype("float32")
    kernel, bias = layer.get_weights()
    pixels = np.maximum(patch.reshape(4, 4, 3) @ kernel[0, 0] + bias, 0)
    expected = pixels.reshape(2, 2, 2, 2, 5).max(axis=(1, 3)).mean(axis=(0, 1))
    np.testing.assert_allclose(numpy(layer(patch))[0, 0], expected, atol=1e-5)


@pytest.mark.parametrize("channels", [(), (4, 4, 4)])
def test_patch_convolutions_need_a_patch_they_can_halve(channels):
    with pytest.raises(ValueError, match=r"patch_size=4 must be at least 2"):
        PatchConvolutions(4, channels)


# --- drop path ------------------------------------------------------------------------------------


def test_drop_path_drops_whole_samples_and_keeps_the_expectation():
    x = np.ones((4000, 3, 2), "float32")
    output = numpy(layers.DropPath(0.25, seed=1)(x, training=True))
    kept = output[:, 0, 0] != 0
    np.testing.assert_allclose(output[kept], 1 / 0.75, rtol=1e-6)
    assert not output[~kept].any()
    assert output.mean() == pytest.approx(1, abs=0.05)


def test_drop_path_draws_anew_and_repeats_with_its_seed():
    x = np.ones((64, 1), "float32")
    one, same = layers.DropPath(0.5, seed=3), layers.DropPath(0.5, seed=3)
    first, second = numpy(one(x, training=True)), numpy(one(x, training=True))
    assert (first != second).any()
    np.testing.assert_array_equal(numpy(same(x, training=True)), first)


@pytest.mark.parametrize("options", [{}, {"training": False}])
def test_drop_path_does_nothing_at_inference(options):
    np.testing.assert_array_equal(numpy(layers.DropPath(0.9)(X, **options)), X)
    np.testing.assert_array_equal(numpy(layers.DropPath(0.0)(X, training=True)), X)


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5])
def test_drop_path_needs_a_rate_below_one(rate):
    with pytest.raises(ValueError, match=rf"rate must be in \[0, 1\), got {rate}"):
        layers.DropPath(rate)


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
@pytest.mark.parametrize(
    ("name", "arguments", "options"),
    [
        ("Conv2D", (6, 3), {"strides": 2, "padding": "same", "activation": "relu"}),
        ("Conv2D", (6, (2, 3)), {"dilation_rate": 2, "use_bias": False}),
        ("Conv2D", (4, 1), {"groups": 2, "activation": None}),
        ("DepthwiseConv2D", (3,), {"strides": 2, "padding": "same", "activation": "relu"}),
        ("DepthwiseConv2D", (2,), {"dilation_rate": 2, "depth_multiplier": 3, "use_bias": False}),
        ("DepthwiseConv2D", ((3, 2),), {"padding": "same"}),
    ],
)
def test_convolutions_are_keras_s_with_their_gradient(name, arguments, options, data_format):
    if keras.backend.backend() == "tensorflow" and data_format == "channels_first":
        pytest.skip("TensorFlow has no such convolutions on a CPU")
    x = RANDOM.normal(size=(BATCH, WIDTH, 6, WIDTH)).astype("float32")
    ours, theirs = (
        getattr(of, name)(*arguments, data_format=data_format, **options)
        for of in (layers, keras.layers)
    )
    randomised(ours, x.shape)
    theirs.build(x.shape)
    theirs.set_weights(ours.get_weights())
    found = [value_and_gradient(lambda x, of=layer: of(x) ** 2, x) for layer in (ours, theirs)]
    for our, their in zip(*found, strict=True):
        np.testing.assert_allclose(our, their, rtol=1e-5, atol=1e-5 * np.abs(their).max())
    assert ours.get_config() | {"name": ""} == theirs.get_config() | {"name": ""}


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="others copy nothing")
@pytest.mark.parametrize("name", ["Conv2D", "DepthwiseConv2D", "MaxPooling2D"])
def test_no_map_is_copied_on_pytorch(name):
    from torch.utils._python_dispatch import TorchDispatchMode

    class Copies(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            is_map = "clone" in str(function) and args[0].numel() >= BATCH * 8 * 6 * WIDTH
            self.count += is_map
            return function(*args, **(kwargs or {}))

    x = RANDOM.normal(size=(BATCH, 8, 6, WIDTH)).astype("float32")
    counts = {}
    for of in (layers, keras.layers):
        arguments = (4, 3) if name == "Conv2D" else (3,)
        layer = getattr(of, name)(
            *arguments, strides=2, padding="same", data_format="channels_last"
        )
        layer(x)
        with Copies() as copies:
            value_and_gradient(lambda x, of=layer: of(x) ** 2, x)
        # One copy is `value_and_gradient`'s own, of what it differentiates.
        counts[of] = copies.count - 1
    assert counts[layers] == 0 < counts[keras.layers]


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
@pytest.mark.parametrize(
    ("pool_size", "strides", "padding"),
    [(3, 2, "same"), (3, 2, "valid"), (2, 2, "same"), (4, 3, "same")],
)
def test_max_pooling_is_keras_s_with_its_gradient(pool_size, strides, padding, data_format):
    x = RANDOM.normal(size=(BATCH, 7, 6, WIDTH)).astype("float32") - 3.0  # a border of 0 would win
    found = []
    for make in (layers.MaxPooling2D, keras.layers.MaxPooling2D):
        layer = make(pool_size, strides=strides, padding=padding, data_format=data_format)
        found.append((numpy(layer(x)), *value_and_gradient(lambda x, pool=layer: pool(x) ** 2, x)))
    for ours, theirs in zip(*found, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


@pytest.mark.any_backend
@pytest.mark.parametrize("linear", [True, False])
def test_kaiming_s_weights_go_by_the_inputs_that_an_output_sees(linear):
    """He et al. 2015: the variance is two over the weights that are summed to one output."""
    layer = layers.FullyConvolutionalTransformer(
        1, linear=linear, convolution=linear, dilations=(1, 2) if linear else ()
    )
    layer.build((None, 4, 4, 128))
    kernels = {v.path: v for v in layer.trainable_variables if v.name == "kernel"}
    assert len(kernels) == (3 + 4 + 1 + 2 + 1 if linear else 4)
    for path, kernel in kernels.items():
        summed = kernel.shape[0] if len(kernel.shape) == 2 else 9
        if len(kernel.shape) == 4 and "depthwise" not in path:
            summed *= 128
        expected = np.sqrt(2 / summed)
        assert np.std(keras.ops.convert_to_numpy(kernel)) == pytest.approx(expected, rel=0.08), path
