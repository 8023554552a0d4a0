import concurrent.futures

import keras
import numpy as np
import pytest

from keras_hybrid.data import face_augmentation

OFF = {
    "flip": False,
    "shift": 0,
    "scale": 0,
    "rotation": 0,
    "jitter": 0,
    "grey": 0,
    "erasing": 0,
}


def pictures(count=6, height=20, width=24, seed=0):
    smooth = np.random.default_rng(seed).uniform(0, 255, (count, height // 4, width // 4, 3))
    return np.rint(smooth.repeat(4, axis=1).repeat(4, axis=2)).astype(np.uint8)


def test_result_is_uint8_that_does_not_wrap_around_and_leaves_the_input_alone():
    images = pictures()
    images[:, :10], images[:, 10:] = 0, 255
    before = images.copy()
    result = face_augmentation(**{**OFF, "jitter": 0.9})(images, seed=(0, 1, 2))
    assert result.shape == images.shape
    assert result.dtype == np.uint8
    # Brighter or darker, with more contrast or less: what was dark stays the darker.
    assert (result[:, :10] < result[:, 10:]).all()
    assert (result == 255).any()
    np.testing.assert_array_equal(images, before)


def test_same_seed_gives_the_same_pictures_and_another_seed_others():
    augment = face_augmentation()
    images = pictures()
    np.testing.assert_array_equal(augment(images, seed=(1, 2, 3)), augment(images, seed=(1, 2, 3)))
    assert not np.array_equal(augment(images, seed=(1, 2, 3)), augment(images, seed=(1, 2, 4)))
    assert not np.array_equal(augment(images, seed=7), face_augmentation(seed=5)(images, seed=7)), (
        "the object's own seed must matter"
    )


def test_the_result_is_the_same_on_every_backend_and_in_every_version():
    ramp = np.arange(2 * 8 * 8 * 3, dtype=np.int64).reshape(2, 8, 8, 3) * 37 % 256
    result = face_augmentation()(ramp.astype(np.uint8), seed=(1, 2))
    # 119.53421 and 177.82843 before they are rounded; 129.95317 is the mean of all before.
    assert (result[0, 3, 3, 1], result[1, 5, 2, 0]) == (120, 178)
    assert abs(result.mean() - 129.95317) < 0.05


def test_threads_do_not_disturb_each_other():
    augment = face_augmentation()
    images = pictures()
    expected = [augment(images, seed=(0, i)) for i in range(16)]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda i: augment(images, seed=(0, i)), range(16)))
    np.testing.assert_array_equal(got, expected)


def test_uint8_and_the_same_values_in_float32_give_the_same():
    augment = face_augmentation()
    images = pictures()
    np.testing.assert_array_equal(
        augment(images, seed=3), augment(images.astype(np.float32), seed=3)
    )


def test_all_off_changes_nothing():
    images = pictures()
    np.testing.assert_array_equal(face_augmentation(**OFF)(images, seed=1), images)


def test_flip_mirrors_about_half_of_the_images_exactly():
    images = pictures(200, 8, 8)
    result = face_augmentation(**{**OFF, "flip": True})(images, seed=1)
    mirrored = (result == images[:, :, ::-1]).all(axis=(1, 2, 3))
    assert (mirrored | (result == images).all(axis=(1, 2, 3))).all()
    assert 60 < mirrored.sum() < 140


def test_warp_agrees_with_keras_affine_transform_inside_the_image():
    images = pictures(8, 32, 32)
    augment = face_augmentation(**{**OFF, "flip": True, "shift": 0.1, "scale": 0.1, "rotation": 20})
    result = augment(images, seed=4)
    draws = np.random.default_rng([4]).random((8, 13), dtype=np.float32)
    matrices = augment._matrices(draws[:, :5], 32, 32)
    flat = np.concatenate([matrices.reshape(8, 6), np.zeros((8, 2))], axis=1).astype(np.float32)
    expected = keras.ops.convert_to_numpy(
        keras.ops.image.affine_transform(
            images.astype(np.float32), flat, interpolation="bilinear", fill_mode="constant"
        )
    )
    inside = keras.ops.convert_to_numpy(
        keras.ops.image.affine_transform(
            np.ones_like(images, np.float32), flat, interpolation="bilinear", fill_mode="constant"
        )
    )
    inside = inside > 0.9999
    assert inside.mean() > 0.6
    # Places are rounded to 1/64 pixel in each direction, results to whole numbers.
    assert np.abs(result - expected)[inside].max() < 2 * 255 / 64 + 0.5


def test_grey_makes_the_three_colours_equal():
    result = face_augmentation(**{**OFF, "grey": 1.0})(pictures(), seed=0)
    np.testing.assert_array_equal(result[..., 0], result[..., 1])
    np.testing.assert_array_equal(result[..., 0], result[..., 2])
    grey = pictures() @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(result[..., 0], grey, atol=0.51)


def test_erasing_replaces_one_rectangle_of_2_to_15_percent():
    images = np.full((50, 40, 40, 3), 300 // 2, np.uint8)
    result = face_augmentation(**{**OFF, "erasing": 1.0})(images, seed=0)
    changed = (result != 150).any(axis=-1)
    share = changed.mean(axis=(1, 2))
    assert (share > 0.01).all()
    assert (share < 0.17).all()
    for mask in changed:
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        box = (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)
        assert mask.sum() > 0.95 * box


def test_switching_one_off_leaves_the_draws_of_the_others():
    images = pictures()
    some = face_augmentation(**{**OFF, "flip": True})
    more = face_augmentation(**{**OFF, "flip": True, "grey": 1e-9})
    np.testing.assert_array_equal(some(images, seed=2), more(images, seed=2))


def test_images_of_any_size_work():
    for height, width in ((1, 1), (1, 5), (3, 7), (112, 112)):
        images = np.full((2, height, width, 3), 77, np.uint8)
        result = face_augmentation(**{**OFF, "rotation": 170, "shift": 1.0})(images, seed=0)
        np.testing.assert_array_equal(result, images)


@pytest.mark.parametrize(
    ("name", "value"), [("shift", -0.1), ("scale", 0.6), ("rotation", 181), ("grey", 1.5)]
)
def test_a_number_out_of_range_is_named(name, value):
    with pytest.raises(ValueError, match=name):
        face_augmentation(**{name: value})


def test_wrong_shapes_and_seeds_are_named():
    with pytest.raises(ValueError, match="images"):
        face_augmentation()(np.zeros((4, 8, 8, 1)), seed=0)
    with pytest.raises(ValueError, match="seed"):
        face_augmentation()(pictures(), seed=(0, -1))
