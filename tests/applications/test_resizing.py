"""Weights that go to a model of another input size."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_hybrid as kh
from tests.cases import FAMILIES, IMAGES, predict, relative_error, shared_model, small_model

# Layers that have a weight for each place of the map, which no interpolation can make.
FIXED_SIZE = {
    "facerec_[ms]*": ["embedding_projection"],
    "iresnet*": ["embedding_projection"],
    "kprpe_*": ["landmark_points", "feature_projection"],
    "mobilefacenet*": ["global_conv"],
}


def randomized(model: keras.Model, seed: int = 0) -> keras.Model:
    """Give a model weights that no other model has."""
    random = np.random.default_rng(seed)
    model.set_weights([random.uniform(0.1, 1, w.shape) for w in model.get_weights()])
    return model


def interpolated(table: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return a table (rows, columns, channels) at another size, by Pillow."""
    image = pytest.importorskip("PIL.Image")
    channels = [
        np.asarray(image.fromarray(channel).resize(size[::-1], image.Resampling.BICUBIC))
        for channel in np.moveaxis(table, -1, 0)
    ]
    return np.stack(channels, axis=-1)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.strip("_*"))
def test_every_family_goes_to_another_size_or_names_what_cannot(family):
    source, target = shared_model(family), randomized(small_model(family, input_shape=(32, 32, 3)))
    fixed = FIXED_SIZE.get(family, [])
    if fixed:
        before = target.get_weights()
        with pytest.raises(ValueError, match=f"{', '.join(fixed)}.*skip_mismatch=True"):
            kh.transfer_weights(source, target)
        for ours, theirs in zip(target.get_weights(), before, strict=True):
            np.testing.assert_array_equal(ours, theirs)
        with pytest.warns(UserWarning, match=", ".join(fixed)):
            kh.transfer_weights(source, target, skip_mismatch=True)
    else:
        kh.transfer_weights(source, target)
    for layer in target.layers:
        for ours, theirs in zip(layer.weights, source.get_layer(layer.name).weights, strict=True):
            if ours.shape == theirs.shape:
                is_equal = np.array_equal(*(ops.convert_to_numpy(v) for v in (ours, theirs)))
                assert is_equal != (layer.name in fixed)


def test_at_the_same_size_the_copy_answers_as_the_source(tmp_path):
    source, target = small_model("swin_*"), small_model("swin_*")
    kh.transfer_weights(randomized(source), target)
    assert relative_error(predict(target, IMAGES), predict(source, IMAGES)) <= 1e-6
    source.save(tmp_path / "source.keras")
    target = small_model("swin_*", include_top=False)
    kh.transfer_weights(tmp_path / "source.keras", target)
    features = keras.Model(source.input, source.get_layer(target.layers[-1].name).output)
    assert relative_error(predict(target, IMAGES), predict(features, IMAGES)) <= 1e-6


@pytest.mark.parametrize(
    ("old", "new"), [((16, 16), (48, 32)), ((48, 40), (24, 16)), ((32, 16), (16, 32))], ids=str
)
def test_position_embeddings_are_interpolated_and_the_class_token_kept(old, new):
    source, target = (small_model("vit_*", input_shape=(*size, 3)) for size in (old, new))
    kh.transfer_weights(randomized(source), target)
    theirs, ours = (
        ops.convert_to_numpy(model.get_layer("position_embedding").embedding)[0]
        for model in (source, target)
    )
    np.testing.assert_array_equal(ours[0], theirs[0])
    old, new = ((height // 8, width // 8) for height, width in (old, new))
    expected = interpolated(theirs[1:].reshape(*old, -1), new)
    np.testing.assert_allclose(ours[1:].reshape(expected.shape), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "arguments", "layer", "table", "old", "new"),
    [
        ("coatnet_*", {}, "stage1_block0_bias", "table", (3, 3), (15, 7)),
        ("facerec_[ms]*", {}, "block1_relative_position", "table", (3, 3), (15, 7)),
        ("swin_*", {"window_size": 4}, "stage1_block0_bias", "table", (3, 3), (7, 7)),
        ("botnet*", {}, "stage2_block0_attention", "height_table", (7, 1), (31, 1)),
        ("botnet*", {}, "stage2_block0_attention", "width_table", (7, 1), (15, 1)),
    ],
)
def test_tables_of_relative_positions_are_interpolated(family, arguments, layer, table, old, new):
    small, large = (
        small_model(family, include_top=False, input_shape=size, **arguments)
        for size in ((16, 16, 3), (64, 32, 3))
    )
    for source, target, sizes in ((small, large, (old, new)), (large, small, (new, old))):
        kh.transfer_weights(randomized(source), target)
        theirs, ours = (
            ops.convert_to_numpy(getattr(model.get_layer(layer), table))
            for model in (source, target)
        )
        expected = interpolated(theirs.reshape(*sizes[0], -1), sizes[1])
        np.testing.assert_allclose(ours.reshape(expected.shape), expected, atol=1e-5)


def test_what_belongs_to_another_architecture_is_named():
    source = shared_model("vit_*")
    with pytest.raises(ValueError, match=r": predictions\. Give"):
        kh.transfer_weights(source, small_model("vit_*", classes=5))
    with pytest.raises(ValueError, match=r"block2_norm1, block2_attention"):
        kh.transfer_weights(source, small_model("vit_*", depth=3))
    with pytest.raises(ValueError, match=r"class_token, position_embedding, predictions"):
        kh.transfer_weights(small_model("cvt_*"), small_model("vit_lite_*", classes=5))


def cct(size: int, **arguments) -> keras.Model:
    return small_model("cct_*", input_shape=(size, size, 3), num_convolutions=2, **arguments)


def test_another_normalisation_is_refused_and_the_source_s_can_be_built():
    """CCT's own is CIFAR-10's up to 64 pixels, ImageNet's above."""
    source, target = randomized(cct(48)), cct(96)
    before = target.get_weights()
    message = (
        r"'preprocessing' of model 'cct_.*' normalises images by pixel_mean=\[123.675, .*\] and "
        r"pixel_std=\[58.395, .*source 'cct_.*' are for pixel_mean=\[125.307, .*\] and "
        r"pixel_std=\[62.985, "
    )
    with pytest.raises(ValueError, match=f"{message}.*skip_mismatch=True"):
        kh.transfer_weights(source, target)
    for ours, theirs in zip(target.get_weights(), before, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    with pytest.warns(UserWarning, match=message):
        assert kh.transfer_weights(source, target, skip_mismatch=True) == []
    remedy = cct(96, pixel_mean=(125.307, 122.961, 113.8575), pixel_std=(62.985, 62.0925, 66.708))
    kh.transfer_weights(source, remedy)
    np.testing.assert_array_equal(remedy.get_weights()[0], source.get_weights()[0])


@pytest.mark.parametrize("family", ["*resnet50*", "mobilenet_v2*"])
def test_the_normalisation_of_keras_s_trunks_is_another(family):
    source, target = small_model(family, keras_trunk=True), small_model(family)
    with pytest.raises(ValueError, match=r"'preprocessing'.*keras_trunk"):
        kh.transfer_weights(source, target)
    kh.transfer_weights(source, small_model(family, keras_trunk=True))
    kh.transfer_weights(source, small_model(family, include_preprocessing=False))


def test_one_number_for_all_channels_is_the_same_normalisation():
    source, target = (
        small_model("efficientnet_*", pixel_mean=mean, pixel_std=std)
        for mean, std in ((127.5, 128.0), ((127.5,) * 3, (128.0,) * 3))
    )
    kh.transfer_weights(source, target)


@pytest.mark.parametrize("given", [{"pixel_mean": 127.5}, {"pixel_std": 127.5}], ids=str)
def test_half_a_normalisation_is_refused(given):
    with pytest.raises(ValueError, match=r"pixel_mean and pixel_std must be given together"):
        cct(16, **given)


def test_positions_on_a_grid_that_nothing_tells_are_copied_or_named():
    def model(tokens):
        inputs = keras.Input((tokens, 4))
        return keras.Model(inputs, kh.layers.LearnedPositionEmbedding(name="pos")(inputs))

    source, target = randomized(model(9)), model(9)
    kh.transfer_weights(source, target)
    np.testing.assert_array_equal(target.get_weights()[0], source.get_weights()[0])
    with pytest.raises(ValueError, match=r"cannot be interpolated.*: pos\."):
        kh.transfer_weights(source, model(16))


def spots(size: int, count: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Return smooth spots in one of four corners of an image, and which it is."""
    random = np.random.default_rng(0)
    labels = np.arange(count) % 4
    centers = np.stack([labels // 2, labels % 2], axis=-1) * 0.5 + 0.25
    centers = (centers + random.uniform(-0.1, 0.1, centers.shape))[:, :, np.newaxis]
    square = ((np.arange(size) + 0.5) / size - centers) ** 2
    spot = np.exp(-(square[:, 0, :, np.newaxis] + square[:, 1, np.newaxis, :]) / 0.05)
    return np.repeat(spot[..., np.newaxis], 3, axis=-1).astype("float32") * 255, labels


def test_a_learned_model_still_recognises_at_twice_the_size():
    """Which corner a spot is in cannot be told without the positions."""
    source, target = (
        small_model("vit_*", input_shape=(size, size, 3), patch_size=4, depth=1, classes=4)
        for size in (32, 64)
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    source.compile(keras.optimizers.Adam(1e-3), loss)
    source.fit(*spots(32), batch_size=16, epochs=60, verbose=0)
    kh.transfer_weights(source, target)

    def accuracy(model, size):
        images, labels = spots(size)
        return np.mean(predict(model, images).argmax(-1) == labels)

    assert accuracy(source, 32) == 1
    assert accuracy(target, 64) >= 0.95
    positions = target.get_layer("position_embedding")
    token, grid = np.split(positions.get_weights()[0], [1], axis=1)
    grid = grid.reshape(16, 16, -1).transpose(1, 0, 2).reshape(grid.shape)
    positions.set_weights([np.concatenate([token, grid], axis=1)])
    assert accuracy(target, 64) <= 0.5  # rows are columns now, and two corners change places


def test_double_precision_is_kept():
    former = keras.config.floatx()
    keras.config.set_floatx("float64")
    try:
        source, target = small_model("vit_p*"), small_model("vit_p*")
        kh.transfer_weights(source, target)
        for theirs, ours in zip(source.weights, target.weights, strict=True):
            np.testing.assert_array_equal(ops.convert_to_numpy(theirs), ops.convert_to_numpy(ours))
    finally:
        keras.config.set_floatx(former)
