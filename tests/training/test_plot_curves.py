import pathlib

import pytest

from training import plot_curves

pytestmark = pytest.mark.any_backend

pytest.importorskip("matplotlib")
LOG = "epoch,accuracy,loss,val_loss\n0,0.1,2.3,\n1,0.3,1.9,2.0\n"


def run(folder: pathlib.Path, log: str | bytes = LOG) -> str:
    folder.mkdir(parents=True)
    data = log if isinstance(log, bytes) else log.encode()
    (folder / "history.csv").write_bytes(data)
    return str(folder)


def test_runs_are_named_after_their_folders_or_labels_or_paths(tmp_path, capsys):
    runs = [run(tmp_path / "san" / name) for name in ("pairwise_0", "patchwise_0")]
    out = tmp_path / "curves.svg"
    assert plot_curves.main([*runs, "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"Written: {out}\n"
    drawing = out.read_text()
    assert "<!-- pairwise_0 -->" in drawing and "<!-- loss, training -->" in drawing
    labelled = [*runs, "--labels", "pairs", "patches", "--quantities", "loss"]
    assert plot_curves.main([*labelled, "--out", str(out)]) == 0
    drawing = out.read_text()
    assert "<!-- patches -->" in drawing and "accuracy" not in drawing
    other = run(tmp_path / "modern" / "pairwise_0")
    paths = [pathlib.Path(runs[0]), pathlib.Path(other) / "history.csv"]
    assert list(plot_curves.find_histories(paths, None)) == [str(path) for path in paths]


@pytest.mark.parametrize(
    ("log", "message"),
    [
        ("", "holds no curves"),
        ("epoch,accuracy,loss\n", "holds no curves"),
        (LOG + "2,0.4\n", "line 4: expected 4 values, got 2"),
        (LOG + "2,0.4,1.x,\n", "'1.x' in the column 'loss' is no number"),
        (b"epoch,loss\n0,\xff\n", "is not a CSV file"),
        ("epoch,accuracy\n0,0.5\n", "'broken' has not logged loss; it has accuracy"),
    ],
)
def test_a_broken_log_is_named(tmp_path, capsys, log, message):
    runs = [run(tmp_path / "whole"), run(tmp_path / "broken", log)]
    assert plot_curves.main([*runs, "--out", str(tmp_path / "curves.png")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and "broken" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["whole", "missing", "nowhere/log.csv"], "no missing/history.csv, nowhere/log.csv."),
        (["whole", "--labels", "a", "b"], "--labels must be 1 different names"),
        (["whole", "--quantities", "top5"], "has not logged top5"),
    ],
)
def test_what_is_missing_is_named(tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    run(tmp_path / "whole")
    (tmp_path / "missing").mkdir()
    assert plot_curves.main([*arguments, "--out", "curves.png"]) == 1
    assert message in capsys.readouterr().err
