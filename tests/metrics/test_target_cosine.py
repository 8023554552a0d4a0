import keras
import numpy as np
import pytest

from keras_hybrid.metrics import MeanTargetCosine


def cosines_and_labels(count=12, classes=5, seed=0):
    rng = np.random.default_rng(seed)
    return rng.uniform(-1, 1, (count, classes)).astype("float32"), rng.integers(0, classes, count)


def test_result_is_the_mean_cosine_of_the_labels_classes_over_batches():
    cosines, labels = cosines_and_labels()
    metric = MeanTargetCosine()
    for rows in (slice(0, 7), slice(7, 12)):
        metric.update_state(labels[rows], cosines[rows])
    expected = cosines[np.arange(12), labels].mean()
    assert float(metric.result()) == pytest.approx(expected, abs=1e-6)
    metric.reset_state()
    assert float(metric.result()) == 0


@pytest.mark.parametrize("dtype", ["int64", "uint8", "float32"])
@pytest.mark.parametrize("form", ["ids", "column", "one-hot"])
def test_labels_of_every_form_agree(form, dtype):
    cosines, labels = cosines_and_labels()
    forms = {"ids": labels, "column": labels[:, None], "one-hot": np.eye(5)[labels]}
    metric = MeanTargetCosine()
    metric.update_state(forms[form].astype(dtype), cosines)
    expected = cosines[np.arange(12), labels].mean()
    assert float(metric.result()) == pytest.approx(expected, abs=1e-6)


def test_mixed_labels_weigh_the_cosines():
    metric = MeanTargetCosine()
    metric.update_state([[0.25, 0.75]], [[0.8, 0.4]])
    assert float(metric.result()) == pytest.approx(0.5)


def test_sample_weights_weigh_the_images():
    metric = MeanTargetCosine()
    metric.update_state([0, 1], [[0.5, 0.0], [0.0, -0.5]], sample_weight=[3, 1])
    assert float(metric.result()) == pytest.approx(0.25)


def test_half_precision_cosines_are_summed_in_float32():
    cosines = np.full((2048, 2), 0.3, "float16")
    metric = MeanTargetCosine()
    for _ in range(4):
        metric.update_state(np.zeros(2048, "int32"), cosines)
    assert float(metric.result()) == pytest.approx(float(np.float16(0.3)), abs=1e-5)


def test_bad_shapes_are_named():
    metric = MeanTargetCosine()
    with pytest.raises(ValueError, match="y_pred must have shape"):
        metric.update_state([0], [0.5])
    with pytest.raises(ValueError, match="y_true must hold"):
        metric.update_state(np.zeros((2, 3)), np.zeros((2, 4)))


def test_survives_serialization():
    metric = MeanTargetCosine(name="cosine")
    again = keras.metrics.deserialize(keras.metrics.serialize(metric))
    assert isinstance(again, MeanTargetCosine)
    assert again.name == "cosine"


def test_is_logged_by_fit_and_evaluate():
    cosines, labels = cosines_and_labels()
    model = keras.Sequential([keras.Input((5,)), keras.layers.Identity()])
    model.compile(loss="mse", metrics=[MeanTargetCosine()])
    expected = cosines[np.arange(12), labels].mean()
    logs = model.fit(cosines, labels[:, None], batch_size=5, epochs=1, verbose=0).history
    assert logs["mean_target_cosine"][0] == pytest.approx(expected, abs=1e-5)
    logs = model.evaluate(cosines, labels[:, None], batch_size=4, verbose=0, return_dict=True)
    assert logs["mean_target_cosine"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("label", [-1, 3])
def test_an_id_that_is_no_class_makes_it_not_a_number(label):
    metric = MeanTargetCosine()
    metric.update_state([0, label], [[0.1, 0.2, 0.3]] * 2)
    assert np.isnan(float(metric.result()))
