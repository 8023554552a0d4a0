import base64
import re
import sys
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import numpy as np
import pytest

from keras_hybrid import evaluation

# The smallest valid PNG: one white pixel.
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGP4DwABAQEANl9ngAAAAABJRU5ErkJggg=="
)
VOID = {"meta", "img", "br", "line", "circle", "polyline"}
NASTY = """<script>alert("x")</script> & 'quoted' """


class Page(HTMLParser):
    """Collects tags, attributes and text, and checks that tags are closed in order."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text, self.open = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.text.append(data)


def write(tmp_path, **changes):
    figure = tmp_path / "figure.png"
    figure.write_bytes(PNG)
    arguments = {
        "title": "FaceRec",
        "summary": {"LFW": ("91.00 ± 1.20 %", "View 2"), "Parameters": 1_940_000},
        "history": {"loss": [3.0, 2.0, np.nan, 1.0], "val_loss": [3.0, 2.5, 2.25, 2.125]},
        "tables": {
            "Verification": {"FaceRec": {"accuracy": 0.91, "AUC": 0.97}, "CCT": {"accuracy": 0.9}},
            "Classes": [{"name": "cat", "F1": None}, {"name": "dog", "F1": 0.5}],
            "Facts": {"pairs": 6000, "flip": True},
        },
        "figures": {"ROC curve": figure},
        "configuration": {"optimizer": {"name": "adamw", "learning_rate": 1e-3}, "batch_size": 64},
    } | changes
    path = evaluation.write_report(tmp_path / "report.html", **arguments)
    text = path.read_text(encoding="utf-8")
    return text, Page(text)


def test_report_shows_what_it_was_given(tmp_path):
    text, page = write(tmp_path)
    shown = " ".join(page.text)
    for expected in (
        "FaceRec", "91.00 ± 1.20 %", "View 2", "1,940,000", "Verification", "0.97", "dog", "6000",
        "yes", "ROC curve", "optimizer.learning_rate", "0.001", "loss", "2.125", "Python", "NumPy",
    ):  # fmt: skip
        assert expected in shown, expected
    assert base64.b64encode(PNG).decode() in text
    assert page.tags.count("polyline") == 2


def test_report_needs_nothing_from_anywhere(tmp_path):
    text, page = write(tmp_path)
    assert "script" not in page.tags
    assert "link" not in page.tags
    for name, value in page.attributes:
        if name in ("src", "href", "srcset", "xlink:href"):
            assert value.startswith("data:")
    assert not re.search(r"(https?:)?//[a-z]", text.split("<style>")[1].split("</style>")[0])
    assert "url(" not in text
    assert "@import" not in text
    assert "default-src 'none'" in text


def test_every_text_is_escaped(tmp_path):
    figure = tmp_path / "a.svg"
    figure.write_text("<svg xmlns='http://www.w3.org/2000/svg'><script/></svg>")
    text, page = write(
        tmp_path,
        title=NASTY,
        summary={NASTY: (NASTY, NASTY)},
        history={NASTY: [1.0, 2.0]},
        tables={NASTY: {NASTY: {NASTY: NASTY}}, "list": [{NASTY: NASTY}], "pairs": {NASTY: NASTY}},
        figures={NASTY: figure},
        configuration={NASTY: {NASTY: NASTY}},
        environment={NASTY: NASTY, "command": NASTY, "Date": NASTY},
    )
    assert "script" not in page.tags
    assert "<script" not in text
    assert NASTY.strip() in " ".join(page.text)


def test_curves_are_well_formed_svg_within_their_frame(tmp_path):
    for history in (
        {"loss": [5.0]},
        {"loss": [2.0, 2.0, 2.0]},
        {"loss": [1e-9, 3e-9], "val_loss": [np.nan, 1e-9]},
        {"loss": [-4.0, 1e6, 3.0], "learning_rate": [0.0, 1e-4, 1e-5]},
    ):
        text, _ = write(tmp_path, history=history)
        charts = re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)
        assert len(charts) == len({name.removeprefix("val_") for name in history})
        for chart in charts:
            root = ElementTree.fromstring(chart)
            _, _, width, height = map(float, root.get("viewBox").split())
            for circle in root.iter("circle"):
                assert 0 <= float(circle.get("cx")) <= width
                assert 0 <= float(circle.get("cy")) <= height
            for line in root.iter("polyline"):
                points = np.array([point.split(",") for point in line.get("points").split()], float)
                assert np.all(points >= 0)
                assert np.all(points <= [width, height])


def test_minimal_report_and_folder_path(tmp_path):
    path = evaluation.write_report(tmp_path, title="Only a title", summary={}, environment={})
    assert path == tmp_path / "report.html"
    page = Page(path.read_text(encoding="utf-8"))
    assert "section" not in page.tags


def test_bad_figures_and_tables_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"roc\.pdf"):
        write(tmp_path, figures={"ROC": "roc.pdf"})
    with pytest.raises(FileNotFoundError):
        write(tmp_path, figures={"ROC": tmp_path / "missing.png"})
    with pytest.raises(ValueError, match="Table 'T'"):
        write(tmp_path, tables={"T": [1, 2]})


def test_a_module_is_run_again_as_a_module(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/home/me/mypkg/train.py", "a b"])
    monkeypatch.setattr(sys, "orig_argv", ["/usr/bin/python3", "-m", "mypkg.train", "a b"])
    assert evaluation.environment()["command"] == "python -m mypkg.train 'a b'"


def test_environment_names_versions_backend_and_command():
    import keras

    facts = evaluation.environment()
    assert facts["Keras"] == keras.version()
    assert facts["Backend"].startswith(keras.backend.backend())
    assert facts["NumPy"] == np.__version__
    assert facts["command"].startswith("python")
    assert int(facts["Cores"]) >= 1
    assert all(isinstance(value, str) for value in facts.values())
