"""Attention maps, rollout and token weights."""

import keras
import numpy as np
import pytest

import keras_hybrid as kh
from tests.cases import dtype_policy
from tests.explain.models import (
    SIZE,
    photographs,
    spread,
    tiny_cct,
    tiny_cvt,
    tiny_facerec,
    tiny_facerec_small,
    tiny_vit,
)

pytestmark = pytest.mark.any_backend


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def map_by_hand(model, block, images, *, bias=None):
    """The attention map of a block, from its layer's weights and its inputs, in NumPy."""
    layer = model.get_layer(f"{block}_attention")
    tensors = {"tokens": model.get_layer(f"{block}_norm1").output}
    if bias is not None:
        tensors["bias"] = model.get_layer(bias).output
    values = keras.Model(model.inputs, tensors).predict(images, verbose=0)
    tokens = values["tokens"]
    kernel, offset = (keras.ops.convert_to_numpy(w) for w in (layer.qkv.kernel, layer.qkv.bias))
    batch, count, channels = tokens.shape
    query, key, _ = np.split(tokens @ kernel + offset, 3, axis=-1)
    width = channels // layer.num_heads
    query, key = (
        x.reshape(batch, count, layer.num_heads, width).transpose(0, 2, 1, 3) for x in (query, key)
    )
    return softmax(query @ key.transpose(0, 1, 3, 2) / np.sqrt(width) + values.get("bias", 0))


def convolutional_by_hand(model, layer, features, images):
    """Logits of a layer of convolutional attention, from its weights and inputs, in NumPy."""
    layer = model.get_layer(layer)
    features = keras.Model(model.inputs, model.get_layer(features).output)
    features = features.predict(images, verbose=0)
    query, key = (
        (features @ keras.ops.convert_to_numpy(part.kernel) + keras.ops.convert_to_numpy(part.bias))
        .reshape(*features.shape[:2], layer.num_heads, -1)
        .transpose(0, 2, 1, 3)
        for part in (layer.query, layer.key)
    )
    return query @ key.transpose(0, 1, 3, 2) / np.sqrt(query.shape[-1])


def test_maps_are_softmax_of_scaled_products_plus_the_bias_of_the_convolutions():
    model, images = tiny_facerec(), photographs()
    maps = kh.explain.attention_maps(model, images)
    assert list(maps) == ["block0_attention", "block1_attention"]
    for block in ("block0", "block1"):
        expected = map_by_hand(model, block, images, bias="convolutional_attention")
        np.testing.assert_allclose(maps[f"{block}_attention"], expected, atol=2e-5)
    without = map_by_hand(model, "block0", images)
    assert np.abs(without - maps["block0_attention"]).max() > 1e-2


def test_parts_of_facerecs_attention_are_softmax_of_each_parts_logits():
    model, images = tiny_facerec(), photographs()
    maps = kh.explain.convolutional_attention_maps(model, images)
    whole = kh.explain.attention_maps(model, images)
    assert list(maps) == list(whole) == ["block0_attention", "block1_attention"]
    logits = convolutional_by_hand(model, "convolutional_attention", "patch_convolutions", images)
    for name, parts in maps.items():
        assert list(parts) == ["query_key", "convolutional", "combined"]
        expected = {
            "query_key": map_by_hand(model, name.removesuffix("_attention"), images),
            "convolutional": softmax(logits),
            "combined": whole[name],
        }
        for part, values in parts.items():
            assert values.shape == (2, 4, 16, 16) and values.dtype == np.float32
            np.testing.assert_allclose(values, expected[part], atol=2e-5)


def test_facerec_small_has_positions_beside_the_convolutions_of_each_block():
    model, images = tiny_facerec_small(depth=2), photographs()
    maps = kh.explain.convolutional_attention_maps(model, images, batch_size=1)
    assert list(maps) == ["block0_attention", "block1_attention"]
    for i, parts in enumerate(maps.values()):
        assert list(parts) == ["query_key", "convolutional", "position", "combined"]
        name = f"block{i}_convolutional_attention"
        expected = softmax(convolutional_by_hand(model, name, "tap_norm", images))
        np.testing.assert_allclose(parts["convolutional"], expected, atol=2e-5)
        np.testing.assert_allclose(
            parts["query_key"], map_by_hand(model, f"block{i}", images), atol=2e-5
        )
        table = keras.ops.convert_to_numpy(model.get_layer(f"block{i}_relative_position").table)
        offsets = np.arange(4)[:, None] - np.arange(4) + 3  # of 4 x 4 tokens, along one axis
        rows = offsets[:, None, :, None] * 7 + offsets[None, :, None, :]
        expected = softmax(table[rows.reshape(16, 16)].transpose(2, 0, 1))
        np.testing.assert_allclose(parts["position"][1], expected, atol=2e-5)


@pytest.mark.parametrize("build", [tiny_facerec, tiny_facerec_small])
@pytest.mark.parametrize(("policy", "tolerance"), [("float32", 2e-5), ("mixed_bfloat16", 5e-2)])
def test_the_combined_map_is_the_normalised_product_of_the_parts(build, policy, tolerance):
    with dtype_policy(policy):
        model = build()
    images = photographs()
    whole = kh.explain.attention_maps(model, images)
    for name, parts in kh.explain.convolutional_attention_maps(model, images).items():
        combined = parts.pop("combined")
        np.testing.assert_array_equal(combined, whole[name])
        product = np.prod(list(parts.values()), axis=0)
        product /= product.sum(axis=-1, keepdims=True)
        np.testing.assert_allclose(combined, product, atol=tolerance)


def test_convolutional_attention_is_found_behind_a_layer_add_and_in_a_model_within_a_model():
    image = keras.Input((4, 4, 3))
    x = keras.layers.Dense(4)(keras.layers.Reshape((16, 3))(image))
    logits = kh.layers.ConvolutionalAttention(2, name="near")(x)
    logits = keras.layers.Add()([logits, kh.layers.RelativePositionBias((4, 4), 2)(x)])
    x = kh.layers.MultiHeadSelfAttention(2, name="attention")(x, attention_bias=logits)
    # What reads the convolutional attention's result, not its logits, is not helped by it.
    x = kh.layers.MultiHeadSelfAttention(2, name="further")(x)
    inner = keras.Model(image, x, name="inner")
    images = photographs(3, 4, 4)
    direct = kh.explain.convolutional_attention_maps(inner, images)
    assert {name: list(parts) for name, parts in direct.items()} == {
        "attention": ["query_key", "convolutional", "position", "combined"]
    }
    nested = kh.explain.convolutional_attention_maps(
        keras.Sequential([keras.Input((4, 4, 3)), inner]), images
    )
    for part, values in nested["inner/attention"].items():
        np.testing.assert_allclose(values, direct["attention"][part], atol=1e-6)


@pytest.mark.parametrize("build", [tiny_vit, lambda: tiny_facerec(convolutional_attention=False)])
def test_a_model_without_convolutional_attention_is_told(build):
    with pytest.raises(ValueError, match="no attention layer that a ConvolutionalAttention helps"):
        kh.explain.convolutional_attention_maps(build(), photographs())


@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (tiny_facerec, (3, 4, 16, 16)),
        (tiny_facerec_small, (3, 2, 16, 16)),
        (tiny_vit, (3, 2, 17, 17)),
        (tiny_cct, (3, 2, 64, 64)),
    ],
)
def test_rows_of_every_family_sum_to_one(build, shape):
    for scores in kh.explain.attention_maps(build(), photographs(3)).values():
        assert scores.shape == shape
        assert scores.dtype == np.float32
        np.testing.assert_allclose(scores.sum(axis=-1), 1, atol=1e-5)


def test_strided_keys_are_fewer_than_queries_and_have_no_rollout():
    """8 × 8 tokens look at 4 × 4, then a class token and 4 × 4 at a class token and 2 × 2."""
    model, images = tiny_cvt(), photographs(3)
    maps = kh.explain.attention_maps(model, images)
    shapes = {name: scores.shape for name, scores in maps.items()}
    assert shapes == {
        "stage0_block0_attention": (3, 1, 64, 16),
        "stage1_block0_attention": (3, 2, 17, 5),
    }
    for scores in maps.values():
        np.testing.assert_allclose(scores.sum(axis=-1), 1, atol=1e-5)
    with pytest.raises(ValueError, match=r"same tokens.*\(64, 16\)"):
        kh.explain.attention_rollout(model, images)
    with pytest.raises(ValueError, match=r"same tokens.*\(65, 17\)"):
        kh.explain.attention_rollout(tiny_cvt(stages=1), images)


def test_batch_size_does_not_change_the_maps():
    model, images = tiny_vit(), photographs(3)
    one = kh.explain.attention_maps(model, images, batch_size=1)
    all_at_once = kh.explain.attention_maps(model, images)
    for name in one:
        np.testing.assert_allclose(one[name], all_at_once[name], atol=1e-5)


def test_dropout_does_not_reach_the_maps():
    model, images = tiny_vit(attention_dropout=0.9), photographs()
    first, second = (kh.explain.attention_maps(model, images)["block1_attention"] for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert first.min() > 0


def test_mixed_precision_maps_are_float32_and_close_to_float32s():
    images = photographs()
    plain = kh.explain.attention_maps(tiny_vit(), images)
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = tiny_vit()
    finally:
        keras.config.set_dtype_policy(before)
    mixed = kh.explain.attention_maps(model, images)
    for name, scores in mixed.items():
        assert scores.dtype == np.float32
        np.testing.assert_allclose(scores.sum(axis=-1), 1, atol=2e-2)
        np.testing.assert_allclose(scores, plain[name], atol=0.1)


def test_a_model_within_a_model_is_seen():
    inner = tiny_vit(include_top=False, pooling="native", name="inner")
    images = photographs()
    outer = keras.Sequential([keras.Input((32, 32, 3)), inner, keras.layers.Dense(2)])
    nested = kh.explain.attention_maps(outer, images)
    direct = kh.explain.attention_maps(inner, images)
    assert list(nested) == [f"inner/{name}" for name in direct]
    np.testing.assert_allclose(nested["inner/block0_attention"], direct["block0_attention"])


def test_a_layer_called_twice_gives_both_maps():
    layer = kh.layers.MultiHeadSelfAttention(2, name="shared")
    image = keras.Input((4, 4, 3))
    x = layer(layer(keras.layers.Dense(4)(keras.layers.Reshape((16, 3))(image))))
    maps = kh.explain.attention_maps(keras.Model(image, x), photographs(3, 4, 4), batch_size=2)
    assert {name: m.shape for name, m in maps.items()} == {
        "shared": (3, 2, 16, 16),
        "shared:1": (3, 2, 16, 16),
    }


def test_the_model_is_left_as_it_was():
    model, images = tiny_facerec(), photographs()
    before = model.predict(images, verbose=0)
    kh.explain.attention_maps(model, images)
    assert all("call" not in vars(layer) for layer in model.layers)
    np.testing.assert_array_equal(model.predict(images, verbose=0), before)


def test_rollout_is_the_product_of_half_attention_half_identity():
    model, images = tiny_facerec(), photographs()
    first, second = (
        0.5 * scores.mean(axis=1) + 0.5 * np.eye(16)
        for scores in kh.explain.attention_maps(model, images).values()
    )
    rollout = kh.explain.attention_rollout(model, images)
    assert rollout.dtype == np.float32
    np.testing.assert_allclose(rollout, second @ first, atol=1e-5)
    np.testing.assert_allclose(rollout.sum(axis=-1), 1, atol=1e-5)


def test_token_weights_are_the_shares_that_sequence_pooling_takes():
    model, images = tiny_cct(), photographs()
    weights = kh.explain.token_weights(model, images)
    assert weights.shape == (2, 64)
    np.testing.assert_allclose(weights.sum(axis=-1), 1, atol=1e-5)
    tokens, embedding = keras.Model(
        model.inputs, [model.get_layer("norm").output, model.get_layer("embedding").output]
    ).predict(images, verbose=0)
    np.testing.assert_allclose(
        np.einsum("nt,ntc->nc", weights, tokens), embedding, atol=1e-4, rtol=1e-3
    )


def test_what_a_model_lacks_is_said():
    model, images = tiny_vit(), photographs()
    with pytest.raises(ValueError, match="'vit' has no layer with token_weights"):
        kh.explain.token_weights(model, images)
    plain = keras.Sequential([keras.Input((32, 32, 3)), keras.layers.Flatten()], name="plain")
    with pytest.raises(ValueError, match="'plain' has no layer with attention_scores"):
        kh.explain.attention_rollout(plain, images)
    with pytest.raises(ValueError, match=r"images must have shape .* got \(32, 32, 3\)"):
        kh.explain.attention_maps(model, images[0])


def test_rollout_refuses_windows():
    model = kh.applications.Swin(
        input_shape=(SIZE, SIZE, 3), dim=8, depths=(2,), num_heads=(1,), window_size=4, classes=2
    )
    with pytest.raises(ValueError, match="attends within windows"):
        kh.explain.attention_rollout(model, photographs())


def test_rollout_refuses_layers_with_different_tokens():
    image = keras.Input((4, 4, 3))
    x = keras.layers.Dense(4)(keras.layers.Reshape((16, 3))(image))
    x = kh.layers.MultiHeadSelfAttention(2)(x)
    x = kh.layers.MultiHeadSelfAttention(2)(keras.layers.Reshape((8, 8))(x))
    with pytest.raises(ValueError, match="same tokens"):
        kh.explain.attention_rollout(keras.Model(image, x), photographs(1, 4, 4))


def vit_lite(name, **arguments):
    arguments = {"dim": 16, "depth": 2, "num_heads": 2, "classes": 5, **arguments}
    return spread(kh.applications.ViTLite(input_shape=(SIZE, SIZE, 3), name=name, **arguments))


def test_rollout_refuses_members_side_by_side():
    members = [vit_lite(name) for name in ("left", "right")]
    model = kh.applications.Ensemble(members=members, average="similarities", classes=5)
    with pytest.raises(
        ValueError,
        match=r"one after another.*'ensemble' nothing leads from "
        "'(left|right)_block._attention' to '(left|right)_block._attention'",
    ):
        kh.explain.attention_rollout(model, photographs())


def test_rollout_of_one_member_with_attention_is_its_own():
    member = vit_lite("vit")
    image = keras.Input((SIZE, SIZE, 3))
    cnn = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3)(image))
    model = kh.applications.Ensemble(
        members=[member, keras.Model(image, cnn)], average="similarities", classes=5
    )
    np.testing.assert_allclose(
        kh.explain.attention_rollout(model, photographs()),
        kh.explain.attention_rollout(member, photographs()),
        atol=1e-5,
    )


def test_rollout_looks_into_models_within_the_model():
    inner = vit_lite("inner", include_top=False, pooling="native")
    images = photographs()
    outer = keras.Sequential([keras.Input((SIZE, SIZE, 3)), inner, keras.layers.Dense(2)])
    expected = kh.explain.attention_rollout(inner, images)
    np.testing.assert_allclose(kh.explain.attention_rollout(outer, images), expected, atol=1e-6)

    other = vit_lite("other", include_top=False, pooling="native")
    image = keras.Input((SIZE, SIZE, 3))
    joined = keras.layers.Concatenate()([inner(image), other(image)])
    beside = keras.Model(image, keras.layers.Dense(2)(joined), name="pair")
    for model in (beside, keras.Sequential([image, beside])):
        with pytest.raises(
            ValueError, match=r"'pair' nothing leads from '(inner' to 'other|other' to 'inner)'"
        ):
            kh.explain.attention_rollout(model, images)


def test_rollout_of_a_layer_called_twice_needs_one_call_behind_the_other():
    layer = kh.layers.MultiHeadSelfAttention(2, name="shared")
    image = keras.Input((4, 4, 3))
    tokens = keras.layers.Dense(4)(keras.layers.Reshape((16, 3))(image))
    in_turn = keras.Model(image, layer(layer(tokens)))
    assert kh.explain.attention_rollout(in_turn, photographs(1, 4, 4)).shape == (1, 16, 16)
    both = keras.Model(image, keras.layers.Add()([layer(tokens), layer(2 * tokens)]))
    with pytest.raises(ValueError, match="from 'shared' to 'shared'"):
        kh.explain.attention_rollout(both, photographs(1, 4, 4))


def test_rollout_of_several_layers_needs_a_known_graph():
    class Subclassed(keras.Model):
        def __init__(self, depth):
            super().__init__(name="subclassed")
            self.attend = [kh.layers.MultiHeadSelfAttention(1) for _ in range(depth)]

        def call(self, images):
            tokens = keras.ops.reshape(images, (-1, 16, 3))
            for layer in self.attend:
                tokens = layer(tokens)
            return tokens

    images = photographs(1, 4, 4)
    one, two = Subclassed(1), Subclassed(2)
    for model in (one, two):
        model(images.astype("float32"))  # builds it
    assert kh.explain.attention_rollout(one, images).shape == (1, 16, 16)
    with pytest.raises(ValueError, match="the graph of model 'subclassed' is not known"):
        kh.explain.attention_rollout(two, images)
