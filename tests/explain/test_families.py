"""Every family of the registry, as far as it can be explained, and what the page says of it."""

import pathlib
import re

import numpy as np
import pytest

import keras_hybrid as kh
from tests import cases

pytestmark = pytest.mark.any_backend

PAGE = pathlib.Path(__file__).resolve().parents[2] / "docs" / "explain.md"

# What the page calls the families that `cases.SMALL` has a pattern for.
NAMES = {
    "ATC": "atc_*",
    "Astroformer": "astroformer_*",
    "BoTNet": "botnet*",
    "CCT": "cct_*",
    "CoAtNet": "coatnet_*",
    "ConViT": "convit_*",
    "Conformer": "conformer_*",
    "CvT": "cvt_[12]*",
    "EfficientNet": "efficientnet_*",
    "EfficientNet before a Face Transformer": "efficientvit_*",
    "Face Transformer": "vit_p*",
    "FaceRec": "facerec*",
    "FaceRec-small": "facerec_[ms]*",
    "KP-RPE": "kprpe_*",
    "MobileFaceNet": "mobilefacenet*",
    "MobileNetV2": "mobilenet_v2*",
    "NAT": "nat_*",
    "ResNet": "*resnet50*",
    "ResNet-FCT": "resnet50_fct*",
    "SAN": "san*",
    "Swin": "swin_*",
    "ViT": "vit_*",
    "ViT-Lite": "vit_lite_*",
    "compact CvT": "cvt_*",
    "ensemble": "ensemble_*",
    "iResNet": "iresnet*",
    "late fusion": "late_fusion_*",
}
WITHOUT_MAPS = {
    *("*resnet50*", "efficientnet_*", "iresnet*", "mobilefacenet*", "mobilenet_v2*"),
    *("nat_*", "san*"),  # attend to neighbours alone
}


@pytest.mark.parametrize("family", cases.SMALL)
def test_attention_maps_have_a_row_for_each_query_that_sums_to_one(family):
    model, images = cases.shared_model(family), cases.IMAGES[:2]
    if family in WITHOUT_MAPS:
        with pytest.raises(ValueError, match="has no layer with attention_scores"):
            kh.explain.attention_maps(model, images)
        return
    for name, scores in kh.explain.attention_maps(model, images).items():
        assert scores.ndim == 4 and scores.dtype == np.float32, name
        assert len(scores) % len(images) == 0  # Swin's have a map for each window
        assert scores.min() >= 0
        np.testing.assert_allclose(scores.sum(axis=-1), 1, atol=1e-5)
        assert np.ptp(scores, axis=(0, 2, 3)).max() > 1e-6, name  # not the same everywhere


def rows_of_the_page() -> dict[str, str]:
    """What the page says of each family's layer, by its pattern."""
    section = PAGE.read_text().split("## Grad-CAM and its layer")[1].split("\n## ")[0]
    rows = {}
    for families, layer in re.findall(r"^\| (.+?) \| (.+) \|$", section, re.M)[1:]:
        for name in re.sub(r" \(.+?\)", "", families).split(", "):
            rows[NAMES[name]] = layer
    return rows


def test_the_page_names_every_family():
    assert set(rows_of_the_page()) == set(NAMES.values()) == set(cases.SMALL)


@pytest.mark.parametrize("family", cases.SMALL)
def test_the_layer_of_grad_cam_is_the_one_that_the_page_names(family):
    said = rows_of_the_page()[family]
    model = cases.shared_model(family)
    found = kh.explain.default_layers(model)
    ranks = [len(model.get_layer(name).output.shape) for name in found]
    if said.startswith("none alone"):
        assert len(found) > 1
        assert ("fct0" in said) == ("fct0" in found)
    elif said.startswith("`…_norm1`"):
        assert len(found) == 1 and found[0].endswith("_norm1")
    else:
        assert re.fullmatch(r"stride\d\d", found[0]) and len(found) == 1
        assert ranks == ([4] if "map" in said else [3])
