"""Attention within windows and neighbourhoods, and attention that begins as a convolution."""

import itertools

import keras
import numpy as np
import pytest
from keras import ops

from keras_hybrid.applications.convit import GatedPositionalSelfAttention
from keras_hybrid.applications.nat import NeighborhoodAttention
from keras_hybrid.applications.swin import ShiftedWindowBias, WindowMerge, WindowPartition

RANDOM = np.random.default_rng(0)


def softmax(x):
    x = np.exp(x - x.max(axis=-1, keepdims=True))
    return x / x.sum(axis=-1, keepdims=True)


def coordinates(height, width):
    return np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij"), axis=-1)


# --- Swin -----------------------------------------------------------------------------------------

MAP, WINDOW = (6, 8), (3, 4)
shifts = pytest.mark.parametrize("shift", [(0, 0), (1, 2), (0, 1)], ids=str)


@shifts
def test_merging_windows_undoes_their_partition(shift):
    x = RANDOM.normal(size=(2, *MAP, 5)).astype("float32")
    windows = WindowPartition(WINDOW, shift)(x)
    assert windows.shape == (2 * 4, 12, 5)
    merged = WindowMerge(WINDOW, MAP, shift)(windows)
    np.testing.assert_array_equal(ops.convert_to_numpy(merged), x)


@shifts
def test_only_tokens_that_were_neighbours_before_the_shift_see_each_other(shift):
    places = coordinates(*MAP)[np.newaxis].astype("float32")
    windows = ops.convert_to_numpy(WindowPartition(WINDOW, shift)(places))
    layer = ShiftedWindowBias(WINDOW, 1, MAP, shift)
    bias = ops.convert_to_numpy(layer(windows))
    assert bias.shape == (4, 1, 12, 12) == layer.compute_output_shape(windows.shape)
    distance = np.abs(windows[:, :, np.newaxis] - windows[:, np.newaxis])
    np.testing.assert_array_equal(bias[:, 0] < -50, (distance >= WINDOW).any(axis=-1))


# --- NAT ------------------------------------------------------------------------------------------


def neighborhood_attention_in_numpy(layer, x, kernel):
    """One query after the other, on a map of at least the neighbourhood's size."""
    table, qkv, offset, out, out_offset = layer.get_weights()
    _, height, width, channels = x.shape
    head_dim = channels // layer.num_heads
    query, key, value = np.split(x @ qkv + offset, 3, axis=-1)
    result = np.zeros_like(x)
    for i, j, head in np.ndindex(height, width, layer.num_heads):
        top, left = (
            min(max(n - kernel // 2, 0), size - kernel) for n, size in ((i, height), (j, width))
        )
        part = slice(head * head_dim, (head + 1) * head_dim)
        keys, values = (
            t[:, top : top + kernel, left : left + kernel, part].reshape(len(x), -1, head_dim)
            for t in (key, value)
        )
        bias = [
            table[(y - i + kernel - 1) * (2 * kernel - 1) + z - j + kernel - 1, head]
            for y, z in itertools.product(range(top, top + kernel), range(left, left + kernel))
        ]
        logits = np.einsum("bd,bkd->bk", query[:, i, j, part], keys) / np.sqrt(head_dim) + bias
        result[:, i, j, part] = np.einsum("bk,bkd->bd", softmax(logits), values)
    return result @ out + out_offset


@pytest.mark.parametrize(
    ("size", "kernel"),
    [((3, 3), 3), ((4, 6), 3), ((5, 9), 3), ((7, 12), 5), ((2, 5), 3), ((3, 2), 5)],
    ids=str,
)
def test_each_query_attends_to_its_nearest_keys(size, kernel):
    layer = NeighborhoodAttention(2, kernel)
    x = RANDOM.normal(size=(2, *size, 4)).astype("float32")
    layer.build(x.shape)
    layer.set_weights([RANDOM.normal(0, 0.5, w.shape) for w in layer.get_weights()])
    missing = [(0, max(0, kernel - n)) for n in size]
    padded = np.pad(x, ((0, 0), *missing, (0, 0)))
    expected = neighborhood_attention_in_numpy(layer, padded, kernel)[:, : size[0], : size[1]]
    output = ops.convert_to_numpy(layer(x))
    np.testing.assert_allclose(output, expected, atol=1e-5)
    assert layer(keras.Input((*size, 4))).shape == (None, *size, 4)


def test_a_neighbourhood_has_a_centre():
    with pytest.raises(ValueError, match="kernel_size must be odd, got 4"):
        NeighborhoodAttention(2, 4)
    with pytest.raises(ValueError, match="num_heads must be a positive integer, got 0"):
        NeighborhoodAttention(0)


# --- ConViT ---------------------------------------------------------------------------------------


def test_gated_attention_begins_as_a_convolution():
    layer = GatedPositionalSelfAttention(9, (5, 6), locality_strength=10.0)
    layer.build((None, 30, 18))
    scores = ops.convert_to_numpy(layer.position_scores())
    assert scores.shape == (1, 9, 30, 30)
    nearest = coordinates(5, 6).reshape(-1, 2)[scores[0, :, 2 * 6 + 3].argmax(axis=-1)]
    assert {tuple(place) for place in nearest} == set(itertools.product((1, 2, 3), (2, 3, 4)))
    np.testing.assert_array_equal(ops.convert_to_numpy(layer.value.kernel), np.eye(18))


def test_the_gate_mixes_content_and_position():
    layer = GatedPositionalSelfAttention(4, (2, 3))
    x = RANDOM.normal(size=(2, 6, 8)).astype("float32")
    layer.build(x.shape)
    for gate, near in ((50.0, True), (-50.0, False)):
        layer.gate.assign(np.full(4, gate, "float32"))
        scores = ops.convert_to_numpy(layer.attention_scores(x))
        position = np.broadcast_to(ops.convert_to_numpy(layer.position_scores()), scores.shape)
        assert np.allclose(scores, position, atol=1e-6) == near
