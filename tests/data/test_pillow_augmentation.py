import numpy as np
import pytest

import keras_hybrid as kh
from keras_hybrid.data import Batches, RandAugment, RandomResizedCrop, image_augmentation
from keras_hybrid.data.pillow_augmentation import _operations

pytestmark = pytest.mark.any_backend

Image = pytest.importorskip("PIL.Image")

NAMES = [
    *("auto_contrast", "equalize", "invert", "rotate", "posterize", "solarize", "solarize_add"),
    *("color", "contrast", "brightness", "sharpness", "shear_x", "shear_y", "shift_x", "shift_y"),
]
PHOTOGRAPHS = np.random.default_rng(0).integers(20, 200, (6, 16, 20, 3)).astype(np.uint8)
GREY = (128, 128, 128)


def operate(name, image, level, sign=1.0):
    """Run one of the operations."""
    moving = {"resample": int(Image.Resampling.BILINEAR), "fillcolor": GREY}
    operation = dict(zip(NAMES, _operations(), strict=True))[name]
    return np.asarray(operation(Image.fromarray(image), level, sign, moving)).astype(int)


def grey(image):
    return image @ np.array([0.299, 0.587, 0.114])


# Each operation once more in NumPy, from its definition.
def auto_contrast(x, level, sign):
    low, high = x.min((0, 1)), x.max((0, 1))
    return (x - low) * 255 / (high - low)


def posterize(x, level, sign):
    step = 2 ** (8 - (4 - int(4 * level)))
    return x // step * step


def solarize_add(x, level, sign):
    return np.where(x < 128, x + int(110 * level), x)


DEFINITIONS = {
    "auto_contrast": auto_contrast,
    "invert": lambda x, level, sign: 255 - x,
    "posterize": posterize,
    "solarize": lambda x, level, sign: np.where(x >= 256 - int(256 * level), 255 - x, x),
    "solarize_add": solarize_add,
    "color": lambda x, level, sign: (
        grey(x)[..., None] + (1 + sign * 0.9 * level) * (x - grey(x)[..., None])
    ),
    "contrast": lambda x, level, sign: (
        grey(x).mean() + (1 + sign * 0.9 * level) * (x - grey(x).mean())
    ),
    "brightness": lambda x, level, sign: x * (1 + sign * 0.9 * level),
}


@pytest.mark.parametrize("sign", [-1.0, 1.0])
@pytest.mark.parametrize("level", [0.0, 0.35, 0.9, 1.0])
@pytest.mark.parametrize("name", DEFINITIONS)
def test_colours_change_as_defined(name, level, sign):
    image = PHOTOGRAPHS[0]
    expected = np.clip(DEFINITIONS[name](image.astype(int), level, sign), 0, 255)
    # Pillow rounds the grey that it blends with, and the blend.
    tolerance = 2.5 if name in ("color", "contrast") else 1
    np.testing.assert_allclose(operate(name, image, level, sign), expected, atol=tolerance)


def test_equalizing_spreads_the_levels():
    image = np.repeat(np.arange(100, 120, dtype=np.uint8), 48).reshape(16, 20, 3)
    levels = np.unique(operate("equalize", image, 1.0))
    assert levels.min() == 0 and levels.max() == 255
    assert (
        len(levels) >= 15 and np.diff(levels).max() <= 18
    )  # twenty levels, 13 apart, were 1 apart


def test_sharpness_moves_away_from_or_towards_the_smoothed_image():
    image = np.full((9, 9, 3), 100, np.uint8)
    image[4, 4] = 120
    assert operate("sharpness", image, 1.0, 1.0)[4, 4, 0] > 120
    assert 100 < operate("sharpness", image, 1.0, -1.0)[4, 4, 0] < 120


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize(("name", "axis"), [("shift_x", 1), ("shift_y", 0)])
def test_shifts_are_of_the_side_and_fill_with_grey(name, axis, sign):
    image = PHOTOGRAPHS[0][:, :16]  # 16 × 16
    level = 4 / (0.45 * 16)  # four pixels
    expected = np.roll(image, -4 * sign, axis)
    border = [slice(None)] * 2
    border[axis] = slice(-4, None) if sign > 0 else slice(0, 4)
    expected[tuple(border)] = 128
    np.testing.assert_allclose(operate(name, image, level, sign), expected, atol=1)


def test_a_shear_moves_each_row_in_proportion():
    image = np.zeros((40, 40, 3), np.uint8)
    image[:, 10] = 255  # a vertical line
    for name, sheared in (("shear_x", image), ("shear_y", image.transpose(1, 0, 2))):
        result = operate(name, sheared, 1.0, 1.0)
        if name == "shear_y":
            result = result.transpose(1, 0, 2)
        rows = np.arange(4, 28)
        places = (result[rows, :14, 0] * np.arange(14)).sum(-1) / result[rows, :14, 0].sum(-1)
        slope = np.polyfit(rows, places, 1)[0]
        assert abs(slope + 0.3) < 0.02


def test_a_rotation_is_of_thirty_degrees_at_most():
    image = np.zeros((41, 41, 3), np.uint8)
    image[20, 20:] = 255  # from the centre to the right
    result = operate("rotate", image, 1.0, 1.0)[..., 0]
    result[result == 128] = 0  # what came in from outside
    rows, columns = np.nonzero(result[:, 24:36] > 60)
    angle = np.degrees(np.arctan2(20 - rows, columns + 4))
    assert abs(np.median(angle) - 30) < 3


def test_every_image_has_draws_of_its_own_fixed_by_the_seed():
    same = np.repeat(PHOTOGRAPHS[:1], 64, axis=0)
    augment = RandAugment()
    changed = augment(same, seed=(0, 1, 2))
    assert changed.dtype == np.uint8 and changed.shape == same.shape
    assert len(np.unique(changed.reshape(64, -1), axis=0)) > 30
    np.testing.assert_array_equal(augment(same, seed=(0, 1, 2)), changed)
    assert (augment(same, seed=(0, 1, 3)) != changed).any()
    assert (same == PHOTOGRAPHS[0]).all()  # the input is left alone


def test_about_a_quarter_stays_as_it_is_and_every_operation_occurs():
    image = PHOTOGRAPHS[:1]
    changed = RandAugment(magnitude=10, magnitude_std=0)(np.repeat(image, 4000, axis=0), seed=0)
    untouched = (changed == image).all((1, 2, 3)).mean()
    assert abs(untouched - 0.25) < 0.03  # two operations, each left out half of the time
    single = RandAugment(num_ops=1, magnitude=10, magnitude_std=0, probability=1)
    changed = single(np.repeat(image, 1500, axis=0), seed=0)
    seen = {array.tobytes() for array in changed}
    for name in NAMES:
        for sign in (-1.0, 1.0):
            assert operate(name, image[0], 1.0, sign).astype(np.uint8).tobytes() in seen, name


def test_no_operation_and_no_probability_change_nothing():
    for augment in (RandAugment(num_ops=0), RandAugment(probability=0)):
        np.testing.assert_array_equal(augment(PHOTOGRAPHS, seed=1), PHOTOGRAPHS)


def test_float_images_are_rounded_and_stay_float():
    images = PHOTOGRAPHS.astype("float32")
    for augment in (RandAugment(), RandomResizedCrop()):
        changed = augment(images + 0.2, seed=4)
        assert changed.dtype == np.float32
        np.testing.assert_array_equal(changed, augment(PHOTOGRAPHS, seed=4))


def test_a_crop_shows_a_part_of_the_given_size_anywhere_in_the_image():
    """On a ramp of brightness, the values at the edges tell which part was cut out."""
    x, y = np.meshgrid(np.arange(100), np.arange(80))
    ramp = np.stack([2 * x, 2 * y, 0 * x], axis=-1).astype(np.uint8)
    images = np.repeat(ramp[None], 500, axis=0)
    crops = RandomResizedCrop((0.2, 0.5))(images, seed=0).astype(float)
    left, right = crops[:, 40, 10, 0] / 2, crops[:, 40, -11, 0] / 2
    top, bottom = crops[:, 10, 50, 1] / 2, crops[:, -11, 50, 1] / 2
    widths, heights = (right - left) * 100 / 79, (bottom - top) * 80 / 59
    area, ratio = widths * heights / 8000, (widths / 100) / (heights / 80)
    assert 0.19 < area.min() < 0.23 and 0.47 < area.max() < 0.52
    assert abs(area.mean() - 0.35) < 0.02
    assert 0.72 < ratio.min() < 0.78 and 1.28 < ratio.max() < 1.38
    assert abs(np.log(ratio).mean()) < 0.03
    centre = (left + right) / 2 / 100, (top + bottom) / 2 / 80
    assert all(abs(c.mean() - 0.5) < 0.02 and c.std() > 0.08 for c in centre)


def test_the_whole_image_stays_as_it_is():
    whole = RandomResizedCrop((1, 1), (1, 1))
    np.testing.assert_array_equal(whole(PHOTOGRAPHS), PHOTOGRAPHS)


def test_an_empty_batch_stays_empty():
    for augment in (RandAugment(), RandomResizedCrop()):
        assert augment(PHOTOGRAPHS[:0]).shape == (0, 16, 20, 3)


def test_batches_take_them_and_image_augmentation_puts_them_first():
    labels = np.arange(6) % 3
    alone = Batches(PHOTOGRAPHS, labels, 6, shuffle=False, augment=RandAugment())
    np.testing.assert_array_equal(alone[0][0], RandAugment()(PHOTOGRAPHS, seed=(0, 0, 0)))
    augment = image_augmentation(16, flip=False, rand_augment=9, resized_crop=0.5)
    expected = RandAugment()(RandomResizedCrop((0.5, 1))(PHOTOGRAPHS, seed=3), seed=3)
    np.testing.assert_array_equal(np.asarray(augment(PHOTOGRAPHS, labels, seed=3)[0]), expected)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: RandAugment(magnitude=11), r"`magnitude` must lie in \[0, 10\], got 11"),
        (lambda: RandAugment(probability=-1), r"`probability` must lie in \[0, 1\], got -1"),
        (lambda: RandAugment(fill=(0, 0)), "`fill` must be a colour"),
        (lambda: RandomResizedCrop((0, 1)), "`scale` must rise within"),
        (lambda: RandomResizedCrop(ratio=(2, 1)), "`ratio` must rise"),
        (lambda: RandAugment()(PHOTOGRAPHS[0]), r"`images` must be .*got shape \(16, 20, 3\)"),
        (lambda: RandomResizedCrop()(PHOTOGRAPHS[..., :1]), "`images` must be"),
        (lambda: kh.data.image_augmentation(8, rand_augment=11), "`rand_augment` must lie in"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
