import csv
import dataclasses

import keras
import numpy as np
import pytest

from tests.training.test_train import CLASSIFIER, TINY
from training import find_learning_rate
from training.find_learning_rate import Sweep, sweep

pytestmark = pytest.mark.any_backend


@pytest.mark.parametrize("recipe", [TINY, CLASSIFIER], ids=["margin", "classifier"])
def test_rates_rise_by_one_factor_and_the_suggestion_is_one_of_them(recipe):
    found = sweep(recipe, 1e-5, 10.0, 24)
    assert len(found.rates) == len(found.losses) == len(found.smoothed) <= 24
    assert found.rates[0] == pytest.approx(1e-5)
    np.testing.assert_allclose(np.diff(np.log(found.rates)), np.log(1e6) / 23, rtol=1e-6)
    assert np.isfinite(found.losses).all()
    assert found.suggestion in found.rates


def test_a_rate_of_nearly_nothing_leaves_the_loss_where_it_is():
    """Losses are those of single batches and not running means: they scatter without a trend."""
    found = sweep(TINY, 1e-12, 1e-10, 20)
    first, second = np.mean(found.losses[:10]), np.mean(found.losses[10:])
    assert abs(first - second) < 0.1 * first
    assert np.std(found.losses[10:]) > 0


def test_a_loss_that_is_lost_at_once_is_one_sentence():
    recipe = dataclasses.replace(TINY, optimizer="sgd", clip_norm=None)
    with pytest.raises(ValueError, match=r"after \d+ of 24 steps, which began at --low 1e\+30"):
        sweep(recipe, 1e30, 1e32, 24)


def test_arguments_that_do_not_exist_are_named_before_anything_is_read():
    recipe = dataclasses.replace(TINY, data="nowhere/", augmentation={"crop_padding": 4})
    with pytest.raises(ValueError, match="augmentation has crop_padding"):
        sweep(recipe, 1e-5, 10.0, 24)


@pytest.mark.skipif(keras.backend.backend() == "jax", reason="JAX has meshes")
def test_a_mesh_is_refused_where_there_is_none():
    with pytest.raises(ValueError, match="ClassParallel needs the JAX backend"):
        sweep(dataclasses.replace(TINY, mesh="data=2"), 1e-5, 10.0, 24)


def test_the_suggestion_is_where_the_loss_falls_fastest():
    rates = np.geomspace(1e-6, 1, 100)
    losses = 5 - 4 / (1 + np.exp(-4 * (np.log10(rates) + 3)))  # steepest at 1e-3
    found = Sweep(list(rates), list(losses), list(losses))
    assert found.suggestion == pytest.approx(1e-3, rel=0.2)


def test_a_loss_that_never_falls_has_no_suggestion():
    rising = [float(i) for i in range(40)]
    with pytest.raises(ValueError, match="does not fall"):
        _ = Sweep(list(np.geomspace(1e-6, 1, 40)), rising, rising).suggestion


def test_the_command_writes_the_curve(tmp_path, capsys):
    options = ["--model", TINY.model, "--data", TINY.data, "--image-size", "16"]
    options += ["--model-arguments", *(f"{k}={v}" for k, v in TINY.model_arguments.items())]
    options += ["--batch-size", "16", "--steps", "30", "--low", "1e-4", "--out", str(tmp_path)]
    assert find_learning_rate.main(["face_transformer", *options]) == 0
    assert "--learning-rate" in capsys.readouterr().out
    with (tmp_path / "learning_rates.csv").open(newline="") as file:
        assert float(next(csv.DictReader(file))["learning_rate"]) == pytest.approx(1e-4)
    assert (tmp_path / "learning_rates.png").stat().st_size > 1000


def test_an_empty_range_is_one_sentence_and_exit_status_1(tmp_path, capsys):
    status = find_learning_rate.main(["quickstart", "--low", "1", "--high", "0.1"])
    assert status == 1
    assert capsys.readouterr().err.startswith("error: Expected 0 < --low < --high")


def test_with_muon_the_matrices_rate_keeps_its_proportion(tmp_path, capsys, monkeypatch):
    found = find_learning_rate.Sweep([1e-4, 2e-4, 4e-4], [3.0, 2.0, 1.9], [3.0, 2.0, 1.9])
    monkeypatch.setattr(find_learning_rate, "sweep", lambda *arguments: found)
    options = ["--learning-rate", "1e-3", "--matrix-learning-rate", "0.02", "--optimizer", "muon"]
    assert find_learning_rate.main(["quickstart", *options, "--out", str(tmp_path)]) == 0
    rate = found.suggestion
    assert f"--learning-rate {rate:.2g} --matrix-learning-rate {20 * rate:.2g} " in (
        capsys.readouterr().out
    )
