"""Landmarks stay on what they mark: bright dots are drawn there and found again by centroid."""

import csv

import keras
import numpy as np
import pytest

from keras_hybrid.data import (
    ArraySource,
    Batches,
    CSVSource,
    face_augmentation,
    image_augmentation,
    load_arrays,
    make_pairs,
    normalize_landmarks,
    open_source,
    read_landmarks,
    read_pairs,
    split_source,
)

COLUMNS = [f"{axis}{point}" for point in range(5) for axis in "xy"]


def faces(count, height=48, width=56, seed=0):
    """Landmarks (count, 5, 2) of upright faces."""
    middle = np.array([(-9, -7), (9, -7), (0, 1), (-6, 9), (6, 9)])
    moved = np.random.default_rng(seed).uniform(-3, 3, (count, 5, 2))
    return (middle + moved + ((width - 1) / 2, (height - 1) / 2)).astype(np.float32)


def dots(points, height=48, width=56):
    """Black images (n, height, width, 3) with a soft dot at each of points (n, 2)."""
    y, x = np.mgrid[:height, :width]
    square = (x - points[:, :1, None]) ** 2 + (y - points[:, 1:, None]) ** 2
    return np.rint(255 * np.exp(-square / 8))[..., None].repeat(3, axis=-1).astype(np.uint8)


def centroids(images):
    """Where the dots are: (n, 2)."""
    weights = images[..., 0].astype(np.float64)
    y, x = np.mgrid[: weights.shape[1], : weights.shape[2]]
    return np.stack([(weights * axis).sum((1, 2)) / weights.sum((1, 2)) for axis in (x, y)], 1)


def source_of(count=12, classes=3, landmarks=None):
    points = faces(count)
    source = ArraySource(dots(points[:, 2]), np.arange(count) % classes)
    source.landmarks = points if landmarks is None else landmarks
    return source


def write_table(path, names, landmarks, columns=("file", *COLUMNS), **more):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*columns, *more])
        for row, (name, points) in enumerate(zip(names, landmarks, strict=True)):
            values = [name, *np.ravel(points)][: len(columns)]
            writer.writerow([*values, *(column[row] for column in more.values())])
    return path


def folder_of_faces(root, count=12, classes=3, size=(48, 56)):
    """Images of a dot at the nose, and their table with labels and landmarks."""
    image_module = pytest.importorskip("PIL.Image")
    points = faces(count, *size)
    (root / "images").mkdir(parents=True)
    names = [f"{row:02d}.png" for row in range(count)]
    for name, image in zip(names, dots(points[:, 2], *size), strict=True):
        image_module.fromarray(image).save(root / "images" / name)
    labels = [row % classes for row in range(count)]
    return write_table(root / "index.csv", names, points, label=labels), points


# Pixels and landmarks move alike


@pytest.mark.parametrize("flip", [False, True])
def test_augmented_landmarks_are_where_the_augmented_pictures_show_them(flip):
    augment = face_augmentation(flip=flip, jitter=0, grey=0, erasing=0)
    points = faces(40)
    found = []
    for landmark in range(5):
        images = dots(points[:, landmark])
        pictures, moved = augment(images, seed=(3, 1), landmarks=points)
        np.testing.assert_array_equal(pictures, augment(images, seed=(3, 1)))
        found.append(centroids(pictures))
    expected = np.stack(found, axis=1)
    is_mirrored = expected[:, 0, 0] > expected[:, 1, 0]
    assert is_mirrored.any() == flip and not is_mirrored.all()
    for left, right in ((0, 1), (3, 4)):  # by what the picture shows: the left one has a smaller x
        pair = expected[:, [left, right]]
        expected[:, [left, right]] = np.take_along_axis(
            pair, np.argsort(pair[..., :1], axis=1), axis=1
        )
    assert moved.dtype == np.float32
    np.testing.assert_allclose(moved, expected, atol=0.1)
    assert np.abs(moved - points).max() > 3


def test_resized_landmarks_are_where_the_resized_pictures_show_them():
    source = source_of()
    loaded = load_arrays(source, (24, 42), landmarks=True)
    np.testing.assert_allclose(loaded.landmarks[:, 2], centroids(loaded.images), atol=0.05)
    lazy = Batches(source, batch_size=12, image_size=(24, 42), landmarks=source.landmarks)
    batch, _ = lazy[0]
    np.testing.assert_allclose(
        batch["landmarks"][:, 2] * (42, 24) - 0.5, centroids(batch["image"]), atol=0.05
    )


def test_normalised_landmarks_are_fractions_of_the_image_between_its_corners():
    corners = np.tile([(-0.5, -0.5), (9.5, 5.5), (4.5, 2.5), (-0.5, 5.5), (9.5, -0.5)], (2, 1, 1))
    expected = [(0, 0), (1, 1), (0.5, 0.5), (0, 1), (1, 0)]
    points = normalize_landmarks(corners, (6, 10))
    assert points.dtype == np.float32
    np.testing.assert_array_equal(points, [expected, expected])


# Batches


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("lazy", [False, True])
def test_batches_with_landmarks_resume_and_hold_what_batches_without_hold(workers, lazy):
    source = source_of(14)
    loaded = load_arrays(source, (48, 56))
    data = (source, None) if lazy else (loaded.images, loaded.labels)
    options = {"batch_size": 4, "augment": face_augmentation(), "seed": 5}
    given = {**options, "landmarks": source.landmarks}
    whole = Batches(*data, **given)
    expected = list(whole)
    whole.on_epoch_end()
    expected += list(whole)
    plain = list(Batches(*data, **options))
    for (batch, labels), (images, same_labels) in zip(expected[:4], plain, strict=True):
        np.testing.assert_array_equal(batch["image"], images)
        np.testing.assert_array_equal(labels, same_labels)
        assert batch["landmarks"].shape == (len(labels), 5, 2)
        assert batch["landmarks"].dtype == np.float32
    resumed = Batches(*data, **given, epoch=1, start_batch=2, workers=workers)
    for (batch, labels), (again, same_labels) in zip(list(resumed), expected[6:], strict=True):
        for key in ("image", "landmarks"):
            np.testing.assert_array_equal(batch[key], again[key])
        np.testing.assert_array_equal(labels, same_labels)


def test_a_replaced_image_brings_its_own_landmarks():
    points = faces(6)
    points[0] += 1000  # far outside
    points[3] = np.nan
    batches = Batches(
        source_of(6, 2, points), batch_size=6, shuffle=False, landmarks=points, workers=1
    )
    batch, labels = batches[0]
    np.testing.assert_array_equal(labels, [0, 1, 0, 1, 0, 1])
    expected = normalize_landmarks(points[[2, 1, 2, 5, 4, 5]], (48, 56))
    np.testing.assert_array_equal(batch["landmarks"], expected)
    assert [name for name, _ in sorted(batches.skipped)] == ["array[0]", "array[3]"]
    assert "far outside its 56×48 pixels" in sorted(batches.skipped)[0][1]
    loaded = load_arrays(source_of(6, 2, points), (48, 56), landmarks=True)
    np.testing.assert_array_equal(loaded.kept, [1, 2, 4, 5])
    assert len(load_arrays(source_of(6, 2, points), (48, 56))) == 6  # who needs no landmarks


def test_fit_takes_batches_with_landmarks():
    """What the labels are can only be told from the landmarks, and validation gets them, too."""
    points = faces(32)
    labels = np.arange(32) % 2
    points[labels == 1, :, 1] += 12
    image, landmarks = keras.Input((48, 56, 3), name="image"), keras.Input((5, 2), name="landmarks")
    x = keras.layers.Concatenate()(
        [keras.layers.GlobalMaxPooling2D()(image), keras.layers.Flatten()(landmarks - 0.5)]
    )
    model = keras.Model([image, landmarks], keras.layers.Dense(2, kernel_initializer="zeros")(x))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.1), loss=loss, metrics=["accuracy"])
    images = np.zeros((32, 48, 56, 3), np.uint8)
    augment = face_augmentation(jitter=0, grey=0, erasing=0)
    batches = Batches(images, labels, 8, augment=augment, landmarks=points)
    on_tensorflow = keras.backend.backend() == "tensorflow"
    history = model.fit(
        batches.to_tf_dataset() if on_tensorflow else batches,
        validation_data=Batches(images, labels, 8, shuffle=False, landmarks=points),
        epochs=20,
        shuffle=False,
        verbose=0,
        callbacks=[batches.callback()],
    ).history
    assert history["loss"][-1] < 0.5 * history["loss"][0]
    assert history["val_accuracy"][-1] == 1


def test_landmarks_that_cannot_be_their_images_are_refused():
    images, points = np.zeros((3, 48, 56, 3), np.uint8), faces(3)
    labels = [0, 1, 2]
    for landmarks, message in (
        (points[:2], r"numbers of shape \(3, 5, 2\)"),
        (points[:, :4], r"numbers of shape \(3, 5, 2\)"),
        (normalize_landmarks(points, (48, 56)), "image 0: .*pixels are needed, not fractions"),
        (points + np.float32([[[0]], [[0]], [[60]]]), "image 2: .*far outside its 56×48 pixels"),
        (points * np.float32([[[1]], [[np.nan]], [[1]]]), "image 1: .*not finite"),
    ):
        with pytest.raises(ValueError, match=message):
            Batches(images, labels, landmarks=landmarks)
    with pytest.raises(ValueError, match="does not move landmarks"):
        Batches(images, labels, landmarks=points, augment=image_augmentation(48))
    with pytest.raises(ValueError, match="`landmarks` must be numbers"):
        face_augmentation()(images, landmarks=points[:, :, :1])
    source = source_of(4, 2, faces(4)[:, [1, 0, 2, 4, 3]])  # the person's left first
    with pytest.raises(ValueError, match=r"Most landmarks of .* are those of a mirrored face"):
        load_arrays(source, 48, landmarks=True)
    with pytest.raises(ValueError, match=r"ArraySource\(.*has no landmarks: a \.csv needs"):
        load_arrays(ArraySource(images, labels), 48, landmarks=True)


# Tables


def test_a_table_may_have_its_landmarks_in_another_one(tmp_path):
    table, points = folder_of_faces(tmp_path)
    other = write_table(
        tmp_path / "split.csv", ["07.png", "02.png"], [[], []], ["file"], label=[1, 0]
    )
    source = open_source(other, images=tmp_path, landmarks=table)
    np.testing.assert_allclose(source.landmarks, points[[7, 2]], rtol=1e-6)
    assert source.read(0).shape == (48, 56, 3)
    assert split_source(CSVSource(table), 0.5)[1].landmarks.shape == (6, 5, 2)
    np.testing.assert_allclose(
        read_landmarks(table, ["images/03.png", ".\\00.png"]), points[[3, 0]], rtol=1e-6
    )


def test_other_landmarks_invalidate_a_cache(tmp_path):
    source = source_of()
    load_arrays(source, (48, 56), cache=tmp_path / "cache")
    source.landmarks = source.landmarks + 1
    loaded = load_arrays(source, (48, 56), cache=tmp_path / "cache")
    np.testing.assert_allclose(loaded.landmarks, source.landmarks, rtol=1e-6)


def test_a_table_of_landmarks_that_does_not_fit_is_named(tmp_path):
    points = faces(2)
    names = ["a.png", "b.png"]
    table = write_table(tmp_path / "t.csv", names, points)
    with pytest.raises(ValueError, match=r"t.csv has no row for 2 of 3 files: c.png, d.png"):
        read_landmarks(table, ["a.png", "c.png", "d.png"])
    with pytest.raises(ValueError, match=r"no column x4, y4"):
        read_landmarks(
            write_table(tmp_path / "s.csv", names, points, ["file", *COLUMNS[:8]]), names
        )
    with pytest.raises(ValueError, match="no column path"):
        read_landmarks(table, names, file_column="path")
    with pytest.raises(ValueError, match="there is no file"):
        read_landmarks(tmp_path / "none.csv", names)
    with pytest.raises(ValueError, match=r"line 3: 'a\.png' has other landmarks further up"):
        read_landmarks(write_table(tmp_path / "u.csv", ["a.png"] * 2, points), ["a.png"])
    (tmp_path / "w.csv").write_text(table.read_text() + '"c.png,' + "0" * 140_000)
    with pytest.raises(ValueError, match=r"w\.csv, line 4: field larger .* mark not closed"):
        read_landmarks(tmp_path / "w.csv", names)
    for cut in (",", "\n"):  # an empty last number, and a row of nine
        text = table.read_text().rstrip()
        (tmp_path / "v.csv").write_text(text[: text.rindex(",")] + cut)
        with pytest.raises(ValueError, match="line 3: landmark y4 is not a number"):
            read_landmarks(tmp_path / "v.csv", names)


# Pairs


def test_pairs_bring_landmarks_from_a_table_or_from_their_source(tmp_path):
    table, _ = folder_of_faces(tmp_path, 4)
    rows = ["00.png 1", "01.png 1", "02.png 0", "03.png 0"]
    (tmp_path / "pairs.txt").write_text("\n".join(rows))
    pairs = read_pairs(tmp_path / "pairs.txt", tmp_path, folds=1, landmarks=table)
    for name in pairs.names:
        np.testing.assert_allclose(
            centroids(pairs.read(name)[None])[0], pairs.landmarks[name][2], atol=0.05
        )
    assert read_pairs(tmp_path / "pairs.txt", tmp_path, folds=1).landmarks is None
    source = source_of(12, 4)
    drawn = make_pairs(source, folds=2, per_fold=4)
    for name in drawn.names:
        np.testing.assert_allclose(
            centroids(drawn.read(name)[None])[0], drawn.landmarks[name][2], atol=0.05
        )
