import io
import logging
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from keras_hybrid.data import (
    AlignedSource,
    ArraySource,
    Subset,
    UnreadableImageError,
    align_face,
    face_template,
    load_arrays,
    open_source,
    similarity_transform,
)

pytestmark = pytest.mark.any_backend

Image = pytest.importorskip("PIL.Image")

SHARED = Path(__file__).parents[2].parent / "shared"


def similarity(scale, angle, shift):
    """(2, 3): scale, rotation by an angle in degrees, translation."""
    c, s = scale * np.cos(np.radians(angle)), scale * np.sin(np.radians(angle))
    return np.array([[c, -s, shift[0]], [s, c, shift[1]]])


def moved(matrix, points):
    return np.asarray(points) @ matrix[:, :2].T + matrix[:, 2]


def scene(x, y):
    """A smooth picture that is known between its pixels, too."""
    red = 127 + 60 * np.sin(x / 9) + 50 * np.cos(y / 7)
    green = 127 + 100 * np.sin((x + 2 * y) / 23)
    blue = 127 + 100 * np.cos(np.hypot(x - 150, y - 120) / 11)
    return np.stack([red, green, blue], axis=-1)


def photograph(height=240, width=300):
    y, x = np.mgrid[:height, :width].astype(float)
    return np.rint(scene(x, y)).astype(np.uint8)


# similarities


def by_complex_numbers(points, target):
    """The same least squares otherwise: z → a z + b with complex a and b."""
    z, w = points @ [1, 1j], target @ [1, 1j]
    (a, b), *_ = np.linalg.lstsq(np.stack([z, np.ones_like(z)], axis=1), w, rcond=None)
    return np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])


coordinates = st.lists(
    st.tuples(*[st.floats(-500, 500, allow_subnormal=False)] * 2), min_size=2, max_size=9
)


@settings(max_examples=200, deadline=None)
@given(coordinates, st.data())
def test_umeyama_is_the_least_squares_of_complex_numbers(points, data):
    target = data.draw(st.lists(coordinates.map(lambda c: c[0]), min_size=9, max_size=9))
    points, target = np.array(points), np.array(target[: len(points)])
    expected = by_complex_numbers(points, target)
    widths = [np.linalg.norm(p - p.mean(0)) for p in (points, target)]
    assume(min(widths) > 1 and np.hypot(*expected[:, 0]) > 1e-4 * widths[1] / widths[0])
    np.testing.assert_allclose(similarity_transform(points, target), expected, rtol=0, atol=1e-6)


@settings(max_examples=200, deadline=None)
@given(
    coordinates,
    st.floats(0.02, 50),
    st.floats(-180, 180),
    st.tuples(*[st.floats(-1e3, 1e3)] * 2),
)
def test_a_similarity_is_recovered_exactly(points, scale, angle, shift):
    points = np.array(points)
    assume(np.linalg.norm(points - points.mean(0)) > 1)
    matrix = similarity(scale, angle, shift)
    found = similarity_transform(points, moved(matrix, points))
    assert found.shape == (2, 3) and found.dtype == np.float64
    np.testing.assert_allclose(moved(found, points), moved(matrix, points), rtol=0, atol=1e-7)
    assert np.linalg.det(found[:, :2]) == pytest.approx(scale**2, rel=1e-7)


def test_there_is_never_a_reflection():
    mirrored = face_template() * [-1, 1]
    matrix = similarity_transform(mirrored, face_template())
    assert np.linalg.det(matrix[:, :2]) > 0
    np.testing.assert_allclose(matrix, by_complex_numbers(mirrored, face_template()), atol=1e-9)


SQUARE = np.array([(0, 0), (1, 0), (1, 1), (0, 1.0)])


@pytest.mark.parametrize(
    ("points", "target", "message"),
    [
        (np.full((5, 2), 1 / 3), face_template(), "coincide"),
        (np.full((5, 2), 1e9), face_template(), "coincide"),
        (face_template(), np.full((5, 2), 7.0), "coincide"),
        (SQUARE, SQUARE * [-1, 1], "every rotation fits"),
        (SQUARE[:1], SQUARE[:1], "`points` must have shape"),
        (SQUARE.T, SQUARE.T, "`points` must have shape"),
        (SQUARE, SQUARE[:3], "as many, got 4 and 3"),
        (SQUARE * np.nan, SQUARE, "`points` must be finite"),
        (SQUARE, np.full((4, 2), np.inf), "`target` must be finite"),
    ],
)
def test_what_determines_no_similarity_is_refused(points, target, message):
    with pytest.raises(ValueError, match=message):
        similarity_transform(points, target)


# crops


def test_the_template_is_arcface_s_and_grows_with_the_crop():
    np.testing.assert_array_equal(
        face_template(),
        [
            [38.2946, 51.6963],
            [73.5318, 51.5014],
            [56.0252, 71.7366],
            [41.5493, 92.3655],
            [70.7299, 92.2041],
        ],
    )
    np.testing.assert_allclose(face_template(224), 2 * face_template())
    for size in (0, -1, 1.5, (112, 96)):
        with pytest.raises(ValueError, match="image_size"):
            face_template(size)


@pytest.mark.parametrize(
    ("size", "matrix"),
    [
        (112, similarity(1.0, 0, (0, 0))),
        (112, similarity(1.0, 0, (70.5, 40.25))),
        (112, similarity(1.3, 25, (110, 20))),
        (160, similarity(0.6, -40, (60, 120))),
        (64, similarity(0.9, 180, (200, 180))),
    ],
)
def test_a_crop_shows_what_the_photograph_has_at_each_pixel_s_centre(size, matrix):
    """Half a pixel off, or rounding downwards, would show."""
    landmarks = moved(matrix, face_template(size))
    crop = align_face(photograph(), landmarks, size)
    assert crop.shape == (size, size, 3) and crop.dtype == np.uint8
    y, x = np.mgrid[:size, :size]
    there = moved(matrix, np.stack([x, y], axis=-1))
    is_inside = ((there >= 2) & (there <= [297, 237])).all(-1)
    assert is_inside.mean() > 0.7
    difference = np.abs(crop - scene(there[..., 0], there[..., 1]))[is_inside]
    assert difference.max() < 1.2 and difference.mean() < 0.4
    outside = ((there < -1) | (there > [301, 241])).any(-1)
    assert not crop[outside].any()


@pytest.mark.parametrize("scale", [1.9, 3.2, 5.0])
def test_a_large_face_is_averaged_where_it_lies(scale):
    """Noise goes by its mean over squares of pixels, and what is below it does not move."""
    matrix = similarity(scale, 20, (90, 10))
    landmarks = moved(matrix, face_template(32))
    noise = np.random.default_rng(0).normal(0, 20, (240, 300, 1))
    noisy = np.clip(photograph() * 0.5 + 64 + noise, 0, 255).astype(np.uint8)
    plain = (photograph() * 0.5 + 64).astype(np.uint8)
    exact = align_face(plain, landmarks, 32).astype(float)
    inside = exact.min(-1) > 60  # beside the photograph is black
    assert inside.mean() > 0.5

    def error(antialias):
        return (align_face(noisy, landmarks, 32, antialias) - exact)[inside]

    factor = int(scale)
    assert abs(error(True).mean()) < 1.0
    if factor == 1:
        np.testing.assert_array_equal(error(True), error(False))
    else:
        assert error(True).std() < 1.3 / factor * error(False).std() + 1.0


def test_beside_the_photograph_is_nothing():
    for shift in ([1000, 0], [0, -1000]):
        assert not align_face(photograph(), face_template() + np.array(shift)).any()


def test_an_aligned_crop_stays_itself():
    image = np.random.default_rng(0).integers(0, 256, (112, 112, 3), np.uint8)
    np.testing.assert_array_equal(align_face(image, face_template()), image)
    shifted = align_face(image, face_template() + np.array([3, 5]))
    np.testing.assert_array_equal(shifted[:-5, :-3], image[5:, 3:])


@pytest.mark.parametrize(
    ("landmarks", "options", "message"),
    [
        (np.zeros((5, 2)), {}, "`landmarks` fit no face"),
        (np.full((5, 2), np.nan), {}, "`landmarks` must be finite"),
        (face_template()[:4], {}, r"`landmarks` must have shape \(5, 2\), got \(4, 2\)"),
        (face_template().ravel(), {}, r"`landmarks` must have shape"),
        (face_template(), {"image_size": 0}, "image_size"),
    ],
)
def test_wrong_arguments_are_named(landmarks, options, message):
    with pytest.raises(ValueError, match=message):
        align_face(photograph(), landmarks, **options)


@pytest.mark.parametrize(
    "image", [np.zeros((9, 9, 3)), np.zeros((9, 9), np.uint8), np.zeros((0, 9, 3), np.uint8)]
)
def test_what_is_no_rgb_image_is_named(image):
    with pytest.raises(ValueError, match="`image` must be uint8"):
        align_face(image, face_template())


# sources


@pytest.fixture
def table(tmp_path):
    """Four photographs with landmarks, and one whose landmarks are missing."""
    rng = np.random.default_rng(0)
    header = ",".join(["file", "label", *(f"{axis}{i}" for i in range(5) for axis in "xy")])
    lines = [header]
    for i in range(5):
        Image.fromarray(photograph()).save(tmp_path / f"{i}.png")
        matrix = similarity(1 + 0.1 * i, 10 * i, (80 + i, 40))
        landmarks = moved(matrix, face_template()) + rng.normal(0, 0.5, (5, 2))
        values = ["nan"] * 10 if i == 3 else [f"{value:.4f}" for value in landmarks.ravel()]
        lines.append(",".join([f"{i}.png", str(i % 2), *values]))
    path = tmp_path / "faces.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_photographs_are_aligned_when_they_are_read(table):
    plain, source = open_source(table), open_source(table, align=True)
    assert isinstance(source, AlignedSource)
    for index in (0, 1, 2, 4):
        expected = align_face(plain.read(index), plain.landmarks[index])
        np.testing.assert_array_equal(source.read(index), expected)
        matrix = similarity_transform(plain.landmarks[index], face_template())
        np.testing.assert_allclose(
            source.landmarks[index], moved(matrix, plain.landmarks[index]), atol=1e-3
        )
        assert np.abs(source.landmarks[index] - face_template()).max() < 2
    assert source.landmarks.dtype == np.float32
    np.testing.assert_array_equal(source.labels, plain.labels)
    assert source.paths == plain.paths and source.class_names == plain.class_names
    small = open_source(table, align=True, image_size=56)
    assert small.read(0).shape == (56, 56, 3)
    np.testing.assert_allclose(small.landmarks[0], source.landmarks[0] / 2, atol=1e-3)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(small)).read(1), small.read(1))


def test_an_image_without_usable_landmarks_is_skipped_with_a_count(table, caplog):
    source = open_source(table, align=True)
    with pytest.raises(UnreadableImageError, match=r"3\.png: its landmarks fit no face"):
        source.read(3)
    assert np.isnan(source.landmarks[3]).all()
    with caplog.at_level(logging.WARNING):
        loaded = load_arrays(source, 112)
    np.testing.assert_array_equal(loaded.kept, [0, 1, 2, 4])
    assert "1 of 5 images" in caplog.text
    np.testing.assert_array_equal(loaded.landmarks, source.landmarks[loaded.kept])


def test_a_cache_depends_on_the_crop(table):
    plain = open_source(table)
    prints = [
        plain.fingerprint(),
        *(AlignedSource(plain, size).fingerprint() for size in (112, 64)),
    ]
    prints.append(AlignedSource(plain, antialias=False).fingerprint())
    plain.landmarks = plain.landmarks + np.float32(1)
    prints.append(AlignedSource(plain).fingerprint())
    assert len(set(prints)) == 5


@pytest.mark.parametrize("antialias", [True, False])
def test_large_photographs_are_smoothed_as_where_the_model_is_used(antialias):
    rng = np.random.default_rng(0)
    photograph = rng.integers(0, 256, (400, 400, 3), dtype=np.uint8)
    landmarks = (8 * face_template(48) + 5).astype(np.float32)
    source = ArraySource(photograph[None], [0])
    source.landmarks = landmarks[None]
    options = {} if antialias else {"antialias": False}  # smoothed unless told
    crop = AlignedSource(source, 48, **options).read(0)
    expected = align_face(photograph, landmarks, 48, antialias=antialias)
    np.testing.assert_array_equal(crop, expected)
    assert (crop.std() < 20) == antialias


def test_a_subset_can_be_aligned_and_an_aligned_source_divided(table):
    plain = open_source(table)
    first = AlignedSource(Subset(plain, [2, 0]))
    second = Subset(AlignedSource(plain), [2, 0])
    np.testing.assert_array_equal(first.read(0), second.read(0))
    np.testing.assert_array_equal(first.landmarks, second.landmarks)


def test_a_source_without_landmarks_or_with_mirrored_ones_is_refused(table):
    with pytest.raises(ValueError, match=r"`source`=ArraySource.*has no landmarks"):
        AlignedSource(ArraySource(np.zeros((1, 4, 4, 3), np.uint8), [0]))
    with pytest.raises(ValueError, match="no landmarks"):
        open_source("synthetic:2x2", align=True)
    source = open_source(table)
    source.landmarks = source.landmarks[:, [1, 0, 2, 4, 3]]  # the person's left, not the image's
    with pytest.raises(ValueError, match="mirrored face: they must be image-left eye"):
        AlignedSource(source)


@pytest.mark.parametrize("archive", ["celeba_faces_112.zip", "lfw_112.zip"])
def test_real_landmarks_of_aligned_crops_are_close_to_the_template(archive):
    path = SHARED / "data" / archive
    if not path.exists():
        pytest.skip(f"{archive} is not here")
    with zipfile.ZipFile(path) as file:
        header, *rows = io.TextIOWrapper(file.open("index.csv")).read().splitlines()
    first = header.split(",").index("x0")
    landmarks = np.array([row.split(",")[first : first + 10] for row in rows], np.float64)
    landmarks = landmarks.reshape(-1, 5, 2)
    np.testing.assert_allclose(landmarks.mean(0), face_template(), atol=3)
    # They have been aligned by these very points: nothing is left to do.
    crops = Subset(open_source(path / "index.csv", label_column="identity"), range(0, 400, 8))
    source = AlignedSource(crops)
    moves = np.linalg.norm(source.landmarks - crops.landmarks, axis=-1)
    assert moves.max() < 0.02
    for index in range(10):
        change = source.read(index).astype(int) - crops.read(index)
        assert np.abs(change).mean() < 0.2
