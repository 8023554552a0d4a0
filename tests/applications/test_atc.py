"""ATC's reconstruction against the sizes that the report publishes."""

import math

import pytest

import keras_hybrid as kh
from tests.cases import without_weights

LINEAR_PROJECTION = {"residual_projection": False}
LINEAR_FEED_FORWARD = {"residual_feed_forward": False}


def trainable(name, **arguments) -> int:
    with without_weights():
        model = kh.create_model(name, **arguments)
    return sum(math.prod(variable.shape) for variable in model.trainable_variables)


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("atc_3", 2.9),
        ("atc_5_113", 6.4),
        ("atc_5_131", 3.3),
        ("atc_5_311", 2.9),
        ("atc_9", 12.0),
        ("atc_13", 19.2),
        ("atc_15", 19.7),
        ("atc_3_res", 3.3),
        ("atc_15_res", 20.1),
    ],
)
def test_sizes_are_those_of_tables_3_to_5(name, published):
    assert round(trainable(name) / 1e6, 1) == published


@pytest.mark.parametrize(
    ("arguments", "parameters"),
    [
        (LINEAR_PROJECTION, 2_874_148),  # MLP+Res, published as 2.9
        (LINEAR_FEED_FORWARD, 3_115_556),  # Res+MLP, as 3.9: missed
        ({**LINEAR_PROJECTION, **LINEAR_FEED_FORWARD}, 3_115_556),  # CvT, as 5.8: missed
    ],
    ids=["MLP+Res", "Res+MLP", "CvT"],
)
def test_the_rows_of_table_6_are_keywords(arguments, parameters):
    assert trainable("atc_3", **arguments) == parameters


def test_without_residual_parts_it_is_cvt():
    depths = (1, 3, 2)
    cvt = trainable("cvt_13_32", depths=depths)
    atc = trainable("atc_3", depths=depths, **LINEAR_PROJECTION, **LINEAR_FEED_FORWARD)
    assert cvt == atc == 5_805_092
