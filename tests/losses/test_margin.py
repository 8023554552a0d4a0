"""Margin losses: published values, gradients, precision, labels."""

import math

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from keras_hybrid import losses
from keras_hybrid.losses.adaptive import MarginState
from tests.gradients import value_and_gradient

SATURATED = np.array([[0.8, 0.1, -0.3], [-0.95, 0.2, 0.4], [0.99999, 0, 0.5], [0, 0.3, -0.99]])
SATURATED = SATURATED.astype("float32")
SATURATED_LABELS = np.array([0, 0, 0, 2])
UNSATURATED = np.array([[0.5, 0.45, 0.4]], "float32")
POLICIES = {"float32": "float32", "mixed_bfloat16": "bfloat16", "mixed_float16": "float16"}


def number(x) -> float:
    return float(ops.convert_to_numpy(x))


def target_logits(loss, cosine=SATURATED, labels=SATURATED_LABELS):
    logits = ops.convert_to_numpy(loss.logits(cosine, labels))
    return logits[np.arange(len(labels)), labels]


@pytest.fixture(params=POLICIES)
def policy(request):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(request.param)
    yield request.param
    keras.config.set_dtype_policy(before)


# --- published numbers ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "targets", "mean"),
    [
        (
            losses.ArcFace(0.5, gradient="straight_through"),
            [26.52229, -62.93785, 56.02741, -59.93203],
            41.917473,
        ),
        (losses.ArcFace(0.5), [26.52229, -76.14162, 56.02741, -78.70161], 49.910805),
        (losses.ArcFace(0.5, easy_margin=True), [26.52229, -60.8, 56.02741, -63.36], 42.239979),
        (losses.CosFace(0.35), [28.8, -83.2, 41.59936, -85.76], 53.440018),
        (losses.CosFace(0.4), None, 55.040417),
        (losses.ArcFace(0.35, gradient="straight_through"), None, 42.845191),
    ],
    ids=["insightface", "classic", "easy", "cosface", "cosface .4", "arcface .35"],
)
def test_logits_and_loss_are_the_published_ones(loss, targets, mean):
    if targets is not None:
        np.testing.assert_allclose(target_logits(loss), targets, atol=1e-4)
    assert number(loss(SATURATED_LABELS, SATURATED)) == pytest.approx(mean, abs=2e-5)


@pytest.mark.parametrize(
    ("loss", "value", "derivative"),
    [
        (losses.ArcFace(scale=8, gradient="exact"), 3.943807, -9.056109),
        (losses.ArcFace(scale=8, gradient="straight_through"), 3.943807, -7.845005),
        (losses.CosFace(scale=8), 2.965903, -7.587889),
        (losses.CombinedMargin(1, 0.5, 0, scale=8), 3.943807, -9.056109),
        (losses.CombinedMargin(1, 0, 0.35, scale=8), 2.965903, -7.587889),
    ],
    ids=["exact", "straight_through", "cosface", "combined arc", "combined cos"],
)
def test_the_two_gradients_are_the_published_ones(loss, value, derivative):
    loss_value, gradient = value_and_gradient(lambda c: loss(np.array([0]), c), UNSATURATED)
    assert loss_value == pytest.approx(value, abs=2e-6)
    assert gradient[0, 0] == pytest.approx(derivative, abs=1e-5)


@pytest.mark.parametrize(
    ("t_alpha", "expected", "std"),
    [(1.0, [27.789448, 22.956749], 14.142136), (0.01, [25.939335, 25.251423], 99.141418)],
)
def test_adaface_is_the_authors(t_alpha, expected, std):
    loss = losses.AdaFace(t_alpha=t_alpha)
    cosine = np.array([[0.8, 0.1], [0.8, 0.1]], "float32")
    labels, norms = np.array([0, 0]), np.array([10.0, 30.0], "float32")
    state = loss.next_state(loss.initial_state(), cosine, labels, norms)
    assert number(state["norm_mean"]) == pytest.approx(20.0)
    assert number(state["norm_std"]) == pytest.approx(std, rel=1e-6)
    logits = ops.convert_to_numpy(loss.logits(cosine, labels, state, norms))
    np.testing.assert_allclose(logits[:, 0], expected, atol=2e-5)
    np.testing.assert_allclose(logits[:, 1], 6.4, atol=1e-5)


def test_curricularface_is_the_authors():
    loss = losses.CurricularFace()
    cosine, labels = np.array([[0.8, 0.6, 0.1]], "float32"), np.array([0])
    state = loss.initial_state()
    for t, hard in ((0.008, 23.347202), (0.01592, 23.651329)):
        state = loss.next_state(state, cosine, labels)
        assert number(state["curriculum_t"]) == pytest.approx(t, rel=1e-5)
        logits = ops.convert_to_numpy(loss.logits(cosine, labels, state))
        np.testing.assert_allclose(logits, [[26.52229, hard, 6.4]], atol=2e-5)


# --- against an independent derivation -----------------------------------------------------------


def reference(c, m1, m2, m3):
    """Return cos(m1·arccos c + m2) − m3 and its derivative, in float64."""
    theta = np.arccos(c)
    value = np.cos(m1 * theta + m2) - m3
    return value, m1 * np.sin(m1 * theta + m2) / np.sin(theta)


@settings(max_examples=40, deadline=None)
@given(
    c=st.floats(-1023 / 1024, 1023 / 1024, width=32, allow_subnormal=False),
    m1=st.sampled_from([1.0, 0.8, 1.35, 2.0, 4.0]),
    m2=st.floats(0.0, 1.5),
    m3=st.floats(0.0, 0.6),
)
def test_value_and_exact_gradient_match_the_formula(c, m1, m2, m3):
    value, derivative = reference(np.float64(c), m1, m2, m3)
    step = 1e-6
    difference = reference(c + step, m1, m2, m3)[0] - reference(c - step, m1, m2, m3)[0]
    assert difference / (2 * step) == pytest.approx(derivative, rel=1e-3, abs=1e-3)

    def margin(cosine):
        logits = losses.apply_margin(
            cosine, np.array([0]), m1=m1, m2=m2, m3=m3, scale=1, fallback=False
        )
        return logits[:, 0]

    ours, gradient = value_and_gradient(margin, np.array([[c, 0.1]], "float32"))
    assert ours[0] == pytest.approx(value, abs=3e-6)
    assert gradient[0, 0] == pytest.approx(derivative, rel=1e-4, abs=1e-4)
    assert gradient[0, 1] == 0


@settings(max_examples=25, deadline=None)
@given(
    c=st.floats(-1, 1, width=32, allow_subnormal=False),
    m1=st.sampled_from([1.0, 1.35, 4.0]),
    m2=st.floats(0.0, 1.5),
    m3=st.floats(0.0, 0.6),
)
def test_straight_through_keeps_the_value_and_has_gradient_one(c, m1, m2, m3):
    def margin(cosine):
        logits = losses.apply_margin(
            cosine, [0], m1=m1, m2=m2, m3=m3, scale=1, gradient="straight_through"
        )
        return logits[:, 0]

    ours, gradient = value_and_gradient(margin, np.array([[c, 0.1]], "float32"))
    expected = np.cos(m1 * np.arccos(np.float64(c)) + m2) - m3
    assert ours[0] == pytest.approx(expected, abs=1e-5)
    np.testing.assert_array_equal(gradient, [[1, 0]])


@pytest.mark.parametrize("options", [{"m1": 1.0, "m2": 0.5}, {"m1": 1.35}, {"m1": 4.0, "m2": 0.3}])
def test_with_fallback_the_target_never_rises_with_the_angle(options):
    angles = np.linspace(0, math.pi, 2001)
    cosine = np.stack([np.cos(angles), np.zeros_like(angles)], axis=1).astype("float32")
    logits = losses.apply_margin(cosine, np.zeros(len(angles), "int32"), scale=1, **options)
    assert np.all(np.diff(ops.convert_to_numpy(logits)[:, 0]) < 1e-6)


def test_sphereface_is_the_papers_piecewise_function():
    angles = np.array([0.1, 0.7, 1.0, 1.9, 2.8])
    cosine = np.stack([np.cos(angles), np.zeros(5)], axis=1).astype("float32")
    turns = np.floor(4 * angles / math.pi)
    expected = (-1.0) ** turns * np.cos(4 * angles) - 2 * turns
    logits = target_logits(losses.SphereFace(4, scale=1), cosine, np.zeros(5, "int32"))
    np.testing.assert_allclose(logits, expected, atol=2e-6)


def test_combined_margin_combines_all_three():
    expected = reference(np.float64(0.8), 0.9, 0.4, 0.15)[0]
    loss = losses.CombinedMargin(0.9, 0.4, 0.15, scale=1)
    logits = target_logits(loss, np.array([[0.8, 0.1]], "float32"), np.array([0]))
    assert logits[0] == pytest.approx(expected, abs=1e-6)


# --- precision -----------------------------------------------------------------------------------


def adaptive_logits(loss):
    norms = np.array([5.0, 80.0, 20.0], "float32")

    def logits(cosine, labels):
        state = loss.next_state(loss.initial_state(), cosine, labels, norms)
        return loss.logits(cosine, labels, state, norms)

    return logits


@pytest.mark.parametrize(
    "logits",
    [
        losses.ArcFace().logits,
        losses.ArcFace(gradient="straight_through").logits,
        losses.ArcFace(easy_margin=True).logits,
        losses.CosFace().logits,
        losses.SphereFace().logits,
        losses.SphereFace(4).logits,
        losses.CombinedMargin(1.2, 0.3, 0.1).logits,
        adaptive_logits(losses.AdaFace()),
        adaptive_logits(losses.CurricularFace()),
    ],
    ids=["arc", "straight", "easy", "cos", "sphere", "sphere 4", "combined", "ada", "curricular"],
)
@pytest.mark.parametrize("labels", ["ids", "one-hot"])
def test_value_and_gradient_are_finite_at_the_poles(logits, labels, policy):
    cosine = np.array([[1.0, -1.0], [-1.0, 1.0], [1.0, 1.0]], "float32")
    y = np.array([0, 0, 1]) if labels == "ids" else np.eye(2, dtype="float32")[[0, 0, 1]]

    def half(c):
        return logits(ops.cast(c, POLICIES[policy]), y)

    value, gradient = value_and_gradient(half, cosine)
    assert value.dtype == np.float32
    assert np.all(np.isfinite(value)) and np.all(np.isfinite(gradient))


def test_loss_is_float32_and_ids_survive_under_every_policy(policy):
    cosine = np.zeros((2, 5000), "float32")
    cosine[0, 4999] = cosine[1, 4097] = 1.0
    loss = losses.ArcFace()(np.array([4999, 4097]), ops.cast(cosine, POLICIES[policy]))
    assert keras.backend.standardize_dtype(loss.dtype) == "float32"
    assert number(loss) == pytest.approx(0.0, abs=1e-3)


def test_ids_up_to_ten_million_survive():
    cosine = np.zeros((1, 10_000_000), "float32")
    cosine[0, 9_999_999] = 1.0
    assert number(losses.CosFace()(np.array([9_999_999]), cosine)) < 1e-3
    assert number(losses.CosFace()(np.array([9_999_998]), cosine)) > 60


def test_rounding_beyond_one_is_clipped():
    beyond = np.array([[1.0078125, -1.0078125]], "float32")
    exact = losses.ArcFace()([0], np.sign(beyond))
    assert number(losses.ArcFace()([0], beyond)) == number(exact)


# --- labels, weights, configuration --------------------------------------------------------------


def every_loss():
    return [
        losses.ArcFace(0.4, 32.0, "straight_through", fallback=True, label_smoothing=0.1),
        losses.CosFace(0.3, 32.0, reduction="sum"),
        losses.SphereFace(1.5, 32.0, name="mine"),
        losses.CombinedMargin(0.9, 0.4, 0.15, 32.0, easy_margin=True),
        losses.CurricularFace(0.4, 32.0, 0.9),
        losses.AdaFace(0.3, 0.5, 32.0, 0.1, epsilon=1e-2),
    ]


@pytest.mark.parametrize("loss", every_loss()[:4], ids=lambda loss: loss.name)
@pytest.mark.parametrize("dtype", ["uint8", "int64", "float32"])
def test_all_forms_of_hard_labels_agree(loss, dtype):
    expected = number(loss(SATURATED_LABELS, SATURATED))
    ids = SATURATED_LABELS.astype(dtype)
    for labels in (ids, ids[:, None], np.eye(3, dtype=dtype)[SATURATED_LABELS]):
        assert number(loss(labels, SATURATED)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("loss", every_loss()[4:], ids=lambda loss: loss.name)
def test_all_forms_of_hard_labels_agree_for_adaptive_losses(loss):
    norms, ids = np.array([5.0, 20, 30, 80], "float32"), SATURATED_LABELS
    results = []
    for labels in (ids, ids[:, None], np.eye(3, dtype="float32")[ids]):
        state = loss.next_state(loss.initial_state(), SATURATED, labels, norms)
        results.append(ops.convert_to_numpy(loss.logits(SATURATED, labels, state, norms)))
    np.testing.assert_allclose(results[1], results[0], atol=1e-5)
    np.testing.assert_allclose(results[2], results[0], atol=1e-5)


def test_soft_labels_weigh_the_margin_by_their_mass():
    logits = losses.CosFace(0.4, 10.0).logits(UNSATURATED, np.array([[0.7, 0.3, 0.0]], "float32"))
    np.testing.assert_allclose(ops.convert_to_numpy(logits), [[2.2, 3.3, 4.0]], atol=1e-5)


def test_label_smoothing_is_that_of_keras_on_the_margin_logits():
    loss = losses.ArcFace(label_smoothing=0.1)
    one_hot = np.eye(3, dtype="float32")[SATURATED_LABELS]
    keras_loss = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1)
    expected = number(keras_loss(one_hot, loss.logits(SATURATED, SATURATED_LABELS)))
    assert number(loss(SATURATED_LABELS, SATURATED)) == pytest.approx(expected, rel=1e-5)
    assert number(loss(one_hot, SATURATED)) == pytest.approx(expected, rel=1e-5)


def test_sample_weights_and_reductions_are_those_of_keras():
    each = ops.convert_to_numpy(losses.CosFace(reduction=None)(SATURATED_LABELS, SATURATED))
    assert each.shape == (4,)
    weights = np.array([1.0, 0.0, 2.0, 0.5], "float32")
    weighted = number(losses.CosFace()(SATURATED_LABELS, SATURATED, sample_weight=weights))
    assert weighted == pytest.approx(float((each * weights).mean()), rel=1e-6)
    total = number(losses.CosFace(reduction="sum")(SATURATED_LABELS, SATURATED))
    assert total == pytest.approx(float(each.sum()), rel=1e-6)


def test_an_id_that_is_not_a_class_is_not_a_number():
    each = ops.convert_to_numpy(losses.ArcFace(reduction=None)([0, 3, -1, 1], SATURATED))
    np.testing.assert_array_equal(np.isnan(each), [False, True, True, False])


@pytest.mark.parametrize("loss", every_loss(), ids=lambda loss: loss.name)
def test_losses_serialize_with_every_argument(loss):
    copy = keras.losses.deserialize(keras.losses.serialize(loss))
    assert type(copy) is type(loss)
    assert copy.get_config() == loss.get_config()
    assert copy.dtype == "float32"


def test_adaface_ignores_the_statistics_of_a_single_image():
    loss = losses.AdaFace(t_alpha=0.5)
    state = loss.next_state(loss.initial_state(), UNSATURATED, [0], np.array([70.0], "float32"))
    assert {key: number(value) for key, value in state.items()} == loss.initial_state()


def test_no_gradient_runs_into_state_or_norms():
    labels = np.array([0, 1])
    cosine = np.array([[0.8, 0.6], [0.7, 0.2]], "float32")
    ada, curricular = losses.AdaFace(t_alpha=1.0), losses.CurricularFace()

    def through_norms(norms):
        state = ada.next_state(ada.initial_state(), cosine, labels, norms)
        return ada.logits(cosine, labels, state, norms) + 0 * ops.sum(norms)

    def through_t(c):
        return curricular.next_state(curricular.initial_state(), c, labels)["curriculum_t"] + 0 * c

    _, gradient = value_and_gradient(through_norms, np.array([10.0, 30.0], "float32"))
    np.testing.assert_array_equal(gradient, [0, 0])
    np.testing.assert_array_equal(value_and_gradient(through_t, cosine)[1], np.zeros((2, 2)))


def test_supplied_updates_the_state_only_when_training():
    loss = losses.CurricularFace()
    state = MarginState(loss)
    with loss.supplied(state, training=False):
        loss([0], UNSATURATED)
    assert number(state.read()["curriculum_t"]) == 0
    with loss.supplied(state, training=True):
        loss([0], UNSATURATED)
    state.reset_state()
    assert number(state.result()["curriculum_t"]) == pytest.approx(0.005)


@pytest.mark.parametrize("loss", [losses.AdaFace(), losses.CurricularFace()])
def test_an_adaptive_loss_called_bare_says_what_it_needs(loss):
    with pytest.raises(ValueError, match="MarginModel"):
        loss([0], UNSATURATED)


def test_adaface_without_norms_says_so():
    loss = losses.AdaFace()
    with pytest.raises(ValueError, match="norms=None"):
        loss.logits(UNSATURATED, [0], loss.initial_state())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: losses.ArcFace(3.5), "margin is an angle"),
        (lambda: losses.CosFace(-0.1), "margin must not be negative"),
        (lambda: losses.SphereFace(0), "margin must be greater"),
        (lambda: losses.AdaFace(margin=-1.0), "margin is an angle"),
        (lambda: losses.CurricularFace(margin=-1.0), "margin is an angle"),
        (lambda: losses.CombinedMargin(m2=4.0), "m2 is an angle"),
        (lambda: losses.ArcFace(scale=0), "scale must be greater"),
        (lambda: losses.ArcFace(gradient="approximate"), "gradient must be one of"),
        (lambda: losses.CosFace(label_smoothing=1.0), "label_smoothing must be in"),
        (lambda: losses.AdaFace(h=0), "h must be greater"),
        (lambda: losses.AdaFace(t_alpha=2), "t_alpha must be in"),
        (lambda: losses.AdaFace(epsilon=0), "epsilon must be in"),
        (lambda: losses.CurricularFace(momentum=-1), "momentum must be in"),
        (lambda: losses.ArcFace()(np.zeros((4, 2)), SATURATED), "Labels must be class ids"),
        (lambda: losses.ArcFace()(np.zeros((4, 3, 1)), SATURATED), "Labels must be class ids"),
        (lambda: losses.ArcFace()([0], np.zeros((4,))), "Cosines must have shape"),
    ],
)
def test_errors_name_the_argument(make, message):
    with pytest.raises(ValueError, match=message):
        make()
