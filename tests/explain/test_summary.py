"""One figure of all that a model gives for an image."""

import keras
import numpy as np
import pytest

import keras_hybrid as kh
from keras_hybrid.cli.arguments import EXPLANATIONS
from keras_hybrid.explain import panels, summary
from tests.cases import IMAGES, small_model
from tests.explain.models import (
    photographs,
    tiny_cct,
    tiny_cvt,
    tiny_facerec_small,
    tiny_vit,
)

pytestmark = pytest.mark.any_backend

pytest.importorskip("matplotlib")


@pytest.fixture
def lines(monkeypatch):
    """The panels of every figure, line by line, and its caption."""
    seen, draw = [], panels.draw

    def record(lines, caption):
        seen.append(([list(line) for line in lines], caption))
        return draw(lines, caption)

    monkeypatch.setattr(panels, "draw", record)
    return seen


def test_the_command_line_offers_every_method():
    assert EXPLANATIONS == summary.METHODS


def test_facerec_small_shows_everything_as_the_functions_return_it(lines, tmp_path):
    model, image = tiny_facerec_small(), photographs(1)[0]
    result = kh.explain.explain_image(model, image, tmp_path / "x.png")
    assert result.path.is_file() and result.notes == ()
    assert result.layers == {
        "grad-cam": ("stride08",),
        "tokens": (),
        "rollout": (),
        "convolutional": ("block0_attention",),
    }
    scores = model.predict(image[None], verbose=0)[0]
    assert (result.predicted, result.score_kind) == (scores.argmax(), "cosine")
    assert result.score == pytest.approx(scores.max(), abs=1e-5)
    panels = [panel for line in lines[0][0] for panel in line]
    maps = [panel for panel in panels if panel.label]
    batch = image[None]
    weights = kh.explain.token_weights(model, batch)[0]
    heaviest = weights.argmax()
    parts = kh.explain.convolutional_attention_maps(model, batch)["block0_attention"]
    expected = [
        kh.explain.grad_cam(model, batch)[0],
        weights.reshape(4, 4),
        kh.explain.attention_rollout(model, batch)[0, heaviest].reshape(4, 4),
        *(values[0, :, heaviest].mean(axis=0).reshape(4, 4) for values in parts.values()),
    ]
    assert len(maps) == len(expected) == 7
    for panel, values in zip(maps, expected, strict=True):
        np.testing.assert_allclose(panel.values, values, atol=1e-5)
    np.testing.assert_array_equal(panels[0].image, image)
    assert panels[0].mark == (*divmod(heaviest, 4), 4, 4)


def test_another_class_is_explained_and_named(lines, tmp_path):
    model, image = tiny_cct(), photographs(1)[0]
    best = int(model.predict(image[None], verbose=0).argmax())
    other = (best + 1) % 5
    names = [f"person {i}" for i in range(5)]
    result = kh.explain.explain_image(
        model, image, tmp_path / "x.pdf", "grad-cam", class_index=other, class_names=names
    )
    assert (result.predicted, result.explained, result.score_kind) == (best, other, "logit")
    ((photo, cam, _),) = lines[0][0]
    assert photo.title.startswith(f"person {best}\nlogit")
    assert f"Grad-CAM explains person {other}." in lines[0][1]
    expected = kh.explain.grad_cam(model, image[None], other)[0]
    np.testing.assert_allclose(cam.values, expected, atol=1e-5)


def test_a_class_tokens_heads_are_drawn_when_asked_for(lines, tmp_path):
    model, image = tiny_vit(), photographs(1)[0]
    result = kh.explain.explain_image(
        model, image, tmp_path / "x.png", "attention", layer="block0_attention"
    )
    assert result.layers == {"attention": ("block0_attention",)} and result.explained is None
    ((_, mean, first, second),) = lines[0][0]
    scores = kh.explain.attention_maps(model, image[None])["block0_attention"][0, :, 0, 1:]
    for panel, values in zip((mean, first, second), (scores.mean(0), *scores), strict=True):
        np.testing.assert_allclose(panel.values, values.reshape(4, 4), atol=1e-5)
    with pytest.raises(ValueError, match=r"named 'block7'\. There are block0_attention, block1"):
        kh.explain.explain_image(model, image, tmp_path / "y.png", "attention", layer="block7")


def test_where_there_is_no_rollout_the_last_layers_heads_stand_in(lines, tmp_path):
    result = kh.explain.explain_image(tiny_cvt(), photographs(1)[0], tmp_path / "x.png")
    assert result.layers == {
        "grad-cam": ("stage1_block0_norm1",),
        "attention": ("stage1_block0_attention",),
    }
    assert [note.split(":")[0] for note in result.notes] == ["tokens", "rollout", "convolutional"]


def test_branches_are_explained_one_by_one(lines, tmp_path):
    model = small_model("ensemble_*")
    result = kh.explain.explain_image(model, IMAGES[0], tmp_path / "x.png")
    layers = kh.explain.default_layers(model)
    assert len(layers) == 2
    assert result.layers["grad-cam"] == tuple(layers)
    titles = [panel.title for line in lines[0][0] for panel in line]
    assert [f"Grad-CAM\n{layer}" in titles for layer in layers] == [True, True]


def test_the_modules_of_resnet_fct_stand_side_by_side(lines, tmp_path):
    model = kh.create_model(
        "resnet50_fct", stem_channels=8, depths=(1, 1, 1, 1), widths=(4, 8, 8, 8), dim=16
    )
    image = photographs(1)[0]
    result = kh.explain.explain_image(model, image, tmp_path / "x.png", "grad-cam")
    assert result.layers == {"grad-cam": ("fct0", "fct1", "fct2")}
    chosen = ("fct2", "stride01")
    kh.explain.explain_image(model, image, tmp_path / "y.png", "grad-cam", layer=chosen)
    for (drawn, _), layers in zip(lines, (result.layers["grad-cam"], chosen), strict=True):
        (photo, *through), (empty, *maps) = drawn
        np.testing.assert_array_equal(photo.image, image)
        assert empty.image is None and empty.values is None
        for layer, seen, below in zip(layers, through, maps, strict=True):
            assert (seen.title, below.title) == (f"seen through\n{layer}", f"Grad-CAM\n{layer}")
            expected = kh.explain.grad_cam(model, image[None], result.predicted, layer=layer)[0]
            np.testing.assert_allclose(below.values, expected, atol=1e-5)
            np.testing.assert_array_equal(seen.values, below.values)


def test_rollout_of_members_side_by_side_becomes_a_note(lines, tmp_path):
    members = [tiny_vit(name=name) for name in ("left", "right")]
    model = kh.applications.Ensemble(members=members, average="similarities", classes=5)
    result = kh.explain.explain_image(model, photographs(1)[0], tmp_path / "x.png")
    assert "rollout" not in result.layers and len(result.layers["grad-cam"]) == 2
    (note,) = (note for note in result.notes if note.startswith("rollout: "))
    assert "one after another" in note
    with pytest.raises(ValueError, match="one after another"):
        kh.explain.explain_image(model, photographs(1)[0], tmp_path / "y.png", "rollout")


@pytest.mark.parametrize(
    ("build", "further_notes"),
    [
        (lambda: tiny_facerec_small(include_top=False, pooling="native"), ()),
        (lambda: kh.applications.embedding_model(tiny_facerec_small()), ()),
        (
            lambda: tiny_facerec_small(include_top=False, pooling="avg"),
            ("tokens: Model 'facerec_small' has no layer with token_weights.",),
        ),
    ],
    ids=["embedding", "unit_embedding", "mean"],
)
def test_an_embedder_has_no_class_to_explain(build, further_notes, tmp_path):
    model = build()
    image = photographs(1)[0]
    result = kh.explain.explain_image(model, image, tmp_path / "x.png")
    assert result.predicted is None and "grad-cam" not in result.layers
    assert "rollout" in result.layers
    assert result.notes == ("grad-cam: the model ends in no classes.", *further_notes)
    for arguments in ({"method": "grad-cam"}, {"class_index": 1}):
        with pytest.raises(ValueError, match="ends in no classes"):
            kh.explain.explain_image(model, image, tmp_path / "y.png", **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "lime"}, "method must be one of auto, grad-cam"),
        ({"method": "tokens", "layer": "norm"}, "leave layer='norm' out"),
        ({"layer": "norm7"}, "no layer named 'norm7'"),
        ({"method": "attention", "layer": ["a", "b"]}, r"draws one layer: got layer=\['a', 'b'\]"),
        ({"class_index": 9}, r"class_index must be in \[0, 5\), got 9"),
        ({"image": photographs(1)}, r"image must have shape \(height, width, channels\)"),
        ({"class_names": ["a"]}, "class_names must hold 5 names, got 1"),
        ({"image": photographs(1)[0] / 127.5 - 1}, r"input_range \[0, 255\], received .* in \[-"),
        ({"input_range": (1, -1)}, r"low < high, got \(1, -1\)"),
    ],
)
def test_wrong_arguments_are_named_and_nothing_written(arguments, message, tmp_path):
    arguments = {"image": photographs(1)[0], "path": tmp_path / "x.png", **arguments}
    with pytest.raises(ValueError, match=message):
        kh.explain.explain_image(tiny_cct(), **arguments)
    assert not list(tmp_path.iterdir())


def test_a_model_without_preprocessing_is_shown_what_it_takes_and_drawn_as_a_photograph(
    lines, tmp_path
):
    model = tiny_cct(include_preprocessing=False)
    image = photographs(1)[0].astype("float32")
    result = kh.explain.explain_image(
        model, image / 127.5 - 1, tmp_path / "x.png", input_range=(-1, 1)
    )
    assert result.score == pytest.approx(
        model.predict(image[None] / 127.5 - 1, verbose=0).max(), abs=1e-5
    )
    drawn = [panel.image for line in lines[0][0] for panel in line if panel.image is not None]
    assert len(drawn) > 2
    for picture in drawn:
        np.testing.assert_allclose(picture, image, atol=1e-3)


def test_a_model_with_nothing_to_show_says_why(tmp_path):
    image = keras.Input((8, 8, 3))
    flat = keras.layers.Dense(2, activation="softmax")(keras.layers.Flatten()(image))
    model = keras.Model(image, flat, name="flat")
    with pytest.raises(ValueError, match=r"'flat' gives nothing to show: grad-cam: .*rollout"):
        kh.explain.explain_image(model, photographs(1, 8, 8)[0], tmp_path / "x.png")
