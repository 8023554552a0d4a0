"""Sizes for images of 32 × 32: their siblings for 224 × 224 with other tokens, and nothing else."""

import fnmatch

import keras
import pytest

import keras_hybrid as kh
from tests.cases import SMALL, family_of, without_weights

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "torch", reason="the same on every backend: tested on PyTorch"
)

# Name → shape of the features, and weights that have another shape than the sibling's, beside the
# classifier's: what cuts the image into tokens, and tables of positions.
SIZES = {
    "astroformer_0_32": ((2, 2, 768), {"stage3_block*_bias/*"}),
    "coatnet_0_32": ((2, 2, 768), {"stage[23]_block*_bias/*"}),
    "conformer_ti_32": ((1 + 8 * 8, 256 + 384), {"stem_conv/kernel"}),
    "convit_ti_32": ((1 + 8 * 8, 192), {"patch_embedding/kernel", "position_embedding/*"}),
    "cvt_13_32": ((1 + 2 * 2, 384), set()),
    "cvt_21_32": ((1 + 2 * 2, 384), set()),
    "nat_mini_32": ((2, 2, 512), {"stage*_neighborhood_attention/table"}),
    "swin_tiny_32": ((2, 2, 768), {"patch_embedding/kernel", "stage*_bias/*"}),
}
CLASSIFIER = "predictions/*"


def test_every_registered_size_is_here():
    assert set(kh.list_models("*_32")) == set(SIZES)


@pytest.mark.parametrize("name", SIZES)
def test_a_size_for_small_images_has_its_siblings_widths_and_depths(name):
    features, others = SIZES[name]
    with without_weights():
        small, sibling = kh.create_model(name), kh.create_model(name.removesuffix("_32"))
        headless = kh.create_model(name, include_top=False)
    assert kh.model_info(name).ours
    assert small.input_shape == (None, 32, 32, 3) and small.output_shape == (None, 100)
    assert headless.output_shape == (None, *features)
    ours, theirs = ({v.path: tuple(v.shape) for v in m.weights} for m in (small, sibling))
    assert list(ours) == list(theirs)
    different = {path for path in ours if ours[path] != theirs[path]}
    expected = {p for p in ours for q in {CLASSIFIER, *others} if fnmatch.fnmatch(p, q)}
    assert different == expected


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("coatnet_0", {"stem_stride": 4}, "stem_stride must be 1 or 2, got 4"),
        ("nat_mini", {"stem_strides": (2,)}, r"stem_strides must be two numbers.*got \(2,\)"),
        ("nat_mini", {"stem_strides": (4, 1)}, r"stem_strides .* each 1 or 2, got \(4, 1\)"),
        ("conformer_ti", {"stem": "small"}, "stem must be one of .*'cifar'.*got 'small'"),
        ("conformer_ti", {"stem": "cifar", "patch_size": 16}, "patch_size must be 2 or 4 for 2"),
        ("coatnet_0", {"stem_stride": 1, "input_shape": (18, 16, 3)}, "multiple of 4, got 18x16"),
    ],
    ids=str,
)
def test_a_stem_that_there_is_not_is_refused(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        kh.create_model(name, **{**SMALL[family_of(name)], **arguments})
