"""Attention by a fused kernel is attention by its map, and is chosen where it pays."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_hybrid import layers
from keras_hybrid.layers import dot_product
from tests.gradients import value_and_gradient

BACKEND = keras.backend.backend()
RANDOM = np.random.default_rng(0)
BATCH, TOKENS, HEADS, WIDTH = 3, 7, 2, 4
X = RANDOM.normal(size=(BATCH, TOKENS, HEADS * WIDTH)).astype("float32")
GRID = RANDOM.normal(size=(BATCH, 3, 4, HEADS * WIDTH)).astype("float32")


def heads(tokens=TOKENS):
    return RANDOM.normal(size=(BATCH, tokens, HEADS, WIDTH)).astype("float32")


@pytest.fixture
def calls(monkeypatch):
    """Arguments of every call of Keras's function."""
    found = []
    fused = ops.dot_product_attention

    def recorded(*arguments, **keywords):
        found.append(keywords)
        return fused(*arguments, **keywords)

    monkeypatch.setattr(ops, "dot_product_attention", recorded)
    return found


@pytest.mark.parametrize(
    "shape",
    [None, (BATCH, HEADS, TOKENS, 5), (1, HEADS, TOKENS, 5), (HEADS, 1, 5), (TOKENS, 5)],
    ids=str,
)
def test_both_ways_give_the_same_values_and_gradients(shape, monkeypatch, calls):
    query, key, value = heads(), heads(5), heads(5)
    bias = None if shape is None else RANDOM.normal(size=shape).astype("float32")
    weights = ops.convert_to_tensor(heads())
    found = {}
    for fused in (True, False):
        monkeypatch.setattr(dot_product, "_has_fused_kernel", lambda *_, fused=fused: fused)
        found[fused] = value_and_gradient(
            lambda x: weights * dot_product.attend(x, key, value, 0.7, bias), query
        )
        assert bool(calls) == fused
        calls.clear()
    for one, other in zip(found[True], found[False], strict=True):
        assert np.abs(other).max() > 0.1
        np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (lambda rate: layers.MultiHeadSelfAttention(HEADS, attention_dropout=rate), X),
        (
            lambda rate: layers.ConvolutionalProjectionAttention(
                HEADS, (1, TOKENS), attention_dropout=rate
            ),
            X,
        ),
        (lambda rate: layers.FullyConvolutionalTransformer(HEADS, attention_dropout=rate), GRID),
    ],
    ids=["self-attention", "convolutional projections", "fully convolutional"],
)
def test_layers_take_the_fused_kernel_unless_they_drop_parts_of_the_map(
    layer, x, monkeypatch, calls
):
    layer = layer(0.5)
    layer.build(x.shape)
    answers = {}
    for fused in (False, True):
        monkeypatch.setattr(dot_product, "_has_fused_kernel", lambda *_, fused=fused: fused)
        answers[fused] = ops.convert_to_numpy(layer(x, training=False))
        assert len(calls) == fused
    np.testing.assert_allclose(answers[True], answers[False], atol=1e-5)
    layer(x, training=True)
    assert len(calls) == 1


@pytest.mark.parametrize(("rate", "has_bias"), [(0.0, False), (0.0, True), (0.5, True)], ids=str)
def test_a_map_computed_again_gives_the_same_values_and_gradients(rate, has_bias, monkeypatch):
    monkeypatch.setattr(dot_product, "_has_fused_kernel", lambda *_: False)
    again = []
    original = keras.remat
    monkeypatch.setattr(keras, "remat", lambda function: again.append(1) or original(function))
    x, weights = heads(), ops.convert_to_tensor(heads())
    factor = ops.convert_to_tensor(RANDOM.normal(size=(HEADS, 1, 1)).astype("float32"))
    found = {}
    for remat in (True, False):
        dropout = keras.layers.Dropout(rate, seed=3)

        def function(x, remat=remat, dropout=dropout):
            bias = ops.matmul(ops.transpose(x, (0, 2, 1, 3)), ops.ones((WIDTH, TOKENS)))
            mix = (lambda scores, factor: scores * factor, (factor * ops.mean(x),))
            y = dot_product.attend(
                x, x, 2 * x, 0.7, bias if has_bias else None, dropout, True, remat, mix
            )
            return weights * y

        found[remat] = value_and_gradient(function, x)
    assert bool(again) == (rate == 0)  # a map with dropped parts is kept
    for one, other in zip(found[True], found[False], strict=True):
        assert np.abs(other).max() > 0.01
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_groups_have_logits_of_their_own_either_way(monkeypatch, calls):
    bias = RANDOM.normal(size=(3, HEADS, TOKENS, TOKENS)).astype("float32")
    query, key, value = (np.concatenate([heads(), heads()]) for _ in range(3))
    found = dot_product.attend(query, key, value, 0.7, bias)
    monkeypatch.setattr(dot_product, "_has_fused_kernel", lambda *_: False)
    expected = dot_product.attend(query, key, value, 0.7, np.concatenate([bias, bias]))
    assert not calls
    np.testing.assert_allclose(
        ops.convert_to_numpy(found), ops.convert_to_numpy(expected), atol=1e-5
    )


@pytest.mark.skipif(BACKEND != "torch", reason="the choice on a CPU is PyTorch's alone")
def test_on_a_cpu_pytorch_s_kernel_is_taken_in_float32_without_trained_logits(calls):
    import torch

    query, key, value = (torch.from_numpy(heads()) for _ in range(3))
    bias = torch.zeros(1, HEADS, TOKENS, TOKENS)
    dot_product.attend(query, key, value, 1.0)
    dot_product.attend(query, key, value, 1.0, bias)
    assert len(calls) == 2
    dot_product.attend(query, key, value, 1.0, bias.requires_grad_())
    dot_product.attend(query.bfloat16(), key.bfloat16(), value.bfloat16(), 1.0)
    assert len(calls) == 2


@pytest.mark.skipif(BACKEND != "jax", reason="the choice by the kind of accelerator is JAX's alone")
@pytest.mark.parametrize(
    ("devices", "fused"),
    [
        (["gpu:0", "gpu:1"], True),
        (["cuda:0"], True),
        (["tpu:0"], False),
        (["gpu:0", "tpu:0"], False),
        (["cpu:0"], False),
    ],
    ids=str,
)
def test_on_jax_keras_s_function_is_taken_on_gpus_alone(devices, fused, monkeypatch):
    """Its kernel for a TPU is another function."""
    monkeypatch.setattr(keras.distribution, "list_devices", lambda: devices)
    found = []
    monkeypatch.setattr(ops, "dot_product_attention", lambda *_, **__: found.append(1))
    query = ops.convert_to_tensor(heads())
    dot_product.attend(query, query, query, 0.7, np.ones((TOKENS, TOKENS), "float32"))
    assert bool(found) == fused


@pytest.mark.skipif(BACKEND == "torch", reason="PyTorch has a kernel for CPUs")
def test_on_a_cpu_the_others_have_no_kernel(calls):
    query, key, value = heads(), heads(), heads()
    dot_product.attend(query, key, value, 1.0)
    assert not calls
