"""What the benchmarks of startup, inference and scaling compute from what they measure."""

import numpy as np
import pytest

from benchmarks import inference, scaling, startup

pytestmark = pytest.mark.any_backend


def test_the_fit_finds_a_known_power_law():
    x = np.array([2.0, 4, 8, 16, 32])
    exponent, error, factor = scaling.fit_power_law(x, 3 * x**1.5)
    np.testing.assert_allclose((exponent, error, factor), (1.5, 0, 3), atol=1e-12)


def test_the_standard_error_is_that_of_least_squares():
    random = np.random.default_rng(0)
    x = np.geomspace(1, 100, 8)
    y = 2 * x**0.8 * np.exp(random.normal(0, 0.1, 8))
    exponent, error, factor = scaling.fit_power_law(x, y)
    (slope, offset), covariance = np.polyfit(np.log(x), np.log(y), 1, cov=True)
    np.testing.assert_allclose((exponent, np.log(factor)), (slope, offset))
    np.testing.assert_allclose(error, covariance[0, 0] ** 0.5)


@pytest.mark.parametrize(("exponent", "exceeds"), [(1.0, False), (1.09, False), (1.2, True)])
def test_growth_beyond_theory_is_flagged(exponent, exceeds):
    key = ("vit", "batch")
    values = np.array(scaling.CASES[key].values)
    found = scaling.row(key, "time", 5 * values**exponent)
    assert found["exceeds"] is exceeds
    assert found["exponent"] == found["last_exponent"] == round(exponent, 2)


def test_noise_widens_what_theory_allows():
    key = ("vit", "batch")
    noisy = 5 * np.array(scaling.CASES[key].values) ** 1.2 * [1, 2, 0.5, 1]
    assert scaling.row(key, "time", noisy)["exceeds"] is False


def test_every_column_of_scaling_is_filled_or_told_by_the_run():
    found = scaling.row(("nat", "tokens"), "memory", [1, 2, 3, 4])
    run = {"step", "steps", "repeats", "backend", "threads", "hardware", "commit", "command"}
    assert found.keys() | run == set(scaling.COLUMNS)


@pytest.mark.parametrize("measure", ["build", "first_step"])
@pytest.mark.parametrize(("peer_seconds", "met"), [(1.0, False), (1.9, False), (2.0, True)])
def test_a_model_meets_the_bar_by_the_median_of_processor_time(measure, peer_seconds, met):
    def measured(seconds, layers):
        return {measure: (2 * seconds, seconds), "layers": layers, "weights": 5, "parameters": 7}

    ours = [measured(seconds, 3) for seconds in (9.0, 2.0, 1.0)]
    row = startup.pair_row(measure, "resnet50", ours, [measured(peer_seconds, 4)])
    assert row["measure"] == measure
    assert row["bar_met"] is met and row["ratio"] == round(2 / peer_seconds, 3)
    assert (row["seconds"], row["cpu_seconds"], row["processes"]) == (4.0, 2.0, 3)
    assert (row["layers"], row["peer_layers"]) == (3, 4)
    assert row.keys() <= set(startup.COLUMNS)


def test_the_import_is_held_to_its_seconds_over_keras():
    processes = [{"keras": (9.0, 4.0), "keras_hybrid": (9.0, s)} for s in (0.1, 0.2, 0.5)]
    row = startup.import_row(processes)
    assert row["bar_met"] is True and row["ratio"] == 0.05
    assert startup.import_row(processes[1:])["bar_met"] is False
    assert row.keys() <= set(startup.COLUMNS)


def test_every_peer_of_startup_is_in_keras_applications():
    import keras

    import keras_hybrid as kh

    assert all(hasattr(keras.applications, peer) for peer, _ in startup.PAIRS.values())
    assert set(startup.PAIRS) <= set(kh.list_models())


def process(milliseconds, difference=1e-6):
    cells = {"1": [[2 * m, m] for m in milliseconds], "4": "needs 40 s, budget 30 s"}
    return {"difference": difference, "cells": cells}


def test_a_cell_of_inference_pools_the_processes_and_says_when_it_is_left_out():
    processes = [process([1, 2, 3]), process([4, 5], difference=2e-6)]
    row = inference.summarize(processes, 1)
    assert row["milliseconds"] == 6.0 and row["cpu_milliseconds"] == 3.0
    assert row["milliseconds_p90"] == pytest.approx(9.2)
    assert row["images_per_second"] == round(1e3 / 6, 1)
    assert row["calls"] == 5 and row["relative_difference"] == "2.0e-06"
    empty = inference.summarize(processes, 4)
    assert empty["left_out"] == "needs 40 s, budget 30 s" and "milliseconds" not in empty
    assert row.keys() | empty.keys() <= set(inference.COLUMNS)


def test_ratios_are_to_the_peer_in_the_same_cell():
    def cell(model, runtime, batch, **more):
        return {"model": model, "runtime": runtime, "backend": "", "batch": batch, **more}

    rows = [
        cell("facerec_small", "onnx", 1, cpu_milliseconds=3.0),
        cell("facerec_small", "litert", 1, cpu_milliseconds=3.0),
        cell("facerec_small", "onnx", 4, left_out="too long"),
        cell(inference.PEER, "onnx", 1, cpu_milliseconds=2.0),
        cell(inference.PEER, "litert", 1, cpu_milliseconds=6.0),
        cell(inference.PEER, "onnx", 4, cpu_milliseconds=9.0),
    ]
    ratios = [row.get("cpu_ratio") for row in inference.with_ratios(rows)]
    assert ratios == [1.5, 0.5, None, 1.0, 1.0, 1.0]
