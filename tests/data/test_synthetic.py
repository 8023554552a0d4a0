import numpy as np
import pytest

from keras_hybrid.data import synthetic_identities

pytestmark = pytest.mark.any_backend


def test_shapes_types_and_labels():
    images, labels = synthetic_identities(3, 4, image_size=16)
    assert images.shape == (12, 16, 16, 3)
    assert images.dtype == np.uint8
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(labels, np.repeat([0, 1, 2], 4))


def test_same_seed_gives_the_same_pictures_and_another_seed_other_people():
    first, _ = synthetic_identities(2, 2, 16, seed=3)
    again, _ = synthetic_identities(2, 2, 16, seed=3)
    other, _ = synthetic_identities(2, 2, 16, seed=4)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_an_identity_is_the_same_whatever_the_number_of_identities_and_images():
    many, labels = synthetic_identities(40, 3, 16)
    few, _ = synthetic_identities(2, 3, 16, first_identity=37)
    np.testing.assert_array_equal(many[(labels == 37) | (labels == 38)], few)
    more, more_labels = synthetic_identities(2, 5, 16, first_identity=37)
    np.testing.assert_array_equal(more[more_labels == 0][:3], few[:3])


def test_images_of_an_identity_differ():
    images, _ = synthetic_identities(2, 6, 32)
    assert len(np.unique(images.reshape(12, -1), axis=0)) == 12


def test_a_linear_model_on_pixels_fails():
    pytest.importorskip("sklearn")
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    images, labels = synthetic_identities(32, 24, 32)
    train = np.arange(len(images)) % 24 < 18
    for side, shrinkage in ((8, 0.1), (16, 0.3)):
        shape = (len(images), side, 32 // side, side, 32 // side, 3)
        pixels = images.reshape(shape).mean(axis=(2, 4)).reshape(len(images), -1)
        model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage)
        model.fit(pixels[train], labels[train])
        assert model.score(pixels[~train], labels[~train]) < 0.5


@pytest.mark.parametrize(
    ("name", "value"),
    [("num_identities", 0), ("images_per_identity", 1.5), ("image_size", 4), ("seed", -1)],
)
def test_a_wrong_argument_is_named(name, value):
    with pytest.raises(ValueError, match=name):
        synthetic_identities(**{name: value})
