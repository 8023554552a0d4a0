"""Freezing, thawing and discriminative learning rates, against arithmetic by hand."""

import re

import keras
import numpy as np
import pytest

import keras_hybrid as kh
from keras_hybrid.transfer import (
    ScaledSchedule,
    discriminative_rates,
    freeze,
    imprint,
    layer_decay,
    unfreeze,
)
from tests.cases import CLASSES, IMAGES, LABELS, dtype_policy, small_model, without_weights

# Small enough for float16 to hold the gradients times the first scale of the loss.
INPUTS = np.array([[0.25, -0.5, 0.125], [0.0625, 0.25, -0.25]], "float32")
TARGETS = np.array([[0.5, -0.5], [1.0, 0.0]], "float32")
KERNEL = np.array([[0.1, -0.2], [0.3, 0.2], [-0.1, 0.4]], "float32")
BRANCHES = ("slow", "still", "fast")
RATES = {"slow/*": 0.1, "still/*": 0.0}


def branches() -> keras.Model:
    """Three layers of the same weights whose sum is the output, so that gradients are the same."""
    x = keras.Input((3,))
    layers = [keras.layers.Dense(2, use_bias=False, name=name) for name in BRANCHES]
    y = keras.layers.Add(dtype="float32")([layer(x) for layer in layers])
    for layer in layers:
        layer.set_weights([KERNEL])
    return keras.Model(x, y)


def kernels(model: keras.Model) -> dict[str, np.ndarray]:
    return {name: model.get_layer(name).get_weights()[0] for name in BRANCHES}


def gradient() -> np.ndarray:
    """Of the mean squared error by each kernel, while all three are KERNEL."""
    return INPUTS.T @ (3 * INPUTS @ KERNEL - TARGETS) * 2 / TARGETS.size


def fit(model: keras.Model, optimizer=None, steps: int = 1) -> None:
    if optimizer is not None:
        model.compile(optimizer, loss="mse")
    model.fit(INPUTS, TARGETS, batch_size=len(INPUTS), epochs=steps, verbose=0)


def test_under_gradient_descent_a_tenth_of_the_rate_is_a_tenth_of_the_way():
    model = branches()
    fit(model, discriminative_rates(keras.optimizers.SGD(0.5), model, RATES))
    for name, multiplier in (("slow", 0.1), ("still", 0.0), ("fast", 1.0)):
        expected = KERNEL - multiplier * 0.5 * gradient()
        np.testing.assert_allclose(kernels(model)[name], expected, rtol=1e-5)
    np.testing.assert_array_equal(kernels(model)["still"], KERNEL)


def test_adamw_decays_weights_by_the_multiplied_rate():
    model, rate, decay = branches(), 0.01, 0.3
    optimizer = keras.optimizers.AdamW(rate, weight_decay=decay)
    fit(model, discriminative_rates(optimizer, model, RATES))
    # The first step of Adam: both moments, corrected, are the gradient and its square.
    adam = gradient() / (np.abs(gradient()) + 1e-7 / np.sqrt(1 - 0.999))
    for name, multiplier in (("slow", 0.1), ("still", 0.0), ("fast", 1.0)):
        expected = KERNEL - multiplier * rate * (adam + decay * KERNEL)
        np.testing.assert_allclose(kernels(model)[name], expected, rtol=1e-5)
    np.testing.assert_array_equal(kernels(model)["still"], KERNEL)


def test_what_is_excluded_from_weight_decay_stays_excluded_also_when_loaded(tmp_path):
    model = branches()
    optimizer = keras.optimizers.SGD(1e-9, weight_decay=1e8)
    optimizer.exclude_from_weight_decay(var_list=[model.get_layer("fast").kernel])
    model.compile(discriminative_rates(optimizer, model, RATES), loss="mse")
    model.save(tmp_path / "model.keras")
    for trained in (model, keras.models.load_model(tmp_path / "model.keras")):
        fit(trained)
        for name, left in (("slow", 0.99), ("still", 1.0), ("fast", 1.0)):
            np.testing.assert_allclose(kernels(trained)[name], left * KERNEL, rtol=1e-5)


def test_what_is_excluded_from_weight_decay_has_neither_of_muons_two():
    x = keras.Input((3,))
    model = keras.Model(x, keras.layers.Dense(2, bias_initializer="ones", name="head")(x))
    optimizer = keras.optimizers.Muon(0.5, weight_decay=0.5, adam_weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_list=[model.get_layer("head").bias])
    rates = discriminative_rates(optimizer, model, {"head/kernel": 0.5, "head/bias": 0.25})
    rates.build(model.trainable_variables)
    kernel, bias = (keras.ops.convert_to_numpy(w) for w in model.trainable_variables)
    rates.apply([keras.ops.zeros((3, 2)), keras.ops.zeros((2,))])
    decayed, kept = (keras.ops.convert_to_numpy(w) for w in model.trainable_variables)
    np.testing.assert_allclose(decayed, kernel * (1 - 0.5 * 0.5 * 0.5), rtol=1e-5)
    np.testing.assert_array_equal(kept, bias)


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_a_schedule_and_its_state_are_saved_with_the_model(policy, tmp_path):
    with dtype_policy(policy):
        model = branches()
        rate = keras.optimizers.schedules.ExponentialDecay(0.125, 1, 0.5)
        fit(model, discriminative_rates(keras.optimizers.SGD(rate), model, RATES))
        moved = {name: kernel - KERNEL for name, kernel in kernels(model).items()}
        np.testing.assert_allclose(moved["fast"], -0.125 * gradient(), rtol=1e-2, atol=1e-4)
        np.testing.assert_allclose(moved["slow"], 0.1 * moved["fast"], rtol=1e-3, atol=1e-7)
        assert not moved["still"].any()
        scaled = isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
        assert scaled == (policy == "mixed_float16")
        model.save(tmp_path / "model.keras")
        again = keras.models.load_model(tmp_path / "model.keras")
        assert type(again.optimizer) is type(model.optimizer)
        for ours, theirs in zip(model.optimizer.variables, again.optimizer.variables, strict=True):
            np.testing.assert_array_equal(*map(keras.ops.convert_to_numpy, (ours, theirs)))
        before = kernels(model)
        for each in (model, again):
            fit(each)
        for name in BRANCHES:
            np.testing.assert_array_equal(kernels(model)[name], kernels(again)[name])
        # The second step of the schedule: half the rate.
        error = 3 * INPUTS @ KERNEL + 1.1 * INPUTS @ moved["fast"] - TARGETS
        expected = -0.0625 * INPUTS.T @ error * 2 / TARGETS.size
        np.testing.assert_allclose(
            kernels(model)["fast"] - before["fast"], expected, rtol=1e-2, atol=1e-4
        )


def test_a_zoo_model_trains_with_decaying_rates_and_is_saved(tmp_path):
    model = small_model("vit_*")
    rates = layer_decay(model, 0.5)
    steps = {pattern.split("_")[0].split("/")[0]: rate for pattern, rate in rates.items()}
    order = ["patch", "class", "position", "block0", "block1", "norm", "predictions"]
    assert steps == {name: 0.5 ** (6 - i) for i, name in enumerate(order)}
    optimizer = discriminative_rates(keras.optimizers.AdamW(1e-3), model, rates)
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(IMAGES, LABELS, verbose=0)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    parts = again.optimizer.optimizers
    # All parameters of a block, also those of layers in layers, have come to its own optimizer.
    for part in parts:
        names = {re.match("[a-z]+[0-9]*", v.path)[0] for v in part._trainable_variables}
        assert len(names) == 1
        rate = 1e-3 * steps[names.pop()]
        np.testing.assert_allclose(float(part.learning_rate), rate, rtol=1e-6)
    assert len(parts) == len(order)


def rates(model: keras.Model) -> list[float]:
    """Return the learning rate of each variable of a model that has been fitted."""
    rates = {
        id(variable): float(part.learning_rate)
        for part in model.optimizer.optimizers
        for variable in part._trainable_variables
    }
    return [rates[id(variable)] for variable in model.trainable_variables]


@pytest.mark.parametrize("kind", ["functional", "sequential"])
def test_rates_reach_the_layers_of_a_model_within_the_model_also_when_loaded(kind, tmp_path):
    inner = small_model("vit_*", include_top=False, pooling="native", depth=1, name="inner")
    x, head = keras.Input((16, 16, 3)), keras.layers.Dense(CLASSES, name="predictions")
    if kind == "functional":
        model = keras.Model(x, head(inner(x)))
    else:
        model = keras.Sequential([x, inner, head])
    optimizer = discriminative_rates(keras.optimizers.SGD(1.0), model, layer_decay(model, 0.5))
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(IMAGES, LABELS, verbose=0)
    model.save(tmp_path / "model.keras")
    assert sorted(set(rates(model))) == [0.5**i for i in range(5, -1, -1)]
    assert rates(keras.models.load_model(tmp_path / "model.keras")) == rates(model)


def test_the_layers_of_a_sequential_decay_and_keep_their_rates_in_a_file(tmp_path):
    first, middle, last = (keras.layers.Dense(2, name=name) for name in BRANCHES)
    trunk = keras.Sequential([first, middle], name="trunk")
    model = keras.Sequential([keras.Input((3,)), trunk, last], name="whole")
    decay = layer_decay(model, 0.5)
    assert decay == {"whole/trunk/slow/*": 0.25, "whole/trunk/still/*": 0.5, "whole/fast/*": 1.0}
    fit(model, discriminative_rates(keras.optimizers.SGD(1.0), model, decay))
    model.save(tmp_path / "model.keras")
    for trained in (model, keras.models.load_model(tmp_path / "model.keras")):
        assert rates(trained) == [0.25, 0.25, 0.5, 0.5, 1.0, 1.0]


def test_a_model_without_weights_has_to_be_built_first():
    model = keras.Sequential([keras.layers.Dense(2)], name="empty")
    for function in (
        layer_decay,
        lambda model: discriminative_rates(keras.optimizers.SGD(), model, {}),
    ):
        with pytest.raises(ValueError, match="model 'empty' has no weights yet; build it first"):
            function(model)


def test_blocks_decay_together():
    with without_weights():
        rates = layer_decay(small_model("*resnet50*"), 0.5)
    assert rates["predictions/*"] == 1 and rates["stem_conv/*"] == 0.5**3
    assert {rates[key] for key in rates if key.startswith("stage1_block0_")} == {0.5**2}
    assert {rates[key] for key in rates if key.startswith("stage2_block0_")} == {0.5}


def step_of(model: keras.Model) -> dict[str, int]:
    """Return how many steps each layer with weights is from the output."""
    rates = layer_decay(model, 0.5)
    return {pattern.split("/")[0]: round(-np.log2(rate)) for pattern, rate in rates.items()}


def fused_members() -> list[keras.Model]:
    inner = [small_model("efficientnet_*"), small_model("vit_p*")]
    ensemble = kh.applications.Ensemble(
        members=inner, average="similarities", classes=CLASSES, name="vit_p8s8_both"
    )
    return [small_model("mobilefacenet*"), small_model("vit_p*", name="vit_p8s8"), ensemble]


@pytest.mark.parametrize("is_loaded", [False, True])
def test_the_members_of_a_fused_model_decay_as_they_would_alone(is_loaded, tmp_path):
    members = fused_members()
    model = kh.applications.LateFusion(members=members, classes=CLASSES, embedding_dim=6)
    if is_loaded:
        model.save(tmp_path / "model.keras")
        model = keras.saving.load_model(tmp_path / "model.keras")
    expected = {"predictions": 0, "embedding_norm": 1}
    for member in members:
        # What is new is just below the head, what is trained below that.
        expected[f"{member.name}_projection"] = 2
        alone = step_of(keras.Model(member.input, member.get_layer("embedding").output))
        expected |= {f"{member.name}_{name}": 3 + step for name, step in alone.items()}
    assert step_of(model) == expected
    assert expected["mobilefacenet_stem0_conv"] == 3 + 7
    assert expected["vit_p8s8_both_efficientnet_b0_stem_conv"] == 3 + 6


@pytest.mark.parametrize("classifier", ["cosine", "dense"])
def test_members_decay_with_the_classifiers_that_an_ensemble_averages(classifier):
    arguments = {"classifier": classifier}
    members = [small_model("mobilefacenet*", **arguments), small_model("vit_p*", **arguments)]
    ensemble = kh.applications.Ensemble(members=members, classes=CLASSES, average="logits")
    x = keras.Input((16, 16, 3))
    first, last = keras.layers.Dense(3, name="colours"), keras.layers.Dense(2, name="hidden")
    model = keras.Sequential([x, first, ensemble, last])
    steps = [step_of(member) for member in members]
    deepest = max(max(alone.values()) for alone in steps)
    path = first.kernel.path.split("/")[0]  # of the Sequential, or the layer itself
    found = {
        pattern.split("/")[-2]: round(-np.log2(rate))
        for pattern, rate in layer_decay(model, 0.5).items()
        if pattern.split("/")[0] == path or "/" in pattern
    }
    assert found["hidden"] == 0 and found["colours"] == deepest + 2
    for member, alone in zip(members, steps, strict=True):
        for name, step in alone.items():
            assert found[f"{member.name}_{name}"] == 1 + step


def test_a_name_without_a_number_that_comes_back_is_another_step():
    x = keras.Input((8, 8, 3))
    names = ["conv2d", "batch_norm", "conv2d_1", "tap0_a", "tap1_a", "tap0_b", "conv2d_2"]
    model = keras.Sequential([x, *(keras.layers.Conv2D(2, 1, name=name) for name in names)])
    distances = layer_decay(model, 0.5).values()
    # Steps: conv2d_2, tap1, tap0, conv2d_1, batch, conv2d.
    assert sorted(distances) == [0.5**step for step in (5, 4, 3, 2, 2, 1, 0)]


def test_the_first_pattern_that_matches_counts():
    model = branches()
    optimizer = discriminative_rates(
        keras.optimizers.SGD(1.0), model, {"s*w/*": 0.5, "s*": 0.25, "*": 2.0}
    )
    optimizer.build(model.trainable_variables)
    rates = {
        variable.path: float(part.learning_rate)
        for part in optimizer.optimizers
        for variable in part._trainable_variables
    }
    assert rates == {"slow/kernel": 0.5, "still/kernel": 0.25, "fast/kernel": 2.0}


@pytest.mark.parametrize(
    ("optimizer", "multipliers", "message"),
    [
        (keras.optimizers.SGD, {"slwo/*": 0.1}, r"'slwo/\*'.*Did you mean slow/kernel"),
        (keras.optimizers.SGD, {"slow/*": -0.1}, "multipliers must not be negative, got -0.1"),
        (lambda: keras.optimizers.SGD(global_clipnorm=1.0), {}, "global_clipnorm=1.0"),
        (lambda: keras.optimizers.SGD(lambda: 0.1), {}, "a number or a LearningRateSchedule"),
        (
            lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD()),
            {},
            "plain one, got LossScaleOptimizer",
        ),
        (lambda: "adam", {}, "optimizer must be a keras.optimizers.Optimizer, got 'adam'"),
    ],
)
def test_what_cannot_be_divided_is_refused(optimizer, multipliers, message):
    with pytest.raises(ValueError, match=message):
        discriminative_rates(optimizer(), branches(), multipliers)


@pytest.mark.parametrize("decay", [0, 1.5, -1])
def test_a_decay_that_does_not_decay_is_refused(decay):
    with pytest.raises(ValueError, match=rf"decay must be in \(0, 1\], got {decay}"):
        layer_decay(branches(), decay)


def test_a_scaled_schedule_is_the_schedule_times_a_number():
    schedule = keras.optimizers.schedules.CosineDecay(0.4, 10)
    scaled = ScaledSchedule(schedule, 0.25)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(scaled))
    for step in (0, 3, 10):
        assert float(again(step)) == pytest.approx(0.25 * float(schedule(step)))


def trained(model: keras.Model) -> set[str]:
    """Fit for a step; return the layers with a weight that has changed, statistics included."""
    before = {layer.name: layer.get_weights() for layer in model.layers}
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss)
    model.fit(IMAGES, LABELS, verbose=0)
    return {
        layer.name
        for layer in model.layers
        if any(
            (old != new).any()
            for old, new in zip(before[layer.name], layer.get_weights(), strict=True)
        )
    }


def test_frozen_layers_keep_weights_and_statistics_and_thaw_from_a_named_one():
    model = small_model("*resnet50*")
    weighted = [layer.name for layer in model.layers if layer.weights]
    end = [name for name in weighted if name.startswith(("stage2", "predictions"))]
    norms = {name for name in weighted if name.endswith("norm")}
    freeze(model, until="stage1_block0_relu3")
    assert trained(model) == set(end)
    freeze(model)
    assert not model.trainable_variables
    unfreeze(model, from_layer="stage2_block0_conv1", batch_norm=False)
    assert trained(model) == set(end) - norms
    unfreeze(model)
    assert trained(model) == set(weighted)
    freeze(model, until="pool", batch_norm=False)
    assert trained(model) == norms | {"predictions"}


@pytest.mark.parametrize("whole", [True, False])
def test_what_is_frozen_within_an_earlier_layer_stays_as_it_is(whole):
    model = small_model("vit_*")
    frozen = model.get_layer("block0_attention").qkv
    frozen.trainable = False
    inner = keras.Model(model.input, model.output)
    if not whole:
        model = keras.Sequential([keras.Input((16, 16, 3)), inner])
    unfreeze(model, from_layer="block1_norm1")
    assert not frozen.trainable and not frozen.trainable_variables
    assert inner.get_layer("block0_attention").projection.trainable_variables
    unfreeze(model)
    assert frozen.trainable_variables
    model.trainable = False
    frozen.trainable = True
    freeze(model)
    assert not frozen.trainable_variables


def test_models_within_the_model_stand_for_their_layers():
    inner = small_model("*resnet50*", include_top=False, pooling="avg", name="inner")
    x = keras.Input((16, 16, 3))
    model = keras.Model(x, keras.layers.Dense(CLASSES, name="predictions")(inner(x)))
    inner.trainable = False
    unfreeze(model, from_layer="stage2_block0_conv3")
    paths = [v.path for v in model.trainable_variables]
    assert len(paths) > 2 and all(re.search("stage2|predictions", path) for path in paths)
    assert not inner.get_layer("stage2_block0_conv1").trainable
    freeze(model, until="stage2_block0_conv3")
    assert not inner.get_layer("stage2_block0_conv3").trainable
    assert model.get_layer("predictions").trainable_variables


@pytest.mark.parametrize(
    ("function", "argument"), [(freeze, "until"), (unfreeze, "from_layer")], ids=["freeze", "un"]
)
def test_a_layer_that_is_none_is_told_its_neighbours(function, argument):
    model = small_model("*resnet50*")
    message = rf"{argument}='stage1_block0_relu'.*Did you mean.*stage1_block0_relu\d"
    with pytest.raises(ValueError, match=message):
        function(model, **{argument: "stage1_block0_relu"})


def test_a_class_begins_with_the_direction_of_its_mean_embedding_and_its_former_length():
    """By hand: class 2 has two embeddings, class 0 one, class 1 none."""
    x = keras.Input((2,))
    head = kh.layers.CosineClassifier(3, name="predictions")
    model = keras.Model(x, head(x))
    centers = np.array([[0.5, 0.0], [0.3, 0.4], [0.0, 2.0]], "float32")
    head.set_weights([centers])
    imprint(model, [[3.0, 4.0], [10.0, 0.0], [0.0, 0.1]], np.array([0, 2, 2]))
    expected = [[0.3, 0.4], [0.3, 0.4], [2**0.5, 2**0.5]]
    np.testing.assert_allclose(head.get_weights()[0], expected, rtol=1e-6)
    found = keras.ops.convert_to_numpy(model(np.array([[30.0, 40.0], [1.0, 1.0]], "float32")))
    np.testing.assert_allclose([found[0, 0], found[1, 2]], 1, rtol=1e-6)


@pytest.mark.any_backend
def test_of_several_centres_the_first_is_imprinted():
    x = keras.Input((2,))
    head = kh.layers.CosineClassifier(2, centers_per_class=2, name="predictions")
    model = keras.Model(x, head(x))
    before = head.get_weights()[0]
    imprint(model, [[0.0, 5.0]], [1])
    after = head.get_weights()[0]
    np.testing.assert_allclose(after[1, 0], [0, np.linalg.norm(before[1, 0])], atol=1e-6)
    after[1, 0] = before[1, 0]
    np.testing.assert_array_equal(after, before)


@pytest.mark.any_backend
@pytest.mark.parametrize(
    ("embeddings", "labels", "message"),
    [
        ([[1.0, 0.0, 0.0]], [0], r"embeddings must have shape \(n, 2\), got \(1, 3\)"),
        ([[1.0, 0.0]], [0, 1], r"labels must be whole numbers of shape \(1,\)"),
        ([[1.0, 0.0]], [0.0], "labels must be whole numbers .* got float64"),
        ([[1.0, 0.0]], [-1], r"labels must lie in \[0, 3\), got -1 to -1"),
        ([[1.0, 0.0]], [3], r"labels must lie in \[0, 3\), got 3 to 3"),
        ([[0.0, 0.0]], [1], "embeddings must be finite and not zero"),
        ([[np.nan, 0.0]], [1], "embeddings must be finite and not zero"),
    ],
)
def test_what_cannot_be_imprinted_is_named(embeddings, labels, message):
    x = keras.Input((2,))
    model = keras.Model(x, kh.layers.CosineClassifier(3, name="predictions")(x))
    with pytest.raises(ValueError, match=message):
        imprint(model, embeddings, labels)


@pytest.mark.any_backend
def test_only_heads_with_centres_are_imprinted():
    x = keras.Input((2,))
    for name in ("predictions", "another"):
        model = keras.Model(x, keras.layers.Dense(3, name=name)(x))
        with pytest.raises(ValueError, match="has no layer 'predictions' with the centres"):
            imprint(model, [[1.0, 0.0]], [0])


def test_blocks_with_an_underscore_before_their_number_are_steps():
    image = keras.Input((4,))
    x, names = image, ["block_1_expand", "block_1_project", "block_2_expand", "expanded_conv_3_a"]
    for name in names:
        x = keras.layers.Dense(4, name=name)(x)
    rates = layer_decay(keras.Model(image, keras.layers.Dense(2, name="predictions")(x)), 0.5)
    found = {pattern.split("/")[0]: rate for pattern, rate in rates.items()}
    assert [found[name] for name in names] == [0.125, 0.125, 0.25, 0.5]
