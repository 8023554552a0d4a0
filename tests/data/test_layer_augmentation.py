"""Keras's augmentation layers as a pure function of (images, labels, seed)."""

import pickle
import tracemalloc

import keras
import numpy as np
import pytest

from keras_hybrid.data import Batches, LayerAugmentation, image_augmentation
from keras_hybrid.data.layer_augmentation import one_hot

SEVERAL = {"crop_padding": 2, "rotation": 10, "erasing": 0.5, "mixup": 0.8, "cutmix": 1.0}


def arrays(pair):
    return tuple(keras.ops.convert_to_numpy(x) for x in pair)


def photographs(count=16, size=12):
    images = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    return images, np.arange(count) % 4


def test_same_seed_same_batch_and_another_seed_another():
    images, labels = photographs()
    augment = image_augmentation(12, 4, **SEVERAL)
    first, again, other = (
        arrays(augment(images, labels, seed=s)) for s in ((1, 2), (1, 2), (1, 3))
    )
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert np.abs(first[0] - other[0]).max() > 1
    assert first[0].dtype == first[1].dtype == np.float32
    assert first[0].shape == images.shape and first[1].shape == (16, 4)
    assert first[0].min() >= 0 and first[0].max() <= 255
    np.testing.assert_allclose(first[1].sum(-1), 1, atol=1e-5)


def test_another_object_gives_the_same_batches_whatever_was_called_before():
    images, labels = photographs()
    one, other = (image_augmentation(12, 4, **SEVERAL) for _ in range(2))
    for seed in range(3):
        one(images, labels, seed=seed)
    copy = pickle.loads(pickle.dumps(one))
    expected = arrays(other(images, labels, seed=9))
    for augment in (one, copy):
        for a, b in zip(expected, arrays(augment(images, labels, seed=9)), strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_batch_from_threads_is_the_batch_made_at_once():
    images, labels = photographs(24)
    augment = image_augmentation(12, 4, crop_padding=2, mixup=0.5, cutmix=0.5)
    plain = Batches(images, labels, 8, augment=augment, seed=3)
    ahead = Batches(images, labels, 8, augment=augment, seed=3, workers=3)
    for i in range(3):
        for a, b in zip(arrays(plain[i]), arrays(ahead[i]), strict=True):
            np.testing.assert_array_equal(a, b)
    again = Batches(images, labels, 8, augment=augment, seed=3, start_batch=2)
    np.testing.assert_array_equal(arrays(again[0])[0], arrays(plain[2])[0])


def test_crop_padding_moves_by_whole_pixels_and_every_shift_occurs():
    images = np.zeros((400, 12, 12, 3), np.uint8)
    images[:, 6, 6] = 255
    moved, labels = image_augmentation(12, flip=False, crop_padding=2)(images, np.arange(400))
    assert labels.dtype.kind == "i"  # without `classes` labels stay
    moved = keras.ops.convert_to_numpy(moved)
    assert set(np.unique(moved)) == {0.0, 255.0}
    places = np.argwhere(moved[..., 0])
    assert len(places) == 400
    shifts, counts = np.unique(places[:, 1:] - 6, axis=0, return_counts=True)
    assert {tuple(s) for s in shifts.tolist()} == {
        (a, b) for a in range(-2, 3) for b in range(-2, 3)
    }
    # 16 expected in each of 25 cells: eight standard deviations at most.
    assert np.abs(counts - 16).max() < 32


def test_mixup_blends_labels_as_it_blends_images():
    """Each class is a grey level of its own: the label's mean level is the image's."""
    labels = np.arange(32) % 4
    images = np.broadcast_to((labels * 60)[:, None, None, None], (32, 8, 8, 3)).astype(np.uint8)
    for kind in ("mixup", "cutmix"):
        mixed, soft = arrays(
            image_augmentation(8, 4, flip=False, **{kind: 1.0})(images, labels, seed=5)
        )
        assert (soft.max(-1) < 0.99).sum() > 8, kind
        level = soft @ (np.arange(4) * 60)
        # CutMix counts the pixels of a rectangle whose edges lie between pixels.
        tolerance = 0.01 if kind == "mixup" else 60
        np.testing.assert_allclose(mixed.mean((1, 2, 3)), level, atol=tolerance)
        if kind == "cutmix":
            assert all(len(np.unique(image)) <= 2 for image in mixed)


def test_one_of_the_mixing_layers_is_drawn_for_each_batch():
    labels = np.arange(16) % 4
    images = np.broadcast_to((labels * 60)[:, None, None, None], (16, 8, 8, 3)).astype(np.uint8)
    augment = image_augmentation(8, 4, flip=False, mixup=1.0, cutmix=1.0)
    levels = {0, 60, 120, 180}
    cut = [set(np.unique(arrays(augment(images, labels, seed=s))[0])) <= levels for s in range(12)]
    assert {True, False} == set(cut)


def test_mixing_ends_after_its_epochs():
    labels = np.arange(16) % 4
    images = np.broadcast_to((labels * 60)[:, None, None, None], (16, 8, 8, 3)).astype(np.uint8)
    augment = image_augmentation(8, 4, flip=False, mixup=1.0, mixing_epochs=2)
    for epoch in range(4):
        soft = arrays(augment(images, labels, seed=(0, epoch, 5)))[1]
        assert (soft.max(-1) < 1).any() == (epoch < 2), epoch
    with pytest.raises(ValueError, match=r"`mixing_epochs` needs a `seed` of three.*\[7\]"):
        augment(images, labels, seed=7)


# Keras's own layers, which are the same code on all backends.
slow_on_jax = pytest.mark.skipif(
    keras.backend.backend() == "jax", reason="compiles for half a minute"
)


@slow_on_jax
def test_rand_augment_and_the_crop_keep_the_range():
    images, labels = photographs(4)
    augment = image_augmentation(12, 4, rand_augment=9, resized_crop=0.5)
    changed, _ = arrays(augment(images, labels, seed=1))
    assert np.abs(changed - images).max() > 1
    assert changed.min() >= 0 and changed.max() <= 255


@pytest.mark.parametrize(("arguments", "axis"), [({}, 2), ({"flip_vertical": True}, 1)])
def test_half_of_the_images_are_mirrored_or_turned_upside_down(arguments, axis):
    images, labels = photographs(200)
    changed, _ = arrays(image_augmentation(12, flip=axis == 2, **arguments)(images, labels))
    mirrored = (changed == np.flip(images, axis)).all((1, 2, 3))
    np.testing.assert_array_equal(changed[~mirrored], images[~mirrored])
    assert abs(mirrored.sum() - 100) < 40  # more than five standard deviations


def spots(changed):
    """Light of each image, and where its centre is from the image's, in pixels: (row, column)."""
    light = changed[..., 0] / 255
    middle = (light.shape[1] - 1) / 2
    offsets = np.arange(light.shape[1]) - middle
    total = light.sum((1, 2))
    rows = (light.sum(2) * offsets).sum(1) / total
    columns = (light.sum(1) * offsets).sum(1) / total
    return total, np.stack([rows, columns], 1)


def spot(row, column, count=200, size=41, side=5):
    """White squares on black."""
    images = np.zeros((count, size, size, 3), np.uint8)
    half = side // 2
    images[:, row - half : row + half + 1, column - half : column + half + 1] = 255
    return images, np.zeros(count, int)


@slow_on_jax
def test_shifts_reach_their_share_of_the_side_in_all_directions():
    changed, _ = arrays(image_augmentation(41, flip=False, shift=0.2)(*spot(20, 20)))
    total, centres = spots(changed)
    np.testing.assert_allclose(total, 25, rtol=1e-3)
    for along in centres.T:
        assert np.abs(along).max() <= 0.2 * 41 + 0.01
        assert along.min() < -0.15 * 41 and along.max() > 0.15 * 41


@slow_on_jax
def test_changes_of_size_are_relative_and_about_the_middle():
    images = spot(20, 20, side=15)
    total, centres = spots(arrays(image_augmentation(41, flip=False, scale=0.2)(*images))[0])
    np.testing.assert_allclose(centres, 0, atol=0.05)
    sides = np.sqrt(total) / 15
    # Keras draws the change of the field of view: 1 / 1.2 to 1 / 0.8.
    assert 1 / 1.2 - 0.02 < sides.min() < 0.88 and 1.17 < sides.max() < 1 / 0.8 + 0.02


@slow_on_jax
def test_rotations_keep_the_distance_and_reach_their_angle_both_ways():
    changed, _ = arrays(image_augmentation(41, flip=False, rotation=30)(*spot(20, 32)))
    _, centres = spots(changed)
    np.testing.assert_allclose(np.hypot(*centres.T), 12, atol=0.3)
    angles = np.degrees(np.arctan2(*centres.T))
    assert np.abs(angles).max() < 31 and angles.min() < -24 and angles.max() > 24


@slow_on_jax
def test_jitter_reaches_its_share_of_brightness_contrast_and_saturation():
    augment = image_augmentation(8, flip=False, jitter=0.2)

    def jittered(*halves):
        images = np.zeros((400, 8, 8, 3), np.uint8)
        images[:, :4], images[:, 4:] = halves
        changed, _ = arrays(augment(images, np.zeros(400, int)))
        assert changed.min() >= 0 and changed.max() <= 255
        assert np.ptp(changed[:, :4], (1, 2)).max() < 1e-3  # each half stays one colour
        return changed[:, 0, 0], changed[:, 7, 0]

    colour, _ = jittered((150, 100, 100), (150, 100, 100))
    light, dark = jittered((160, 160, 160), (100, 100, 100))
    for changes in (
        (colour.max(1) - 150) / 255,  # brightness
        (colour.max(1) - colour.min(1)) / 50 - 1,  # saturation: contrast leaves one colour alone
        (light - dark)[:, 0] / 60 - 1,  # contrast: saturation leaves greys alone
    ):
        assert -0.201 < changes.min() < -0.17 and 0.17 < changes.max() < 0.201
    jittered((0, 200, 0), (250, 0, 10))  # which a larger saturation would take below zero


@slow_on_jax
def test_erasing_fills_a_rectangle_of_some_images():
    images = np.full((200, 16, 16, 3), 77, np.uint8)
    changed, _ = arrays(image_augmentation(16, flip=False, erasing=0.5)(images, np.arange(200)))
    erased = (changed != 77).any(-1)
    hit = erased.any((1, 2))
    assert abs(hit.sum() - 100) < 40
    for mask in erased[hit]:
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        assert mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()


def test_half_precision_policy_does_not_coarsen_images():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        augment = image_augmentation(12, 4, flip=True)
    finally:
        keras.config.set_dtype_policy("float32")
    images, labels = photographs()
    flipped, _ = arrays(augment(images, labels))
    assert flipped.dtype == np.float32
    for image, original in zip(flipped, images, strict=True):
        assert (image == original).all() or (image == original[:, ::-1]).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shift": 2}, "`shift` must lie in"),
        ({"rotation": 200}, "`rotation` must lie in"),
        ({"crop_padding": 13}, "`crop_padding` must lie in"),
        ({"erasing": -0.1}, "`erasing` must lie in"),
        ({"mixup": 0.2}, "`mixing` blends labels"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        image_augmentation(12, **arguments)


def test_layers_of_ones_own_keep_their_range():
    images, labels = photographs()
    scale = keras.layers.Rescaling(1 / 127.5, -1)

    class Scaled(keras.layers.Layer):
        def call(self, data, training=False):
            return {**data, "images": scale(data["images"])}

    found, _ = arrays(LayerAugmentation([Scaled()])(images, labels))
    np.testing.assert_allclose(found, images / 127.5 - 1, atol=1e-5)
    found, _ = arrays(LayerAugmentation([Scaled()], value_range=(0, 1))(images, labels))
    assert found.min() == 0 and found.max() == 1


def test_distributions_of_very_many_classes_take_the_memory_of_the_batch_alone():
    tracemalloc.start()
    masses = one_hot(np.array([5, 99_999, 5]), 100_000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1.1 * masses.nbytes + 1e4
    assert masses.sum() == 3 and masses[1, 99_999] == masses[0, 5] == masses[2, 5] == 1


def test_bad_calls_are_named():
    images, labels = photographs()
    augment = LayerAugmentation(classes=3)
    with pytest.raises(ValueError, match=r"`labels` must lie in \[0, 3\), got 0 to 3"):
        augment(images, labels)
    with pytest.raises(ValueError, match="`seed` must hold non-negative"):
        augment(images, labels, seed=-1)
