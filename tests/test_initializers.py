"""Initial weights: distributed as they say, by Keras's fans, and the same on every backend."""

import statistics

import keras
import numpy as np
import pytest

import keras_hybrid as kh
from keras_hybrid import initializers
from keras_hybrid.initializers import RandomNormal, RandomUniform, VarianceScaling


def draw(initializer, shape, dtype=None) -> np.ndarray:
    return keras.ops.convert_to_numpy(initializer(shape, dtype=dtype))


def test_normal_numbers_have_a_normal_distribution():
    """Kolmogorov and Smirnov's distance; of a million draws it exceeds 0.002 once in 1,500."""
    values = np.sort(draw(RandomNormal(mean=0.5, stddev=0.02, seed=3), (1000, 1000)), axis=None)
    expected = statistics.NormalDist(0.5, 0.02)
    picked = np.arange(0, values.size, 997)
    cumulative = np.array([expected.cdf(value) for value in values[picked]])
    assert np.abs(cumulative - (picked + 0.5) / values.size).max() < 0.002
    assert values.mean() == pytest.approx(0.5, abs=1e-4)
    assert values.std() == pytest.approx(0.02, rel=0.003)
    assert np.abs(values - 0.5).max() > 4 * 0.02  # no cut at two standard deviations


def test_uniform_numbers_fill_their_interval():
    values = draw(RandomUniform(-0.25, 0.75, seed=3), (1000, 1000))
    counts, _ = np.histogram(values, bins=10, range=(-0.25, 0.75))
    assert counts.sum() == values.size
    np.testing.assert_allclose(counts, values.size / 10, rtol=0.02)


@pytest.mark.parametrize("distribution", ["uniform", "untruncated_normal", "truncated_normal"])
@pytest.mark.parametrize("mode", ["fan_in", "fan_out", "fan_avg"])
@pytest.mark.parametrize("shape", [(50_000,), (200, 300), (3, 3, 40, 200), (5, 3, 3, 20, 60)])
def test_the_variance_is_that_of_keras(shape, mode, distribution):
    arguments = {"scale": 2.0, "mode": mode, "distribution": distribution, "seed": 1}
    values = draw(VarianceScaling(**arguments), shape)
    expected = draw(keras.initializers.VarianceScaling(**arguments), shape)
    assert values.shape == expected.shape == shape
    assert values.std() == pytest.approx(expected.std(), rel=0.03)
    assert abs(values.mean()) < 0.03 * values.std()


def test_given_axes_are_those_of_keras():
    arguments = {"distribution": "uniform", "input_axes": [0], "output_axes": [1, 2], "seed": 1}
    values = draw(VarianceScaling(**arguments), (8, 300, 5))
    expected = draw(keras.initializers.VarianceScaling(**arguments), (8, 300, 5))
    np.testing.assert_array_equal(values, expected)


def test_numbers_do_not_depend_on_the_backend():
    """Derived here from NumPy alone."""
    values = draw(RandomUniform(0.0, 2.0, seed=7), (3, 4))
    bits = np.random.SFC64(np.random.SeedSequence([7, 3, 4]))
    expected = np.random.Generator(bits).random((3, 4), dtype="float32")
    np.testing.assert_array_equal(values, 2 * expected)
    levels = np.random.Generator(np.random.SFC64([7, 3, 4])).integers(
        2**16, size=12, dtype="uint16"
    )
    quantiles = [statistics.NormalDist().inv_cdf((level + 0.5) / 2**16) for level in levels]
    values = draw(RandomNormal(stddev=1.0, seed=7), (3, 4))
    np.testing.assert_allclose(values, np.reshape(quantiles, (3, 4)), rtol=2e-4)


@pytest.mark.parametrize(
    "initializer", [RandomNormal(), RandomUniform(), VarianceScaling(2.0, "fan_in", "uniform")]
)
def test_the_same_object_draws_the_same_and_a_clone_others(initializer):
    first = draw(initializer, (20, 30))
    np.testing.assert_array_equal(draw(initializer, (20, 30)), first)
    assert (draw(initializer.clone(), (20, 30)) != first).mean() > 0.9
    # Not the beginning of the same numbers, either.
    assert (draw(initializer, (30, 20)).flatten() != first.flatten()).mean() > 0.9


def test_keras_s_seed_decides():
    def kernel():
        keras.utils.set_random_seed(5)
        layer = keras.layers.Dense(4, kernel_initializer=RandomNormal())
        layer.build((None, 3))
        return keras.ops.convert_to_numpy(layer.kernel)

    np.testing.assert_array_equal(kernel(), kernel())


@pytest.mark.parametrize("seed", [-1, 0, 2**70])
def test_any_integer_is_a_seed(seed):
    first = draw(RandomNormal(seed=seed), (4, 5))
    np.testing.assert_array_equal(draw(RandomNormal(seed=seed), (4, 5)), first)


def test_a_seed_generator_gives_other_numbers_each_time():
    initializer = RandomNormal(seed=keras.random.SeedGenerator(1))
    assert (draw(initializer, (4, 5)) != draw(initializer, (4, 5))).all()


def test_large_tensors_are_drawn_by_the_backend(monkeypatch):
    monkeypatch.setattr(initializers, "LARGEST", 10)
    for ours, keras_s in (
        (RandomNormal(0.1, 0.5, seed=1), keras.initializers.RandomNormal(0.1, 0.5, seed=1)),
        (RandomUniform(0.1, 0.5, seed=1), keras.initializers.RandomUniform(0.1, 0.5, seed=1)),
    ):
        np.testing.assert_array_equal(draw(ours, (3, 4)), draw(keras_s, (3, 4)))
        assert (draw(ours, (2, 5)) != draw(keras_s, (2, 5))).all()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_a_dtype_is_the_tensor_s(dtype):
    if dtype == "float64" and keras.backend.backend() == "jax":
        pytest.skip("JAX has no float64 unless told")
    assert keras.backend.standardize_dtype(RandomNormal()((2, 3), dtype=dtype).dtype) == dtype
    assert draw(RandomUniform(), ()).shape == ()
    assert draw(VarianceScaling(), (0, 3)).shape == (0, 3)


def test_a_configuration_gives_the_same_initializer():
    for initializer in (
        RandomNormal(0.1, 0.2, seed=3),
        RandomUniform(0.1, 0.2, seed=3),
        VarianceScaling(3.0, "fan_out", "untruncated_normal", seed=3),
    ):
        config = keras.initializers.serialize(initializer)
        assert config["registered_name"] == f"keras_hybrid>{type(initializer).__name__}"
        twin = keras.initializers.deserialize(config)
        assert type(twin) is type(initializer) and twin.get_config() == initializer.get_config()
        np.testing.assert_array_equal(draw(twin, (3, 4)), draw(initializer, (3, 4)))


def test_arguments_are_checked_as_keras_does():
    with pytest.raises(ValueError, match="`scale` must be positive"):
        kh.initializers.VarianceScaling(-1.0)
