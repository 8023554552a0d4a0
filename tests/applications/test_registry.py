"""Every registered model against every promise of the zoo.

Sizes of one family differ in numbers only, so what needs arithmetic is tested on a tiny model of
each family (``tests.cases``), and only counts and shapes on each registered one. A model that
cannot keep a promise says so in ``ModelInfo.limitations``, by the test's name without ``test_``.
"""

import functools
import gc
import importlib.util
import inspect
import json
import os
import pathlib
import re
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import ops

import keras_hybrid as kh
from keras_hybrid.applications.registry import register_model
from tests.cases import (
    ANY_SIZE,
    ATTENTION_LAYERS,
    CLASSES,
    FAMILIES,
    GRAD_CAM_LAYERS,
    IMAGES,
    LABELS,
    READ_BESIDE_THE_LAST_MAP,
    SMALL,
    copy_weights,
    dtype_policy,
    family_of,
    initial_weights,
    predict,
    relative_error,
    representative,
    shared_model,
    small_model,
    without_weights,
)

MODELS = kh.list_models()
BUILDERS = [name for name in kh.applications.__all__ if name[0].isupper()]
BUILDERS = [name for name in BUILDERS if inspect.isfunction(getattr(kh.applications, name))]
POLICIES = ["float32", "mixed_bfloat16", "mixed_float16"]
STEPS = 16  # float16 spends the first ones on finding its loss scale
BACKENDS = {"tensorflow", "jax", "torch"}

# Keras says so when a model is called in another way than it was built for.
pytestmark = pytest.mark.filterwarnings("error:The structure of `inputs`")
# What a builder refuses and what a graph holds do not depend on the backend: the quickest to build
# on speaks for all.
once = pytest.mark.skipif(
    keras.backend.backend() != "torch", reason="the same on every backend: tested on PyTorch"
)
# How a builder joins its parts does not depend on it either, though it takes numbers to see.
any_backend = pytest.mark.any_backend
every_model = pytest.mark.parametrize("name", MODELS)
every_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.strip("_*"))


def _marks(family: str, policy: str) -> list:
    """Tests that can wait, and those that another backend speaks for."""
    marks = []
    # CVT and ViT-Lite have CCT's encoder and ViT's tokens, Astroformer CoAtNet's blocks.
    if family in ("astroformer_*", "cvt_*", "vit_lite_*") and policy != "float32":
        marks.append(pytest.mark.slow)
    # Each precision on two backends is enough: bfloat16 on JAX and PyTorch, float16, which JAX has
    # not on a CPU, on TensorFlow and PyTorch.
    if policy == "mixed_bfloat16" and keras.backend.backend() == "tensorflow":
        marks.append(any_backend)
    return marks


every_family_and_policy = pytest.mark.parametrize(
    ("family", "policy"),
    [
        pytest.param(
            family, policy, id=f"{family.strip('_*')}-{policy}", marks=_marks(family, policy)
        )
        for family in FAMILIES
        for policy in POLICIES
    ],
)


@pytest.fixture(autouse=True)
def _limitations(request):
    """Skip what a model declares it cannot do."""
    arguments = getattr(request.node, "callspec", None)
    arguments = {} if arguments is None else arguments.params
    name = arguments.get("name")
    if "family" in arguments:
        name = representative(arguments["family"])
    if name in MODELS:
        promise = request.function.__name__.removeprefix("test_")
        reason = kh.model_info(name).limitations.get(promise)
        if reason is not None:
            pytest.skip(reason)


@pytest.fixture(scope="module", autouse=True)
def _forget_models():
    """Let go of the cached models after the last test: TensorFlow's take gigabytes."""
    yield
    for cached in (full_size, shared_model):
        cached.cache_clear()
    keras.utils.clear_session()


# --- the whole zoo, in full size ------------------------------------------------------------------


@functools.cache
def full_size(name: str) -> keras.Model:
    """Build a registered model whose variables have no values: shapes and counts only."""
    with without_weights():
        return kh.create_model(name)


def test_at_most_three_models_have_limitations_and_each_names_a_promise():
    limited = [name for name in MODELS if kh.model_info(name).limitations]
    assert len(limited) <= 3
    for name in limited:
        for promise, reason in kh.model_info(name).limitations.items():
            assert f"test_{promise}" in globals() and reason


@once
@every_model
def test_every_model_has_a_tiny_relative_to_be_tested_by(name):
    assert family_of(name) is not None, "add a line to tests.cases.SMALL"


@once
@every_model
def test_the_default_model_is_what_its_facts_say(name):
    info, model = kh.model_info(name), full_size(name)
    assert info.name == model.name == name
    assert importlib.util.find_spec(f"keras_hybrid.applications.{info.family}") is not None
    assert model.input_shape == (None, *info.input_shape)
    assert model.output_shape == (None, info.classes)
    assert model.output.dtype == "float32"
    is_cosine = isinstance(model.get_layer("predictions"), kh.layers.CosineClassifier)
    assert info.classifier == ("cosine" if is_cosine else "dense")
    assert info.paper


@once
@every_model
def test_parameters_are_those_registered(name):
    assert full_size(name).count_params() == kh.model_info(name).parameters


@once
@every_model
def test_multiply_accumulates_are_those_registered(name):
    """Half of PyTorch's floating-point operations: convolutions and matrix products, with top.

    So the classifier counts, as do both products of attention and sequence pooling's; biases,
    normalisations, activations and depth-to-token rearrangements do not. FaceRec's published
    figures come from a model that sums its pooled tokens without a matrix product, which leaves
    tokens × width out. NAT's layers hide some of the keys that a tile of queries shares, and
    KP-RPE's look its logits up by products.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    info = kh.model_info(name)
    with keras.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model = kh.create_model(name)
        built = counter.get_total_flops()
        model(torch.empty((1, *info.input_shape), device="meta"), training=False)
    macs = (counter.get_total_flops() - built) // 2
    if info.family == "facerec":
        _, tokens, width = model.get_layer("norm").output.shape
        macs -= tokens * width
    macs -= sum(getattr(layer, "hidden_products", 0) for layer in model.layers)
    assert macs == info.macs


# --- building -------------------------------------------------------------------------------------


@once
@every_family
def test_layers_have_names_that_stay(family):
    # Keras numbers the names it makes up, so they would differ.
    first, second = ([layer.name for layer in small_model(family).layers] for _ in range(2))
    assert first == second
    assert first[0] == "image" and first[-1] == "predictions" and "embedding" in first


@once
@every_family
def test_no_layer_is_one_that_keras_hybrid_has_a_faster_form_of(family):
    names = ("BatchNormalization", "Conv2D", "DepthwiseConv2D", "MaxPooling2D")
    slow = [getattr(keras.layers, name) for name in names]
    found = {layer.name for layer in small_model(family)._flatten_layers() if type(layer) in slow}
    assert found == set()


@every_family
def test_predictions_come_from_the_embedding(family):
    model = shared_model(family)
    embedding, predictions = model.get_layer("embedding"), model.get_layer("predictions")
    assert len(embedding.output.shape) == 2 and embedding.output.dtype == "float32"
    both = keras.Model(model.input, {"embedding": embedding.output, "predictions": model.output})
    answer = predict(both, IMAGES)
    expected = ops.convert_to_numpy(predictions(answer["embedding"]))
    assert relative_error(answer["predictions"], expected) <= 1e-6


@every_family
@pytest.mark.parametrize("classifier", ["cosine", "dense"])
def test_either_classifier_ends_every_family(family, classifier):
    model = small_model(family, classifier=classifier)
    output = predict(model, IMAGES)
    assert output.shape == (len(IMAGES), CLASSES) and output.dtype == np.float32
    assert np.isfinite(output).all() and np.ptp(output, axis=0).all()
    if classifier == "cosine":
        assert np.abs(output).max() <= 1
    else:
        with pytest.raises(ValueError, match="classifier_activation"):
            small_model(family, classifier="cosine", classifier_activation="softmax")
        logits = model.get_layer("predictions")
        assert logits.activation is keras.activations.linear


@every_family
def test_a_batch_of_any_size_gives_each_image_its_own_answer(family):
    model = shared_model(family)
    assert model.input_shape[0] is None and model.output_shape[0] is None
    output = predict(model, IMAGES[:1])
    assert output.shape == (1, CLASSES)
    np.testing.assert_allclose(output, predict(model, IMAGES)[:1], atol=1e-5)


@any_backend
@every_family
def test_no_two_weights_begin_with_the_same_draws(family):
    """As they do, up to a factor, where layers share one initialiser."""
    draws = {}
    for variable in small_model(family).trainable_variables:
        begin = keras.ops.convert_to_numpy(variable).astype("float64").flatten()[:8]
        if begin.size == 8 and np.ptp(begin) > 0 and np.count_nonzero(begin) > 2:
            draws[variable.path] = begin / np.linalg.norm(begin)
    paths, rows = list(draws), np.stack(list(draws.values()))
    first, second = np.nonzero(np.triu(np.abs(rows @ rows.T) > 1 - 1e-6, k=1))
    assert not [(paths[i], paths[j]) for i, j in zip(first, second, strict=True)]


@any_backend
@every_family
def test_a_photograph_of_bytes_goes_in_unchanged(family):
    model = shared_model(family)
    output = predict(model, IMAGES.astype("uint8"))
    assert relative_error(output, predict(model, IMAGES)) <= 1e-6


@any_backend
@every_family
def test_one_class_is_enough(family):
    output = predict(small_model(family, classes=1), IMAGES[:1])
    assert output.shape == (1, 1) and output.dtype == np.float32


@any_backend
@every_family
def test_without_top_features_are_pooled_as_told(family):
    model = shared_model(family)
    headless = small_model(family, include_top=False)
    copy_weights(model, headless)
    features, last = predict(headless, IMAGES), headless.layers[-1].name
    assert features.ndim in (3, 4) and len(features) == len(IMAGES)

    def pooled(pooling):
        whole = small_model(family, include_top=False, pooling=pooling)
        copy_weights(model, whole)
        return predict(keras.Model(whole.get_layer(last).output, whole.output), features)

    axes = tuple(range(1, features.ndim - 1))
    np.testing.assert_allclose(pooled("avg"), features.mean(axes), atol=1e-5)
    np.testing.assert_allclose(pooled("max"), features.max(axes), atol=1e-5)
    embedding = keras.Model(model.get_layer(last).output, model.get_layer("embedding").output)
    assert relative_error(pooled("native"), predict(embedding, features)) <= 1e-6


@any_backend
@every_family
def test_a_model_continues_from_a_tensor(family):
    model, image = shared_model(family), keras.Input((16, 16, 3), name="photograph")
    arguments = {key: value for key, value in SMALL[family].items() if key != "input_shape"}
    name = representative(family)
    brighter = keras.layers.Rescaling(2.0, name="brighter")(image)
    continued = kh.create_model(name, input_tensor=brighter, classes=CLASSES, **arguments)
    assert continued.inputs == [image] and continued.output_shape == (None, CLASSES)
    for layer in model.layers[1:]:
        continued.get_layer(layer.name).set_weights(layer.get_weights())
    assert relative_error(predict(continued, IMAGES / 2), predict(model, IMAGES)) <= 1e-6


@any_backend
@every_family
def test_images_may_be_taller_than_wide(family):
    model = small_model(family, input_shape=(32, 16, 3))
    assert model.input_shape == (None, 32, 16, 3)
    images = np.concatenate([IMAGES, IMAGES[::-1]], axis=1)
    output = predict(model, images)
    assert output.shape == (len(IMAGES), CLASSES) and np.isfinite(output).all()
    assert np.ptp(output, axis=0).all()


@once
@every_family
@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((), "three positive integers"),
        ((16, 16), "three positive integers"),
        ((16, None, 3), "three positive integers"),
        ((0, 16, 3), "three positive integers"),
        ((16.0, 16, 3), "three positive integers"),
        ("16x16", "three positive integers"),
        (16, "three positive integers"),
    ],
    ids=str,
)
def test_an_input_shape_that_is_none_is_refused(family, shape, message):
    with pytest.raises(ValueError, match=rf"input_shape.*{message}"):
        small_model(family, input_shape=shape)


@once
@every_family
def test_an_input_shape_that_does_not_divide_is_refused_with_the_multiple(family):
    if family in ANY_SIZE:
        assert small_model(family, input_shape=(17, 19, 3)).output_shape == (None, CLASSES)
        return
    for shape in ((17, 16, 3), (16, 17, 3)):
        with pytest.raises(ValueError, match=r"input_shape.*multiple.*(4|8).*1[67]x1[67]"):
            small_model(family, input_shape=shape)


@once
@every_family
def test_an_input_tensor_that_is_none_or_disagrees_is_refused(family):
    with pytest.raises(ValueError, match="input_tensor must be a Keras tensor"):
        small_model(family, input_tensor=IMAGES)
    with pytest.raises(ValueError, match=r"input_shape.*disagrees with input_tensor"):
        small_model(family, input_tensor=keras.Input((32, 32, 3)))


@once
@every_family
@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("pooling", "mean", "pooling must be one of .*'native'"),
        ("classifier", "arcface", "classifier must be one of .*'cosine'"),
        ("classes", 0, "classes must be a positive integer"),
        ("classes", 2.5, "classes must be a positive integer"),
        ("classes", None, "classes must be a positive integer"),
        ("weights", "imagenet", "weights must be None or the path"),
        ("weights", pathlib.Path("nowhere.weights.h5"), "weights must be None or the path"),
    ],
    ids=lambda value: str(value).split(" ")[0],
)
def test_a_wrong_argument_is_named(family, argument, value, message):
    with pytest.raises(ValueError, match=message):
        small_model(family, **{argument: value})


@once
@pytest.mark.parametrize(
    ("family", "arguments", "message"),
    [
        ("cct_*", {"num_convolutions": 0}, "num_convolutions must be a positive integer, got 0"),
        ("convit_*", {"depths": (1, 0)}, r"depths must be two numbers.*got \(1, 0\)"),
        ("convit_*", {"depths": (-1, 2)}, r"depths must be two numbers.*got \(-1, 2\)"),
        ("convit_*", {"depths": (1, 1, 1)}, r"depths must be two numbers.*got \(1, 1, 1\)"),
        ("efficientnet_*", {"stages": (("mbconv", 3, 1, 16, 1),)}, "stages .*stride.*16, 1"),
        ("efficientnet_*", {"stages": (3, 1)}, "stages must have .*kind, kernel size.*got 3"),
        ("efficientvit_*", {"stages": (("mbconv", 3, 1, 16, 1),)}, "stages .*stride.*16, 1"),
        ("efficientvit_*", {"patch_size": 0}, "patch_size must be a positive integer, got 0"),
        ("facerec_[ms]*", {"stem_blocks": (1,)}, r"stem_blocks .*each stage.*\(4, 8\) and \(1,\)"),
        ("kprpe_*", {"bucket_ratio": 0}, "bucket_ratio must be positive, got 0"),
        ("mobilefacenet*", {"stages": ((2, 8, 2),)}, r"stages must have \(expansion.*\(2, 8, 2\)"),
        ("mobilefacenet*", {"stem_groups": 3}, "stem_groups must divide stem_channels=8, got 3"),
        ("mobilefacenet*", {"stem_groups": 0}, "stem_groups must divide stem_channels=8, got 0"),
        ("mobilenet_v2*", {"stages": ((2, 8, 2),)}, r"stages must have \(expansion.*\(2, 8, 2\)"),
        ("nat_*", {"num_heads": (0, 1)}, "num_heads must be a positive integer, got 0"),
        ("vit_*", {"patch_size": 0}, "patch_size must be a positive integer, got 0"),
        ("vit_p*", {"patch_size": 64}, "patch_size must be at most .*padding=4.*got 64 for 16x16"),
        ("vit_p*", {"patch_stride": 0}, "patch_stride must be a positive integer, got 0"),
    ],
    ids=str,
)
def test_numbers_that_make_no_network_are_refused(family, arguments, message):
    with pytest.raises(ValueError, match=message):
        small_model(family, **arguments)


@once
@pytest.mark.parametrize("family", FAMILIES)
def test_networks_without_blocks_are_refused(family):
    given = SMALL[family]
    for name in {"depth", "depths", "head_dim", "window_size"} & given.keys():
        several = isinstance(given[name], tuple)
        for number in (0, -1):
            wrong = (*given[name][:-1], number) if several else number
            with pytest.raises(ValueError, match=name):
                small_model(family, **{name: wrong})


@pytest.mark.parametrize(
    ("mean", "std"),
    [(127.0, (128.0, 64.0, 32.0)), ((120.0, 110.0, 100.0), 128.0), ((1, 2, 3), (4, 5, 6))],
)
def test_images_are_normalised_by_one_number_or_one_for_each_channel(mean, std):
    model = small_model("mobilefacenet*", pixel_mean=mean, pixel_std=std)
    images = np.random.default_rng(0).uniform(0, 255, (2, *model.input_shape[1:]))
    found = ops.convert_to_numpy(model.get_layer("preprocessing")(images.astype("float32")))
    np.testing.assert_allclose(found, (images - mean) / std, rtol=1e-4, atol=1e-4)


@once
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pixel_std": (1.0, 2.0)}, "3 channels, but the normalisation is for 2"),
        ({"pixel_mean": (1.0, 2.0)}, "3 channels, but the normalisation is for 2"),
        ({"pixel_std": 0.0}, "divide by positive numbers, got std=0.0"),
        (
            {"pixel_std": (1.0, -1.0, 1.0)},
            r"divide by positive numbers, got std=\(1.0, -1",
        ),
        ({"classifier": "dense", "centers_per_class": 3}, "centers_per_class must be 1 .* got 3"),
    ],
)
def test_arguments_without_a_meaning_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        small_model("mobilefacenet*", **arguments)


@once
@pytest.mark.parametrize("suffix", [".weights.h5", ".keras"])
def test_weights_of_a_deeper_network_are_refused(tmp_path, suffix):
    deep = small_model("vit_p*", depth=3)
    (deep.save if suffix == ".keras" else deep.save_weights)(tmp_path / f"deep{suffix}")
    same = small_model("vit_p*", depth=3, weights=str(tmp_path / f"deep{suffix}"))
    image = np.full((1, *deep.input_shape[1:]), 90, "float32")
    np.testing.assert_allclose(predict(same, image), predict(deep, image), rtol=1e-5)
    bare = {"include_top": False, "pooling": "native", "weights": str(tmp_path / f"deep{suffix}")}
    small_model("vit_p*", depth=3, **bare)
    with pytest.raises(ValueError, match="norm would get those of block2_norm1"):
        small_model("vit_p*", depth=2, **bare)


@once
def test_squeeze_and_excitation_of_coatnet_may_be_left_out():
    def widths(se_ratio):
        model = small_model("coatnet_*", se_ratio=se_ratio)
        return [x.filters for x in model.layers if x.name.endswith("_se_reduce")]

    assert widths(0) == [] and widths(0.01) == [1] and widths(0.5) == [4]


@once
def test_the_stem_of_mobilefacenet_is_depthwise_unless_told():
    model = small_model("mobilefacenet*", stem_channels=6, stem_groups=None)
    assert isinstance(model.get_layer("stem1_conv"), keras.layers.DepthwiseConv2D)


@once
@every_family
def test_integers_may_be_numpy_s(family):
    shape = tuple(np.array([16, 16, 3]))
    model = small_model(family, input_shape=shape, classes=np.int64(4))
    assert model.input_shape == (None, 16, 16, 3) and model.output_shape == (None, 4)
    assert keras.models.model_from_json(model.to_json()).output_shape == (None, 4)


@pytest.mark.parametrize("builder", BUILDERS)
def test_every_builder_has_the_signature_that_everybody_knows(builder):
    parameters = list(inspect.signature(getattr(kh.applications, builder)).parameters.values())
    common, architecture = parameters[:9], parameters[9:]
    assert {p.kind for p in common} == {inspect.Parameter.POSITIONAL_OR_KEYWORD}
    assert [(p.name, p.default) for p in common if p.name not in ("classes", "name")] == [
        ("include_top", True),
        ("weights", None),
        ("input_tensor", None),
        ("input_shape", None),
        ("pooling", None),
        ("classifier_activation", None),
        ("include_preprocessing", True),
    ]
    assert common[5].name == "classes" and isinstance(common[5].default, int)
    assert common[8].name == "name" and isinstance(common[8].default, str)
    assert {p.kind for p in architecture} == {inspect.Parameter.KEYWORD_ONLY}
    assert all(p.default is not inspect.Parameter.empty for p in architecture)


@pytest.mark.parametrize(
    ("builder", "general", "fixed"),
    [
        ("ViTS16", "ViT", {"dim": 384, "num_heads": 6}),
        ("CVT", "ViTLite", {"class_token": False}),
        ("Astroformer", "CoAtNet", {"stages": ("convolution",) * 3 + ("attention",)}),
    ],
)
def test_a_builder_that_hands_keywords_on_has_their_names_and_its_own_defaults(
    builder, general, fixed
):
    found, expected = (
        inspect.signature(getattr(kh.applications, name)).parameters for name in (builder, general)
    )
    assert list(found) == list(expected)
    changed = {
        name: p.default
        for name, p in found.items()
        if p.kind is p.KEYWORD_ONLY and p.default != expected[name].default
    }
    assert changed == fixed


# --- normalisation --------------------------------------------------------------------------------

HALF = ([127.5] * 3, [127.5] * 3)
CIFAR10 = ([125.307, 122.961, 113.8575], [62.985, 62.0925, 66.708])
PYTORCH_CIFAR = ([125.307, 122.961, 113.8575], [51.5865, 50.847, 51.255])
MOBILEFACENET = ([127.5] * 3, [128.0] * 3)
RELEASE_V2 = ([128.0] * 3, [128.0] * 3)
RELEASE_LITE = ([127.0] * 3, [128.0] * 3)
RAW = ([0.0] * 3, [1.0] * 3)
IMAGENET = ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375])


@pytest.mark.parametrize(
    ("name", "statistics"),
    [
        ("cct_7_3x1", CIFAR10),
        ("cct_14_7x2", IMAGENET),
        ("atc_15", IMAGENET),
        ("cvt_7_4", CIFAR10),
        ("conformer_ti", IMAGENET),
        ("cvt_13", IMAGENET),
        ("cvt_13_32", IMAGENET),
        ("vit_lite_7_4", CIFAR10),
        ("resnet50", IMAGENET),
        ("resnet50_cifar", PYTORCH_CIFAR),
        ("resnet50_fct", PYTORCH_CIFAR),
        ("san10_pairwise", IMAGENET),
        ("san_proposed_patchwise", HALF),
        ("vit_b16", HALF),
        ("facerec", HALF),
        ("facerec_small", HALF),
        ("coatnet_0", HALF),
        ("convit_s", IMAGENET),
        ("nat_mini", IMAGENET),
        ("swin_tiny", IMAGENET),
        ("efficientnet_b0", IMAGENET),
        ("efficientnet_v2_s", RELEASE_V2),
        ("efficientnet_lite0", RELEASE_LITE),
        ("efficientvit_face", RAW),
        ("efficientvit_face_small", HALF),
        ("ensemble_efficientnet_vit", RAW),
        ("late_fusion_efficientnet_vit", RAW),
        ("iresnet50", HALF),
        ("kprpe_vit_base", HALF),
        ("mobilefacenet", MOBILEFACENET),
        ("mobilefacenet_insightface", HALF),
        ("mobilefacenet_relu6", IMAGENET),
        ("mobilenet_v2", IMAGENET),
        ("vit_p8s8", RAW),
    ],
)
def test_normalisation_is_that_of_the_paper(name, statistics):
    mean, std = (np.array(numbers, "float32") for numbers in statistics)
    images = np.random.default_rng(0).uniform(0, 255, (2, 4, 4, 3)).astype("float32")
    normalised = full_size(name).get_layer("preprocessing")(images)
    np.testing.assert_allclose(ops.convert_to_numpy(normalised), (images - mean) / std, atol=1e-5)


@any_backend
@every_family
def test_without_preprocessing_normalised_images_give_the_same_answer(family):
    model, bare = shared_model(family), small_model(family, include_preprocessing=False)
    assert "preprocessing" not in [layer.name for layer in bare.layers]
    copy_weights(model, bare)
    normalised = ops.convert_to_numpy(model.get_layer("preprocessing")(IMAGES))
    assert relative_error(predict(bare, normalised), predict(model, IMAGES)) <= 1e-6


def test_a_normalisation_by_colour_refuses_other_channels():
    with pytest.raises(ValueError, match=r"input_shape.*1 channels.*include_preprocessing=False"):
        small_model("cct_*", input_shape=(16, 16, 1))
    model = small_model("cct_*", input_shape=(16, 16, 1), include_preprocessing=False)
    assert model.input_shape == (None, 16, 16, 1)


# --- training -------------------------------------------------------------------------------------


def shallow(family: str, policy: str) -> dict:
    """One layer in half precision: compilation takes its time for depth, precision does not."""
    return {"depth": 1} if policy != "float32" and "depth" in SMALL[family] else {}


def fit(family: str, policy: str) -> tuple[keras.Model, list[float]]:
    """Fit the tiny model to one batch; return it and the loss of every step."""
    if policy == "mixed_float16" and keras.backend.backend() == "jax":
        import jax

        if jax.default_backend() == "cpu":
            pytest.skip("JAX on a CPU has no F16_F16_F32 dot_general, which attention needs")
    with dtype_policy(policy):
        model = small_model(family, **shallow(family, policy))
    if kh.model_info(representative(family)).classifier == "cosine":
        loss = kh.losses.ArcFace()
    else:
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.AdamW(1e-3), loss=loss)
    history = model.fit(IMAGES, LABELS, batch_size=len(IMAGES), epochs=STEPS, verbose=0)
    model.train_function = None  # its graph takes a hundred times the memory of the model
    gc.collect()
    return model, history.history["loss"]


@every_family_and_policy
def test_fit_lowers_the_loss_and_outputs_and_unit_embeddings_are_float32(family, policy, tmp_path):
    model, losses = fit(family, policy)
    assert np.isfinite(losses).all()
    assert np.mean(losses[-2:]) < np.mean(losses[:2])
    embedder = kh.applications.embedding_model(model)
    both = keras.Model(model.input, {"embedding": embedder.output, "predictions": model.output})
    answer = predict(both, IMAGES)
    assert answer["embedding"].dtype == answer["predictions"].dtype == np.float32
    assert answer["embedding"].ndim == 2
    np.testing.assert_allclose(np.linalg.norm(answer["embedding"], axis=-1), 1, atol=1e-5)
    if policy == "float32":
        a_keras_file_of_a_trained_model_holds_loss_and_optimizer(model, tmp_path / "model.keras")
    else:
        exact = small_model(family, **shallow(family, policy))
        copy_weights(model, exact)
        expected = predict(kh.applications.embedding_model(exact), IMAGES)
        assert relative_error(answer["embedding"], expected) < 0.08  # up to 0.04 were seen


def a_keras_file_of_a_trained_model_holds_loss_and_optimizer(model, path):
    model.save(path)
    loaded = keras.saving.load_model(path)
    assert relative_error(predict(loaded, IMAGES), predict(model, IMAGES)) <= 1e-6
    assert type(loaded.loss) is type(model.loss) and int(loaded.optimizer.iterations) == STEPS
    for ours, theirs in zip(model.optimizer.variables, loaded.optimizer.variables, strict=True):
        np.testing.assert_array_equal(*(ops.convert_to_numpy(x) for x in (ours, theirs)))


@any_backend
@every_family
def test_embedding_model_shares_the_weights_and_needs_an_embedding(family):
    model = shared_model(family)
    embedder = kh.applications.embedding_model(model)
    ours = {id(variable) for variable in model.variables}
    assert {id(variable) for variable in embedder.variables} <= ours
    with pytest.raises(ValueError, match=r"'embedding'.*include_top=True.*pooling='native'"):
        kh.applications.embedding_model(small_model(family, include_top=False, pooling="avg"))
    headless = small_model(family, include_top=False, pooling="native")
    assert kh.applications.embedding_model(headless).output_shape == embedder.output_shape


# --- features -------------------------------------------------------------------------------------


def pyramid(model: keras.Model) -> dict[str, tuple]:
    """Return the shape of every feature map, in the order of the output."""
    with without_weights():  # which full-size models are made with
        features = kh.feature_model(model)
    return {name: tuple(x.shape) for name, x in features.output.items()}


@once
@every_model
def test_feature_maps_are_named_by_their_stride_from_fine_to_coarse(name):
    _, height, width, _ = full_size(name).input_shape
    maps = pyramid(full_size(name))
    assert maps and list(maps) == sorted(maps)
    for endpoint, shape in maps.items():
        stride = int(endpoint.rpartition("stride")[2])  # behind a member's name, if fused
        assert shape[:-1] == (None, -(-height // stride), -(-width // stride))


@any_backend
@every_family
def test_feature_maps_do_not_depend_on_the_head_or_the_input(family):
    brighter = keras.layers.Rescaling(2.0, name="brighter")(keras.Input((16, 16, 3)))
    with without_weights():
        models = [
            *(small_model(family, include_top=False, pooling=p) for p in (None, "max", "native")),
            small_model(family, input_shape=None, input_tensor=brighter),
        ]
    assert [pyramid(model) for model in models] == [pyramid(shared_model(family))] * 4


@every_family
def test_the_head_reads_the_last_feature_map(family):
    model = shared_model(family)
    features = kh.feature_model(model)
    name = list(features.output)[-1]
    # What the head reads is the marked tensor: the map, and a class token where there is one.
    read = [model.get_layer(layer) for layer in (name, *READ_BESIDE_THE_LAST_MAP.get(family, ()))]
    embedding = model.get_layer("embedding").output
    outputs = [list(features.output.values()), [layer.output for layer in read], embedding]
    maps, read_values, expected = predict(keras.Model(model.input, outputs), IMAGES)
    for values in maps:
        assert values.ndim == 4 and np.isfinite(values).all() and np.ptp(values, axis=0).any()
    channels = maps[-1].shape[-1]
    last, tokens = (x.reshape(len(IMAGES), -1, channels) for x in (maps[-1], read_values[0]))
    assert last.shape[1] >= tokens.shape[1] - 1
    np.testing.assert_array_equal(last, tokens[:, -last.shape[1] :])
    head = keras.Model([layer.output for layer in read], embedding)
    assert relative_error(predict(head, read_values), expected) <= 1e-6
    read_values[0] = read_values[0][::-1]
    assert relative_error(predict(head, read_values), expected) > 1e-4


# --- attention ------------------------------------------------------------------------------------


@every_family
def test_attention_maps_are_distributions_over_the_keys(family):
    model = shared_model(family)
    random = np.random.default_rng(0)
    layers = [x for x in model.layers if isinstance(x, kh.layers.MultiHeadSelfAttention)]
    assert len(layers) == ATTENTION_LAYERS.get(family, SMALL[family].get("depth", 0))
    for layer in layers:
        _, tokens, width = keras.tree.flatten(layer.input)[0].shape
        x = random.normal(size=(2, tokens, width)).astype("float32")
        logits = random.normal(size=(1, layer.num_heads, tokens, tokens)).astype("float32")
        for bias in (None, logits):
            scores = ops.convert_to_numpy(layer.attention_scores(x, attention_bias=bias))
            assert scores.shape == (2, layer.num_heads, tokens, tokens) and scores.min() >= 0
            np.testing.assert_allclose(scores.sum(-1), 1, atol=1e-5)


# --- Grad-CAM -------------------------------------------------------------------------------------


@once
@every_model
def test_grad_cam_explains_the_last_map_of_every_branch(name):
    model = full_size(name)
    blocks = [x.name for x in model.layers if re.fullmatch(r"(.+_)?block\d+_norm1", x.name)]
    names = {"map": list(pyramid(model))[-1], "block": blocks[-1] if blocks else None}
    expected = GRAD_CAM_LAYERS.get(family_of(name), ("{map}",))
    layers = kh.explain.default_layers(model)
    assert layers == [layer.format(**names) for layer in expected]
    for layer in layers:
        shape = model.get_layer(layer).output.shape
        assert (shape[1] * shape[2] if len(shape) == 4 else shape[1]) >= 4  # places


@once
@every_family
def test_grad_cam_maps_are_of_the_images_size_and_from_0_to_1(family):
    model = shared_model(family)
    for layer in kh.explain.default_layers(model):
        found = []
        for number in range(CLASSES):  # of one class, random weights may have no evidence at all
            maps = kh.explain.grad_cam(model, IMAGES, number, layer=layer)
            assert maps.shape == IMAGES.shape[:3] and maps.min() >= 0
            assert set(maps.max(axis=(1, 2)).tolist()) <= {0.0, 1.0}
            found.append(maps.any())
        assert any(found)


# --- saving ---------------------------------------------------------------------------------------


@every_family
def test_a_keras_file_gives_the_same_model(family, tmp_path):
    model = shared_model(family)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert type(loaded) is type(model)
    assert json.loads(loaded.to_json())["config"] == json.loads(model.to_json())["config"]
    theirs, ours = (
        predict(
            keras.Model(m.input, {"predictions": m.output, **kh.feature_model(m).output}), IMAGES
        )
        for m in (loaded, model)
    )
    assert theirs.keys() == ours.keys()
    for name in ours:
        assert relative_error(theirs[name], ours[name]) <= 1e-6


@any_backend
@every_family
@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method")
def test_a_keras_file_of_a_quantized_model_gives_the_same_model(family, tmp_path):
    model = small_model(family)
    expected = predict(model, IMAGES)
    model.quantize("int8")
    quantized = predict(model, IMAGES)
    assert 0 < relative_error(quantized, expected) < 0.05
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(predict(loaded, IMAGES), quantized)
    loaded.save(tmp_path / "again.keras")  # and so on
    again = keras.saving.load_model(tmp_path / "again.keras")
    np.testing.assert_array_equal(predict(again, IMAGES), quantized)


@once
@every_family
def test_a_json_configuration_gives_the_same_architecture(family):
    model = shared_model(family)
    copy = keras.models.model_from_json(model.to_json())
    assert type(copy) is type(model)
    assert copy.to_json() == model.to_json()
    assert [v.shape for v in copy.variables] == [v.shape for v in model.variables]


@any_backend
@pytest.mark.parametrize(
    "family", ["cct_*", "cvt_[12]*", "facerec*", "resnet50_fct*", "san*", "swin_*"]
)
def test_a_model_stays_channels_last_whatever_keras_is_set_to(family, tmp_path):
    model = small_model(family)
    model.save(tmp_path / "model.keras")
    expected = predict(model, IMAGES)
    keras.config.set_image_data_format("channels_first")
    try:
        loaded = keras.saving.load_model(tmp_path / "model.keras")
        for each in (loaded, model):
            assert relative_error(predict(each, IMAGES), expected) <= 1e-6
    finally:
        keras.config.set_image_data_format("channels_last")


def unlike_a_new_one(family: str) -> keras.Model:
    """The tiny model with other weights and batch statistics than it begins with."""
    model = small_model(family)
    random = np.random.default_rng(0)
    for variable in model.variables:
        if variable.name in ("moving_mean", "moving_variance"):
            low = 0.5 if variable.name == "moving_variance" else -0.2
            variable.assign(random.uniform(low, low + 0.4, variable.shape))
        elif variable.dtype == "float32":
            noise = random.normal(0, 0.02, variable.shape)
            variable.assign(ops.convert_to_numpy(variable) + noise)
    return model


@any_backend
@every_family
@pytest.mark.parametrize("suffix", [".weights.h5", ".keras"])
def test_weights_come_from_a_file(family, suffix, tmp_path):
    model = unlike_a_new_one(family)
    path = tmp_path / f"model{suffix}"
    model.save_weights(path) if suffix == ".weights.h5" else model.save(path)
    whole = small_model(family, weights=path)
    for ours, theirs in zip(model.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_array_equal(theirs, ours)
    headless = small_model(family, include_top=False, pooling="native", weights=str(path))
    for layer in headless.layers:
        for ours, theirs in zip(
            model.get_layer(layer.name).get_weights(), layer.get_weights(), strict=True
        ):
            np.testing.assert_array_equal(theirs, ours)


@pytest.mark.slow
@pytest.mark.parametrize("backend", sorted(BACKENDS - {keras.backend.backend()}))
def test_a_seed_and_a_keras_file_mean_the_same_on_another_backend(backend, tmp_path):
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    np.save(tmp_path / "images.npy", IMAGES)
    for family in FAMILIES:
        unlike_a_new_one(family).save(tmp_path / f"{representative(family)}.keras")
    environment = os.environ | {
        "KERAS_BACKEND": backend,
        "CUDA_VISIBLE_DEVICES": "-1",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join(entry or os.getcwd() for entry in sys.path),
    }
    script = pathlib.Path(__file__).with_name("embed_on_this_backend.py")
    subprocess.run([sys.executable, script, tmp_path], env=environment, check=True)
    with np.load(tmp_path / f"{backend}.npz") as embeddings:
        assert set(embeddings) == {representative(family) for family in FAMILIES}
        for family in FAMILIES:
            ours = predict(kh.applications.embedding_model(unlike_a_new_one(family)), IMAGES)
            error = relative_error(embeddings[representative(family)], ours)
            assert error <= 1e-5, (family, error)
    with np.load(tmp_path / f"{backend}_initial.npz") as initial:
        for family in FAMILIES:
            np.testing.assert_array_equal(initial[family], initial_weights(family), err_msg=family)


# --- export ---------------------------------------------------------------------------------------


def convert_in_this_process(job, folder, backend):
    """Stand in for `run_conversion`, which starts a process that imports TensorFlow first."""
    files = folder / "job.json", folder / "answer.json"
    files[0].write_text(json.dumps(job))
    status = importlib.import_module("keras_hybrid.export.conversion").main(*map(str, files))
    answer = json.loads(files[1].read_text())
    assert status == 0, answer
    return answer


# Conversions run on TensorFlow, whatever the backend of the model; from the other backends, one
# family shows that the model gets there.
EXPORTED = FAMILIES if keras.backend.backend() == "tensorflow" else ("facerec_[ms]*",)


@pytest.mark.slow
@pytest.mark.parametrize("family", EXPORTED, ids=lambda f: f.strip("_*"))
def test_exported_files_answer_as_the_model(family, tmp_path, monkeypatch):
    for module in ("tensorflow", "ai_edge_litert"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")
    if keras.backend.backend() == "tensorflow":
        monkeypatch.setattr(kh.export.formats, "run_conversion", convert_in_this_process)
    model = unlike_a_new_one(family)
    for function, target in (
        (kh.export.to_litert, "model.tflite"),
        (kh.export.to_saved_model, "saved_model"),
    ):
        report = function(model, tmp_path / target)
        assert report.max_abs_difference <= 1e-4 * report.output_scale
        assert not [operator for operator in report.operators if operator.startswith("Flex")]


@pytest.mark.slow
@pytest.mark.skipif(keras.backend.backend() != "jax", reason="conversions to ONNX run on JAX")
@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.strip("_*"))
def test_an_onnx_file_answers_as_the_model(family, tmp_path, monkeypatch):
    for module in ("jax2onnx", "onnx", "onnxruntime"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")
    monkeypatch.setattr(kh.export.formats, "run_conversion", convert_in_this_process)
    report = kh.export.to_onnx(unlike_a_new_one(family), tmp_path / "model.onnx")
    assert report.max_abs_difference <= 1e-4 * report.output_scale


# --- the registry itself --------------------------------------------------------------------------


def test_names_are_sorted_and_found_by_wildcard():
    assert sorted(set(MODELS)) == MODELS and MODELS
    assert kh.list_models("vit_*16") == ["vit_b16", "vit_s16", "vit_ti16"]
    assert set(kh.list_models("*facerec*")) >= {"facerec", "facerec_attempt2", "facerec_small"}
    assert kh.list_models("vit_b16") == ["vit_b16"]
    assert kh.list_models("nothing_like_it*") == []


@pytest.mark.parametrize("function", [kh.create_model, kh.model_info])
def test_an_unknown_name_is_told_its_neighbours(function):
    with pytest.raises(ValueError, match=r"'vit_b_16'.*Did you mean.*vit_b16"):
        function("vit_b_16")
    with pytest.raises(ValueError, match=r"'%%%'.*Known: .*cct_14_7x2, .*vit_ti16"):
        function("%%%")


def test_a_name_is_registered_once():
    info = kh.model_info("vit_b16")
    with pytest.raises(ValueError, match="'vit_b16' is already registered"):
        register_model(kh.applications.ViT, info)
    assert kh.model_info("vit_b16") is info


@pytest.mark.parametrize(
    ("name", "builder"),
    [
        ("facerec", "FaceRec"),
        ("facerec_small", "FaceRecSmall"),
        ("vit_ti16", "ViTTi16"),
        ("vit_s16", "ViTS16"),
        ("vit_b16", "ViTB16"),
    ],
)
def test_a_name_and_its_builder_give_one_and_the_same_model(name, builder):
    with without_weights():
        built = getattr(kh.applications, builder)()
    names = [[layer.name for layer in model.layers] for model in (built, full_size(name))]
    assert built.name == name and names[0] == names[1]
    shapes = [[v.shape for v in model.variables] for model in (built, full_size(name))]
    assert shapes[0] == shapes[1]


def test_keywords_override_what_is_registered():
    with without_weights():
        model = kh.create_model("vit_ti16", depth=1, classes=7, name="mine")
    assert model.name == "mine" and model.output_shape == (None, 7)
    assert sum(isinstance(x, kh.layers.MultiHeadSelfAttention) for x in model.layers) == 1


def test_none_asks_for_the_registered_input_shape():
    with without_weights():
        model = kh.create_model("cct_7_7x2", input_shape=None)
    assert model.input_shape == (None, 224, 224, 3)
