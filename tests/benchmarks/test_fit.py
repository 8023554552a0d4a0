"""The benchmark of ``fit``: its peers are the zoo's models, its table has the columns it writes."""

import argparse
import csv

import keras
import pytest

from benchmarks import fit
from benchmarks.table import append_row

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "torch", reason="the peers are PyTorch's; one backend is enough"
)

ROWS = list(csv.DictReader((fit.ROOT / "benchmarks/results/fit.csv").open(newline="")))


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("facerec_small", 32),
        ("cct_7_3x1", 16),
        ("cvt_13_32", 32),
        ("vit_p8s8", 16),
        ("swin_tiny_32", 32),
    ],
)
def test_a_peer_computes_what_the_zoo_does(name, size):
    fit.check_outputs(name, argparse.Namespace(size=size))


def test_a_peer_that_computes_something_else_is_refused(monkeypatch):
    build = fit.zoo_model

    def other(name, size):
        model = build(name, size)
        model.get_layer("norm").epsilon = 1.0
        return model

    monkeypatch.setattr(fit, "zoo_model", other)
    with pytest.raises(RuntimeError, match="cct_7_3x1: model and peer differ by a relative"):
        fit.check_outputs("cct_7_3x1", argparse.Namespace(size=16))


@pytest.mark.parametrize("name", fit.KERAS)
def test_a_peer_of_keras_applications_is_as_large(name):
    fit.check_outputs(name, argparse.Namespace(size=32))


def test_a_peer_of_keras_applications_that_is_another_network_is_refused(monkeypatch):
    monkeypatch.setitem(fit.KERAS, "mobilenet_v2", "MobileNet")
    with pytest.raises(RuntimeError, match=r"parameters, keras\.applications has"):
        fit.check_outputs("mobilenet_v2", argparse.Namespace(size=32))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--models", "san10_pairwise"], "san10_pairwise has no peer; there are facerec_small"),
        (["--models", "resnet50", "--compile"], "the peer of resnet50 is not PyTorch's"),
        (["--steps", "2"], "--steps must be at least 3, got 2"),
        (["--clock", "process", "--threads", "2"], "one thread on a CPU"),
        (["--models", "cct_7_3x1", "--image-size", "64", "--peak-tflops", "1"], "at 32 pixels"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["fit.py", *options])
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    with pytest.raises(SystemExit):
        fit.main()
    assert message in capsys.readouterr().err


def test_rows_follow_from_their_seconds_and_have_the_table_s_columns():
    given = argparse.Namespace(
        batch=8, steps=5, size=32, compile=True, peak_tflops=0.05, backend="torch"
    )
    seconds = {
        "zoo": {"steps": 0.1, "epochs": 0.5, "files": 0.8, "input": 0.06},
        "peer": {"steps": 0.2, "epochs": 0.75},
        "compiled": {"epochs": 0.4},
    }
    row = fit._row("cct_7_3x1", given, seconds)
    assert set(row) <= set(fit.COLUMNS)
    assert (row["ratio"], row["compiled_ratio"], row["step_ratio"]) == (1.5, 0.8, 2.0)
    assert (row["images_per_second"], row["files_ratio"]) == (80, 0.62)
    # 1.18 G multiply-accumulates, 40 images forwards and backwards in half a second
    assert row["peak_share"] == pytest.approx(1.18e9 * 6 * 40 / 0.5 / 0.05e12, rel=0.01)


def test_the_figure_has_the_last_row_of_each_kind_and_each_peer(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    drawn = []
    monkeypatch.setattr(
        "matplotlib.axes.Axes.plot", lambda self, x, y, *a, label, **k: drawn.append((label, x))
    )
    monkeypatch.setattr("matplotlib.figure.Figure.legend", lambda *a, **k: None)
    table = tmp_path / "fit.csv"
    row = {"model": "cct_7_3x1", "peer": "own PyTorch", "image_size": 32}
    row |= {"device": "cpu", "backend": "torch"}
    for precision, ratio, compiled in [
        ("float32", 0.5, ""),
        ("float32", 0.9, 0.8),
        ("mixed_bfloat16", 1.1, ""),
    ]:
        more = {"precision": precision, "ratio": ratio, "compiled_ratio": compiled}
        append_row(table, fit.COLUMNS, row | more)
    fit.plot(table)
    assert drawn == [
        ("torch, cpu, float32", [0.9]),
        ("torch, cpu, float32, compiled", [0.8]),
        ("torch, cpu, mixed_bfloat16", [1.1]),
    ]
    assert table.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_the_table_holds_what_was_measured():
    assert ROWS and tuple(ROWS[0]) == fit.COLUMNS
    for row in ROWS:
        assert row["commit"] and row["hardware"] and row["command"].startswith("python ")
        ratio = float(row["images_per_second"]) / float(row["peer_images_per_second"])
        assert float(row["ratio"]) == pytest.approx(ratio, rel=0.05)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["model"])
def test_the_page_shows_every_row_of_the_table(row):
    columns = ("backend", "precision", "images_per_second", "peer_images_per_second")
    columns += ("ratio", "step_ratio", "files_ratio", "commit")
    cells = [f"`{row['model']}`", f"{row['batch']} × {row['image_size']}"]
    line = f"| {' | '.join([*cells, *(row[column] for column in columns)])} |"
    assert line in (fit.ROOT / "docs/performance.md").read_text().splitlines()
