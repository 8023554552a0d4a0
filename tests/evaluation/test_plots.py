import re
import sys

import numpy as np
import pytest

from keras_hybrid import evaluation
from keras_hybrid.evaluation import plots
from keras_hybrid.evaluation.plots import read_history
from tests.figures import assert_legible

pytestmark = pytest.mark.any_backend

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

HISTORY = {
    "accuracy": [0.1, 0.5, 0.7],
    "loss": [9.0, 4.0, 2.0],
    "val_loss": [8.0, 5.0, 4.0],
    "val_accuracy": [0.1, 0.4, 0.5],
    "learning_rate": [1e-3, 5e-4, 1e-4],
}


def verification_result(pairs=60, seed=0):
    rng = np.random.default_rng(seed)
    same = np.arange(pairs) % 2 == 0
    return evaluation.verify_scores(rng.normal(same * 0.4, 0.2), same)


def assert_is_a_drawing(path):
    data = path.read_bytes()
    assert data.startswith(PNG_SIGNATURE)
    image = pytest.importorskip("PIL.Image").open(path).convert("L")
    pixels = np.asarray(image)
    assert min(pixels.shape) > 300
    assert 0.005 < np.mean(pixels < 200) < 0.9


@pytest.fixture(autouse=True)
def _needs_matplotlib():
    pytest.importorskip("matplotlib")


def test_roc_plot(tmp_path):
    results = {f"model {seed}": verification_result(seed=seed) for seed in range(2)}
    path = evaluation.plot_roc(results, tmp_path / "new folder" / "roc.png")
    assert path == tmp_path / "new folder" / "roc.png"
    assert_is_a_drawing(path)


def test_roc_plot_of_a_perfect_model_and_of_nothing(tmp_path):
    perfect = evaluation.verify_scores([0.9, 0.1], [True, False], folds=1)
    assert_is_a_drawing(evaluation.plot_roc({"perfect": perfect}, tmp_path / "roc.png"))
    with pytest.raises(ValueError, match="empty"):
        evaluation.plot_roc({}, tmp_path / "none.png")


def test_roc_over_training_shows_the_first_and_the_last_of_many_stages(tmp_path):
    rng = np.random.default_rng(0)
    same = np.arange(400) % 2 == 0
    curves = {
        epoch: evaluation.roc_curve(rng.normal(same * 0.1 * epoch, 0.5), same)
        for epoch in range(2, 42, 2)
    }
    path = evaluation.plot_roc_over_training(curves, tmp_path / "roc_over_training.svg")
    drawn = [int(epoch) for epoch in re.findall(r"<!-- epoch (\d+)  \(AUC", path.read_text())]
    assert len(drawn) == 8 and drawn == sorted(drawn) and (drawn[0], drawn[-1]) == (2, 40)
    one = evaluation.plot_roc_over_training({7: curves[2]}, tmp_path / "roc_over_training.png")
    assert_is_a_drawing(one)
    with pytest.raises(ValueError, match="empty"):
        evaluation.plot_roc_over_training({}, tmp_path / "none.png")


def test_score_plot_also_of_collapsed_scores(tmp_path):
    assert_is_a_drawing(evaluation.plot_scores(verification_result(), tmp_path / "scores.png"))
    flat = evaluation.verify_scores([0.5] * 4, [1, 0, 1, 0], folds=1)
    assert_is_a_drawing(evaluation.plot_scores(flat, str(tmp_path / "flat.png")))


def test_history_plot_from_a_dict_and_a_csv_file(tmp_path):
    assert_is_a_drawing(evaluation.plot_history(HISTORY, tmp_path / "history.png"))
    table = tmp_path / "log.csv"
    table.write_text("epoch,accuracy,loss,val_loss\n0,0.1,9,8\n1,0.5,4,\n")
    assert_is_a_drawing(evaluation.plot_history(table, tmp_path / "csv.png"))


@pytest.fixture
def figures(monkeypatch):
    """The figures that are drawn, in place of files."""
    drawn = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: drawn.append(figure) or path)
    return drawn


def points(line):
    return list(zip(*(values.tolist() for values in line.get_data()), strict=True))


def test_epochs_without_validation_leave_no_gap_in_the_curve(figures, tmp_path):
    history = {"loss": [4.0, 3.0, 2.0, 1.0], "val_loss": [None, 3.5, None, 1.5]}
    evaluation.plot_history(history, tmp_path / "history.png")
    training, validation = figures[0].axes[0].lines
    assert points(training) == [(1, 4), (2, 3), (3, 2), (4, 1)]
    assert points(validation) == [(2, 3.5), (4, 1.5)]


@pytest.mark.parametrize("count", [6, 7])  # the last epoch may have had no validation
def test_a_shorter_curve_stands_where_validation_freq_put_it(count):
    epochs, panels = read_history({"loss": np.arange(count), "val_loss": [9.0, 8.0]})
    assert len(epochs) == count
    expected = [np.nan, np.nan, 9, np.nan, np.nan, 8, np.nan]
    np.testing.assert_array_equal(panels["loss"]["validation"], expected[:count])


@pytest.mark.parametrize(
    ("validated", "first"),
    [(1, 1), (4, 1), (2, 11)],  # every third to fifth epoch; no frequency; a continued run
)
def test_a_shorter_curve_of_unknown_epochs_is_refused(validated, first):
    history = {"loss": np.arange(5.0), "val_loss": np.ones(validated)}
    history["epoch"] = range(first, first + 5)
    message = f"'val_loss' has {validated} values for 5 epochs.*pad with None"
    with pytest.raises(ValueError, match=message):
        read_history(history)


def test_a_figure_without_a_suffix_is_where_the_path_says(tmp_path):
    path = evaluation.plot_history(HISTORY, tmp_path / "history")
    assert path == tmp_path / "history.png"
    assert_is_a_drawing(path)


def test_several_runs_have_a_line_each_in_every_panel(figures, tmp_path):
    table = tmp_path / "log.csv"
    table.write_text("epoch,loss,accuracy,rate,val_loss\n0,3,0.1,1,\n1,2,0.2,1,2.5\n")
    histories = {"one": HISTORY | {"rate": [1, 1, 1]}, "two": table}
    quantities = ("loss", "accuracy", "rate")
    evaluation.plot_histories(histories, tmp_path / "curves.png", quantities)
    (figure,) = figures
    drawn = {axes.get_title(): [points(line) for line in axes.lines] for axes in figure.axes}
    assert list(drawn) == [
        "loss, training", "loss, validation", "accuracy, training", "accuracy, validation", "rate",
    ]  # fmt: skip
    assert drawn["loss, training"] == [[(1, 9), (2, 4), (3, 2)], [(1, 3), (2, 2)]]
    assert drawn["loss, validation"] == [[(1, 8), (2, 5), (3, 4)], [(2, 2.5)]]
    assert drawn["accuracy, validation"] == [[(1, 0.1), (2, 0.4), (3, 0.5)]]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["one", "two"]
    styles = [(line.get_color(), line.get_linestyle()) for line in figure.axes[0].lines]
    assert len({color for color, _ in styles}) == len({style for _, style in styles}) == 2


def test_quantities_without_validation_stand_two_to_a_row(figures, tmp_path):
    history = {"pairs_accuracy": [0.5, 0.6], "pairs_xnorm": [9.0, 12.0], "rate": [1.0, 0.5]}
    evaluation.plot_histories({"one": history}, tmp_path / "a.png", list(history))
    evaluation.plot_histories({"one": history}, tmp_path / "b.png", ["rate"])
    places = [
        [(axes.get_title(), axes.get_subplotspec().rowspan.start) for axes in figure.axes]
        for figure in figures
    ]
    assert places == [[("pairs accuracy", 0), ("pairs xnorm", 0), ("rate", 1)], [("rate", 0)]]
    assert figures[0].axes[1].get_ylim()[0] > 5  # each quantity has its own scale


def test_a_run_that_diverges_leaves_the_others_legible(figures, tmp_path):
    diverged = HISTORY | {"val_loss": [8.0, 900.0, 5e10]}
    for history in (HISTORY, diverged):
        evaluation.plot_histories({"one": HISTORY, "two": history}, tmp_path / "curves.png")
    scales = [{axes.get_title(): axes.get_yscale() for axes in f.axes} for f in figures]
    assert set(scales[0].values()) == {"linear"}
    assert scales[1] == scales[0] | {"loss, validation": "log"}
    limits = [[axes.get_ylim() for axes in figure.axes] for figure in figures]
    assert limits[0][0] == limits[0][1] != limits[0][2] == limits[0][3]
    assert limits[1][0][1] < 10 < 5e10 < limits[1][1][1]


def test_several_runs_are_drawn_only_where_there_is_something(tmp_path):
    path = evaluation.plot_histories({"$a$": HISTORY, "b": HISTORY}, tmp_path / "curves.png")
    assert_is_a_drawing(path)
    with pytest.raises(ValueError, match="'a' has not logged top5; it has loss, accuracy"):
        evaluation.plot_histories({"a": HISTORY}, path, ["loss", "top5"])
    for histories, quantities in (({}, ["loss"]), ({"a": HISTORY}, [])):
        with pytest.raises(ValueError, match="must not be empty"):
            evaluation.plot_histories(histories, path, quantities)


def test_histories_are_sorted_into_panels(tmp_path):
    epochs, panels = read_history(HISTORY)
    assert epochs.tolist() == [1, 2, 3]
    assert list(panels) == ["loss", "accuracy", "learning_rate"]
    assert list(panels["loss"]) == ["training", "validation"]
    table = tmp_path / "log.csv"
    table.write_text("epoch,note,loss,val_loss\n3,x,9,8\n4,y,4,\n5,z,3,NA\n")
    epochs, panels = read_history(table)
    assert epochs.tolist() == [3, 4, 5]
    assert list(panels) == ["loss"]
    np.testing.assert_array_equal(panels["loss"]["validation"], [8, np.nan, np.nan])
    for empty in ({}, {"epoch": [0]}, {"note": ["x"]}):
        with pytest.raises(ValueError, match="no curves"):
            read_history(empty)


@pytest.mark.parametrize("classes", [2, 12, 50])
def test_confusion_plot(tmp_path, classes):
    matrix = np.eye(classes, dtype=int) * 5 + np.arange(classes)
    assert_is_a_drawing(evaluation.plot_confusion(matrix, tmp_path / "shares.png"))
    result = evaluation.classification_report(
        np.arange(classes), np.eye(classes), [f"${index}" for index in range(classes)]
    )
    path = evaluation.plot_confusion(result, tmp_path / "counts.png", normalize=False)
    assert_is_a_drawing(path)


def test_letters_that_no_font_has_are_said_once(tmp_path, monkeypatch, caplog, recwarn):
    monkeypatch.setattr(plots, "_MORE_FONTS", ())
    names = ["\u674e\u96f7", "Zo\u00eb"]  # two letters, and what every font has
    path = evaluation.plot_confusion(np.eye(2), tmp_path / "x.png", class_names=names)
    assert_is_a_drawing(path)
    assert not recwarn
    (record,) = caplog.records
    assert f"{path}: no font of this system has 2 of its letters" in record.getMessage()


def test_letters_of_other_scripts_are_drawn_where_a_font_has_them(tmp_path, caplog):
    from matplotlib.font_manager import get_font_names

    if not {*plots._MORE_FONTS[:3]} & {*get_font_names()}:
        pytest.skip("no font here has Chinese letters")
    names = ["\u674e\u96f7", "Zo\u00eb"]
    assert_is_a_drawing(evaluation.plot_confusion(np.eye(2), tmp_path / "x.png", class_names=names))
    assert plots.__name__ not in [record.name for record in caplog.records]


def test_confusion_plot_refuses_names_that_do_not_fit(tmp_path):
    with pytest.raises(ValueError, match="2 names"):
        evaluation.plot_confusion(np.eye(3), tmp_path / "x.png", class_names=["a", "b"])


def stages(count):
    return {epoch: verification_result(400, seed=epoch).roc for epoch in range(1, count + 1)}


def confusion(classes):
    names = [f"a class {index}" for index in range(classes)]
    labels = np.repeat(np.arange(classes), 40)
    scores = np.random.default_rng(0).random((len(labels), classes)) + np.eye(classes)[labels]
    return evaluation.classification_report(labels, scores, names)


RESULTS = {f"model {seed}": verification_result(seed=seed) for seed in range(4)}
VERIFIED = {
    name: {
        "pairs_accuracy": [0.5, 0.7, 0.8],
        "pairs_auc": [0.5, 0.8, 0.9],
        "pairs_xnorm": [9, 8, 7],
    }
    for name in ("ViT", "EfficientNet", "EfficientNet + ViT")
}
RUNS = {f"a run of some model {index}": HISTORY for index in range(4)}


@pytest.mark.parametrize(
    "draw",
    [
        lambda path: evaluation.plot_roc({"a": verification_result()}, path),
        lambda path: evaluation.plot_roc(RESULTS, path),
        lambda path: evaluation.plot_roc_over_training(stages(1), path),
        lambda path: evaluation.plot_roc_over_training(stages(20), path),
        lambda path: evaluation.plot_scores(verification_result(600), path),
        lambda path: evaluation.plot_history(HISTORY, path),
        lambda path: evaluation.plot_histories(RUNS, path),
        lambda path: evaluation.plot_histories(RUNS, path, ["loss"]),
        lambda path: evaluation.plot_histories(RUNS, path, ["learning_rate", "loss"]),
        lambda path: evaluation.plot_histories(VERIFIED, path, [*VERIFIED["ViT"]]),
        lambda path: evaluation.plot_confusion(confusion(10), path),
        lambda path: evaluation.plot_confusion(confusion(10), path, normalize=False),
    ],
)  # fmt: skip
def test_figures_can_be_read_in_print(draw, tmp_path, monkeypatch):
    seen, save = [], plots.save_figure

    def record(figure, path):
        seen.append(figure)
        return save(figure, path)

    monkeypatch.setattr(plots, "save_figure", record)
    path = draw(tmp_path / "figure.png")
    assert_legible(seen[0], path)


def test_missing_matplotlib_names_the_extra(tmp_path, monkeypatch):
    for module in ("matplotlib.figure", "matplotlib.backends.backend_agg"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"keras-hybrid\[plot\]"):
        evaluation.plot_history(HISTORY, tmp_path / "history.png")


def test_missing_pillow_names_the_extra(monkeypatch):
    from keras_hybrid.data.files import resize_image

    monkeypatch.setitem(sys.modules, "PIL", None)
    image = np.zeros((4, 4, 3), "uint8")
    assert resize_image(image, (4, 4)) is image
    with pytest.raises(ImportError, match=r"keras-hybrid\[face\]"):
        resize_image(image, (2, 2))
