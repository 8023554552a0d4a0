"""Figures: what is drawn is the data that was given, and can be read."""

import sys

import keras
import numpy as np
import pytest

import keras_hybrid as kh
from keras_hybrid.explain import plots
from tests.figures import assert_legible

pytest.importorskip("matplotlib")
pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "torch", reason="no model takes part: tested on PyTorch"
)


@pytest.fixture
def figures(monkeypatch):
    """Every figure that is saved."""
    seen, save = [], plots.save_figure

    def record(figure, path):
        seen.append(figure)
        return save(figure, path)

    monkeypatch.setattr(plots, "save_figure", record)
    return seen


def faces(count=2, height=32, width=32):
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3)).astype("uint8")


def rows(*shape):
    values = np.random.default_rng(1).random(shape).astype("float32")
    return values / values.sum(axis=-1, keepdims=True)


def drawn(figure) -> list[tuple[str, np.ndarray]]:
    """Title and values of every panel, in order."""
    return [
        (axes.get_title(), axes.images[0].get_array().data)
        for axes in figure.axes
        if axes.images and axes.get_label() != "<colorbar>"
    ]


def test_grad_cam_has_a_row_for_each_image(figures, tmp_path):
    images = faces()
    cams = np.random.default_rng(2).random((2, 32, 32)).astype("float32")
    path = kh.explain.plot_grad_cam(
        images, cams, tmp_path / "new" / "cam.png", titles=["A", "of $5"]
    )
    assert path == tmp_path / "new" / "cam.png"
    panels = drawn(figures[0])
    assert [title for title, _ in panels] == [
        "A", "Grad-CAM", "seen through it", r"of \$5", "Grad-CAM", "seen through it",
    ]  # fmt: skip
    for i in range(2):
        photo, cam, through = (values for _, values in panels[3 * i : 3 * i + 3])
        np.testing.assert_array_equal(photo, images[i])
        np.testing.assert_array_equal(cam, cams[i])
        share = through[images[i] > 100] / images[i][images[i] > 100]
        expected = 0.25 + 0.75 * np.repeat(cams[i][..., None], 3, -1)[images[i] > 100]
        np.testing.assert_allclose(share, expected, atol=0.006)
    maps = [a.images[0] for a in figures[0].axes if a.get_title() == "Grad-CAM"]
    assert all(m.get_clim() == (0, 1) and m.get_cmap().name == "viridis" for m in maps)
    assert_legible(figures[0], path)


def test_a_map_of_zeros_is_drawn_too(figures, tmp_path):
    path = kh.explain.plot_grad_cam(faces(1), np.zeros((1, 32, 32)), tmp_path / "zero.svg")
    assert "<svg" in path.read_text()[:1000]
    assert figures[0].axes[1].images[0].get_clim() == (0, 1)


def test_token_weights_lie_on_the_images_grid_with_one_scale(figures, tmp_path):
    images, weights = faces(2, 32, 16), rows(2, 8)
    path = kh.explain.plot_token_weights(images, weights, tmp_path / "tokens.png")
    panels = drawn(figures[0])
    for i in range(2):
        np.testing.assert_array_equal(panels[3 * i + 1][1], weights[i].reshape(4, 2))
    maps = [a.images[0] for a in figures[0].axes if a.get_title() == "SeqPool's weights"]
    assert [m.get_clim() for m in maps] == [(0, pytest.approx(weights.max()))] * 2
    assert_legible(figures[0], path)


def test_attention_is_that_of_the_class_token_on_the_patches(figures, tmp_path):
    attention = rows(2, 3, 17, 17)
    path = kh.explain.plot_attention(faces(), attention, tmp_path / "attention.png")
    panels = drawn(figures[0])
    assert [title for title, _ in panels[:5]] == [
        "image", "mean of 3 heads", "head 1", "head 2", "head 3",
    ]  # fmt: skip
    patches = attention[:, :, 0, 1:].reshape(2, 3, 4, 4)
    np.testing.assert_allclose(panels[1][1], patches[0].mean(axis=0), atol=1e-6)
    np.testing.assert_array_equal(panels[9][1], patches[1, 2])
    assert "class token" in figures[0].texts[0].get_text()
    assert not figures[0].axes[0].patches
    assert_legible(figures[0], path)


def test_a_query_is_framed_where_it_is(figures, tmp_path):
    attention = rows(2, 2, 16, 16)
    path = kh.explain.plot_attention(faces(), attention, tmp_path / "a.png", query=[6, 0])
    panels = drawn(figures[0])
    np.testing.assert_array_equal(panels[2][1], attention[0, 0, 6].reshape(4, 4))
    np.testing.assert_array_equal(panels[6][1], attention[1, 0, 0].reshape(4, 4))
    frames = [a.patches[0].get_bbox().bounds for a in figures[0].axes if a.patches]
    assert frames == [(16, 8, 8, 8), (0, 0, 8, 8)]  # 6 is in row 1, column 2
    assert_legible(figures[0], path)


def test_rollout_without_class_token_is_the_mean_over_the_queries(figures, tmp_path):
    rollout = rows(2, 16, 16)
    path = kh.explain.plot_attention(faces(), rollout, tmp_path / "rollout.png")
    panels = drawn(figures[0])
    np.testing.assert_allclose(panels[1][1], rollout[0].mean(axis=0).reshape(4, 4), atol=1e-6)
    assert "average token" in figures[0].texts[0].get_text()
    assert_legible(figures[0], path)


def test_sixteen_heads_are_legible_on_a_page(figures, tmp_path):
    path = kh.explain.plot_attention(faces(1), rows(1, 16, 64, 64), tmp_path / "heads.png")
    assert len(drawn(figures[0])) == 18
    assert_legible(figures[0], path)


def test_parts_of_convolutional_attention_say_how_many_keys_they_look_at(figures, tmp_path):
    maps = {
        "query_key": np.full((2, 4, 16, 16), 1 / 16),
        "convolutional": np.tile(np.eye(16), (2, 4, 1, 1)),
        "combined": np.tile(np.eye(16), (2, 4, 1, 1)),
    }
    maps["convolutional"][:, 0] = np.eye(16)[::-1] / 2 + np.eye(16) / 2
    path = kh.explain.plot_convolutional_attention(faces(), maps, tmp_path / "parts.png", query=5)
    panels = drawn(figures[0])
    titles = [" ".join(title.split("\n")) for title, _ in panels[:4]]
    # Three heads look at one key, one at two: the mean of the heads, not that of a mean head.
    assert titles == [
        "image",
        "queries, keys 16 of 16 keys",
        "convolutional 1.25 of 16 keys",
        "all together 1 of 16 keys",
    ]
    expected = np.zeros(16)
    expected[[5, 10]] = 7 / 8, 1 / 8
    np.testing.assert_allclose(panels[2][1], expected.reshape(4, 4))
    assert_legible(figures[0], path)
    kh.explain.plot_convolutional_attention(faces(), maps, tmp_path / "head.png", query=5, head=0)
    assert "head 1" in figures[1].texts[0].get_text()
    np.testing.assert_allclose(drawn(figures[1])[2][1].reshape(-1)[[5, 10]], 0.5)


def test_projection_colours_seven_and_greys_the_rest(figures, tmp_path):
    points = np.random.default_rng(0).normal(size=(90, 2)).astype("float32")
    labels = np.repeat(np.arange(9), 10)
    projection = kh.explain.Projection(points, "pca", (0.5, 0.25))
    names = [f"person {i}" for i in range(9)]
    path = kh.explain.plot_projection(projection, labels, tmp_path / "pca.png", names)
    axes = figures[0].axes[0]
    others, *people = axes.collections
    np.testing.assert_array_equal(others.get_offsets(), points[labels >= 7])
    assert others.get_label() == "2 others"
    assert [p.get_label() for p in people] == names[:7]
    for i, person in enumerate(people):
        np.testing.assert_array_equal(person.get_offsets(), points[labels == i])
    assert len({tuple(p.get_paths()[0].vertices.ravel()) for p in people}) == 7  # markers
    assert "50%" in axes.get_xlabel() and "25%" in axes.get_ylabel()
    assert_legible(figures[0], path)
    tsne = kh.explain.Projection(points, "tsne")
    path = kh.explain.plot_projection(tsne, labels, tmp_path / "tsne.png", highlight=[8])
    assert [c.get_label() for c in figures[1].axes[0].collections] == ["8 others", "8"]
    assert "mean nothing" in figures[1].axes[0].get_xlabel()
    assert_legible(figures[1], path)


def test_confused_pairs_show_the_two_images_side_by_side(figures, tmp_path):
    images = faces(8)
    pairs = [
        kh.explain.ConfusedPair(0, 1, 0.9, 3, 6),
        kh.explain.ConfusedPair(1, 2, 0.8, 7, 0),
        kh.explain.ConfusedPair(0, 2, 0.7, 2, 1),
        kh.explain.ConfusedPair(0, 3, 0.6, 2, 5),
    ]
    names = {0: "Anna", 1: "Berta", 2: "Cäcilie von und zu Dornburg", 3: "D$"}
    path = kh.explain.plot_confused_pairs(images, pairs, tmp_path / "pairs.png", names)
    panels = drawn(figures[0])
    assert [title for title, _ in panels[:4]] == ["Anna", "Berta", "Berta", "Cäcilie von un…"]
    for (_, values), number in zip(panels, (3, 6, 7, 0, 2, 1, 2, 5), strict=True):
        np.testing.assert_array_equal(values, images[number])
    assert [t.get_text() for t in figures[0].texts][1] == "2. cosine 0.800"
    assert_legible(figures[0], path)


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda p: kh.explain.plot_grad_cam(faces()[0], np.zeros((32, 32)), p), "images must have"),
        (lambda p: kh.explain.plot_grad_cam(faces(), np.zeros((2, 8, 8)), p), "cams must have"),
        (lambda p: kh.explain.plot_grad_cam(faces(), np.zeros((2, 32, 32)), p, ["a"]), "2 lines"),
        (lambda p: kh.explain.plot_token_weights(faces(), rows(3, 16), p), "weights must have"),
        (lambda p: kh.explain.plot_token_weights(faces(), rows(2, 15), p), "15 tokens are no grid"),
        (lambda p: kh.explain.plot_attention(faces(), rows(8, 2, 4, 4), p), "attention must have"),
        (lambda p: kh.explain.plot_attention(faces(), rows(2, 16, 16), p, 16), "query must be in"),
        (lambda p: kh.explain.plot_attention(faces(), rows(2, 16, 16), p, [1]), "each of the 2"),
        (lambda p: kh.explain.plot_attention(faces(), rows(2, 16, 16), p, "max"), "query must be"),
        (
            lambda p: kh.explain.plot_convolutional_attention(
                faces(), {"convolution": rows(2, 2, 16, 16)}, p
            ),
            "maps must hold some of query_key, convolutional",
        ),
        (
            lambda p: kh.explain.plot_convolutional_attention(
                faces(), {"combined": rows(2, 2, 16, 16)}, p, head=2
            ),
            r"head must be None or in \[0, 2\)",
        ),
        (
            lambda p: kh.explain.plot_projection(
                kh.explain.Projection(np.zeros((3, 3)), "pca", (1, 0, 0)), [0, 1, 2], p
            ),
            r"points \(n, 2\)",
        ),
        (
            lambda p: kh.explain.plot_projection(
                kh.explain.Projection(np.zeros((3, 2)), "pca", (1, 0)), [0, 1, 2], p, highlight=[9]
            ),
            "highlight must hold",
        ),
        (lambda p: kh.explain.plot_confused_pairs(faces(), [], p), "at least one pair"),
        (
            lambda p: kh.explain.plot_confused_pairs(
                faces(), [kh.explain.ConfusedPair(0, 1, 0.5, 0, 2)], p
            ),
            "up to number 2",
        ),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_written(draw, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        draw(tmp_path / "x.png")
    assert not list(tmp_path.iterdir())


def test_missing_matplotlib_names_the_extra(monkeypatch, tmp_path):
    for name in ("matplotlib.figure", "matplotlib.backends.backend_agg"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"keras-hybrid\[plot\]"):
        kh.explain.plot_token_weights(faces(), rows(2, 16), tmp_path / "x.png")
