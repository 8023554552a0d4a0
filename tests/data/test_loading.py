import ast
import logging
import pickle
import tracemalloc
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_hybrid.data
from keras_hybrid.data import (
    ArraySource,
    Batches,
    FolderSource,
    ImageSource,
    UnreadableImageError,
    face_augmentation,
    load_arrays,
    open_source,
)


class Recorded(ImageSource):
    """Images in memory of which some cannot be read; counts the reads."""

    def __init__(self, labels, broken=(), size=(6, 6)):
        self.labels = np.asarray(labels, np.int32)
        self.class_names = [f"class{i}" for i in range(self.labels.max() + 1)]
        self.paths = [f"image{i}" for i in range(len(self.labels))]
        self.broken = set(broken)
        self.size = size
        self.reads = 0

    def read(self, index):
        self.reads += 1
        if index in self.broken:
            raise UnreadableImageError(self.paths[index], "torn")
        return np.full((*self.size, 3), index, np.uint8)


def arrays(count=23, size=8, classes=3):
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (count, size, size, 3), np.uint8)
    return images, np.arange(count) % classes


def everything(batches):
    return list(batches)


def assert_same(left, right):
    assert len(left) == len(right)
    for (x, y), (other_x, other_y) in zip(left, right, strict=True):
        np.testing.assert_array_equal(x, other_x)
        np.testing.assert_array_equal(y, other_y)


# load_arrays


def test_images_are_decoded_once_and_resized():
    source = Recorded([0, 0, 1, 1])
    loaded = load_arrays(source, (4, 5))
    assert loaded.images.shape == (4, 4, 5, 3)
    assert loaded.images.dtype == np.uint8
    np.testing.assert_array_equal(loaded.images[:, 0, 0, 0], [0, 1, 2, 3])
    np.testing.assert_array_equal(loaded.labels, source.labels)
    assert loaded.labels.dtype == np.int32
    assert source.reads == 4
    assert loaded.skipped == []


def test_resizing_is_antialiased():
    stripes = np.zeros((1, 64, 64, 3), np.uint8)
    stripes[:, :, ::2] = 255
    loaded = load_arrays(ArraySource(stripes, [0]), 8)
    assert np.abs(loaded.images.astype(int) - 128).max() < 20


@pytest.mark.parametrize("workers", [1, 3])
def test_unreadable_images_are_dropped_reported_once_and_counted(workers, caplog):
    with caplog.at_level(logging.WARNING):
        loaded = load_arrays(Recorded([0, 0, 1, 1, 1], broken=[1, 4]), 6, workers=workers)
    np.testing.assert_array_equal(loaded.kept, [0, 2, 3])
    np.testing.assert_array_equal(loaded.labels, [0, 1, 1])
    np.testing.assert_array_equal(loaded.images[:, 0, 0, 0], [0, 2, 3])
    assert loaded.skipped == [("image1", "torn"), ("image4", "torn")]
    assert caplog.text.count("image1") == 1
    assert "2 of 5 images" in caplog.text


def test_an_unreadable_image_does_not_take_the_memory_of_all_again():
    source = Recorded([0] * 200, broken=[1])
    tracemalloc.start()
    loaded = load_arrays(source, 100)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1.3 * loaded.images.nbytes
    np.testing.assert_array_equal(loaded.images[:, 0, 0, 0], np.delete(np.arange(200), 1))


def test_a_class_that_lost_all_its_images_is_an_error():
    with pytest.raises(ValueError, match="class1"):
        load_arrays(Recorded([0, 1, 1], broken=[1, 2]), 6)


def test_a_class_may_lose_all_its_images_if_asked_for(tmp_path):
    source = Recorded([0, 1, 1, 2], broken=[1, 2])
    loaded = load_arrays(source, 6, cache=tmp_path / "cache", every_class=False)
    np.testing.assert_array_equal(loaded.labels, [0, 2])
    assert loaded.class_names == source.class_names and len(loaded.skipped) == 2
    with pytest.raises(ValueError, match="class1"):  # who needs them all, of the cache too
        load_arrays(source, 6, cache=tmp_path / "cache")
    with pytest.raises(ValueError, match="No image of 2 classes"):
        load_arrays(Recorded([0, 1], broken=[0, 1]), 6, every_class=False)


def test_the_cache_is_used_until_something_changes(tmp_path):
    cache = tmp_path / "deep" / "faces.cache"
    source = Recorded([0, 0, 1, 1], broken=[2])
    first = load_arrays(source, 6, cache=cache)
    reads = source.reads
    again = load_arrays(source, 6, cache=cache)
    assert source.reads == reads
    np.testing.assert_array_equal(first.images, again.images)
    np.testing.assert_array_equal(first.kept, again.kept)
    assert again.skipped == first.skipped
    assert [path.name for path in cache.parent.iterdir()] == ["faces.cache"]
    load_arrays(source, 5, cache=cache)
    assert source.reads == 2 * reads, "another size must be decoded"
    other = Recorded([0, 1, 1, 1])
    np.testing.assert_array_equal(load_arrays(other, 5, cache=cache).labels, [0, 1, 1, 1])


def test_a_replaced_file_invalidates_the_cache(tmp_path):
    image_module = pytest.importorskip("PIL.Image")
    (tmp_path / "f" / "ann").mkdir(parents=True)
    path = tmp_path / "f" / "ann" / "0.png"
    image_module.new("RGB", (6, 6), (1, 2, 3)).save(path)
    load_arrays(FolderSource(tmp_path / "f"), 6, cache=tmp_path / "c")
    image_module.new("RGB", (7, 7), (9, 9, 9)).save(path)
    loaded = load_arrays(FolderSource(tmp_path / "f"), 6, cache=tmp_path / "c")
    assert loaded.images.max() == 9


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.95])
def test_a_truncated_cache_is_rebuilt_with_a_warning(tmp_path, caplog, keep):
    cache = tmp_path / "c"
    source = Recorded([0, 0, 1, 1])
    expected = load_arrays(source, 6, cache=cache)
    content = cache.read_bytes()
    cache.write_bytes(content[: keep if keep >= 1 else int(keep * len(content))])
    with caplog.at_level(logging.WARNING):
        loaded = load_arrays(source, 6, cache=cache)
    np.testing.assert_array_equal(loaded.images, expected.images)
    assert "damaged" in caplog.text
    assert cache.read_bytes()[:2] == content[:2]


def test_wrong_sizes_and_workers_are_named():
    for size in (0, (4, 4, 4), 2.5):
        with pytest.raises(ValueError, match="image_size"):
            load_arrays(Recorded([0]), size)
    with pytest.raises(ValueError, match="workers"):
        load_arrays(Recorded([0]), 6, workers=0)


# Batches


def test_batches_have_the_promised_types_and_cover_every_image_once():
    images, labels = arrays()
    batches = Batches(images, labels, 5)
    assert len(batches) == 5
    read = everything(batches)
    assert [len(y) for _, y in read] == [5, 5, 5, 5, 3]
    assert read[0][0].dtype == np.uint8
    assert read[0][1].dtype == np.int32
    order = np.random.default_rng([0, 0]).permutation(23)
    np.testing.assert_array_equal(np.concatenate([x for x, _ in read]), images[order])
    np.testing.assert_array_equal(np.concatenate([y for _, y in read]), labels[order])
    assert Batches(images, labels, 5, augment=face_augmentation())[0][0].dtype == np.uint8


def test_without_shuffling_the_order_is_the_order_given():
    images, labels = arrays()
    batches = Batches(images, labels[:, None], 10, shuffle=False, drop_remainder=True)
    assert len(batches) == 2
    np.testing.assert_array_equal(batches[1][0], images[10:20])


def test_every_epoch_has_its_own_order():
    images, labels = arrays()
    batches = Batches(images, labels, 23)
    first = everything(batches)
    batches.on_epoch_end()
    second = everything(batches)
    assert batches.epoch == 1
    assert not np.array_equal(first[0][0], second[0][0])
    assert_same(second, everything(Batches(images, labels, 23, epoch=1)))


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("augment", [None, face_augmentation()])
def test_a_resumed_run_sees_what_the_uninterrupted_run_saw(workers, lazy, augment):
    images, labels = arrays()
    data = (ArraySource(images, labels), None) if lazy else (images, labels)
    whole = Batches(*data, 4, seed=3, augment=augment)
    expected = []
    for _ in range(3):
        expected += everything(whole)
        whole.on_epoch_end()
    assert len(expected) == 18

    resumed = Batches(*data, 4, seed=3, augment=augment, epoch=1, start_batch=2, workers=workers)
    assert len(resumed) == 4
    got = everything(resumed)
    resumed.on_epoch_end()
    assert (resumed.epoch, resumed.start_batch, len(resumed)) == (2, 0, 6)
    got += everything(resumed)
    assert_same(got, expected[8:])

    resumed.set_position(0, 5)
    assert_same(everything(resumed), expected[5:6])
    resumed.set_position(0, 6)
    assert (resumed.epoch, resumed.start_batch) == (1, 0)


def test_another_seed_and_another_epoch_are_another_order_of_the_same_images():
    images, labels = np.arange(100, dtype=np.float32).reshape(100, 1, 1, 1), np.arange(100)

    def order(seed, epoch):
        batches = Batches(images, labels, 10, seed=seed, epoch=epoch)
        return np.concatenate([batches[i][1] for i in range(10)]).tolist()

    orders = [order(0, 0), order(0, 1), order(1, 0), order(1, 1)]
    assert all(sorted(found) == labels.tolist() != found for found in orders)
    assert len({tuple(found) for found in orders}) == 4
    assert order(1, 0) == orders[2]


def test_batches_may_be_asked_for_in_any_order_and_twice():
    images, labels = arrays()
    expected = everything(Batches(images, labels, 4, augment=face_augmentation()))
    batches = Batches(images, labels, 4, augment=face_augmentation(), workers=2, max_queue_size=3)
    for index in (5, 0, 0, 3, 4, 1, 5, 2):
        assert_same([batches[index]], [expected[index]])


def test_keras_asking_for_shapes_or_resetting_does_not_advance():
    batches = Batches(*arrays(), 4)
    batches.on_epoch_end()
    batches.on_epoch_begin()
    batches[0]
    batches.on_epoch_end()
    assert batches.epoch == 0


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("as_dataset", [False, True])
def test_fit_sees_each_epoch_in_turn_from_the_position_given(workers, as_dataset):
    if as_dataset and keras.backend.backend() != "tensorflow":
        pytest.skip("fit takes a tf.data.Dataset on TensorFlow")
    seen = []

    def record(images, seed):
        seen.append(seed)
        return images.astype(np.float32)

    model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(3)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss=loss, metrics=["accuracy"])
    batches = Batches(*arrays(), 4, augment=record, epoch=4, start_batch=3, workers=workers)

    def given():
        return batches.to_tf_dataset() if as_dataset else batches

    history = model.fit(
        given(), initial_epoch=4, epochs=5, verbose=0, callbacks=[batches.callback()]
    )
    assert len(history.epoch) == 1
    assert {(0, 4, 3), (0, 4, 4), (0, 4, 5)} == set(seen)
    assert (batches.epoch, batches.start_batch) == (5, 0)
    seen.clear()
    callbacks = [batches.callback()] if as_dataset else []
    model.fit(given(), initial_epoch=5, epochs=7, verbose=0, callbacks=callbacks)
    # A batch of epoch 4 that was read ahead and given up may arrive this late.
    later = {seed for seed in seen if seed[1] != 4}
    assert {(0, epoch, batch) for epoch in (5, 6) for batch in range(6)} == later
    assert batches.epoch == 7
    model.evaluate(Batches(*arrays(), 4, shuffle=False), verbose=0)


def test_the_tensorflow_dataset_gives_the_batches_left_without_autotuning():
    tf = pytest.importorskip("tensorflow")
    options = {"augment": face_augmentation(), "seed": 3, "workers": 2}
    batches = Batches(*arrays(), 4, **options, epoch=1, start_batch=2)
    dataset = batches.to_tf_dataset()
    assert len(dataset) == len(batches) == 4
    assert dataset.options().autotune.enabled is False
    images, labels = dataset.element_spec
    assert (images.shape, images.dtype) == (
        tf.TensorShape([None, *arrays()[0].shape[1:]]),
        "uint8",
    )
    assert (labels.shape, labels.dtype) == (tf.TensorShape([None]), "int32")
    expected = everything(Batches(*arrays(), 4, **options, epoch=1))[2:]
    for _ in range(2):
        assert_same([tuple(map(np.asarray, element)) for element in dataset], expected)


def test_an_unreadable_image_is_replaced_by_one_of_its_class_and_reported_once(caplog):
    labels = [0, 1, 0, 1, 0, 1]
    expected = {0: 0, 1: 5, 2: 4, 3: 5, 4: 4, 5: 5}
    source = Recorded(labels, broken=[1, 2, 3])
    with caplog.at_level(logging.WARNING):
        batches = Batches(source, batch_size=2, shuffle=False, workers=2)
        for _ in range(2):
            read = everything(batches)
            got = np.concatenate([x[:, 0, 0, 0] for x, _ in read])
            np.testing.assert_array_equal(got, [expected[i] for i in range(6)])
            np.testing.assert_array_equal(np.concatenate([y for _, y in read]), labels)
    assert sorted(batches.skipped) == [(f"image{i}", "torn") for i in (1, 2, 3)]
    assert len(caplog.records) == 3


def test_a_class_without_a_readable_image_stops():
    source = Recorded([0, 1, 1], broken=[1, 2])
    for labels, lost in ((None, 1), ([7, 9, 9], 9)):  # the source's, or one's own
        batches = Batches(source, labels, batch_size=3)
        with pytest.raises(ValueError, match=f"No image with label {lost} can be read; one is im"):
            batches[0]


def test_a_lazy_source_of_different_sizes_needs_an_image_size():
    class Uneven(Recorded):
        def read(self, index):
            return np.zeros((4 + index, 4, 3), np.uint8)

    with pytest.raises(ValueError, match="image_size"):
        Batches(Uneven([0, 1]), batch_size=2)[0]
    assert Batches(Uneven([0, 1]), batch_size=2, image_size=5)[0][0].shape == (2, 5, 5, 3)


def test_batches_can_be_pickled():
    batches = Batches(*arrays(), 4, workers=2, augment=face_augmentation(), epoch=2, start_batch=1)
    expected = everything(batches)
    assert_same(everything(pickle.loads(pickle.dumps(batches))), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"seed": -1}, "seed"),
        ({"epoch": -1}, "epoch"),
        ({"start_batch": 99}, "start_batch"),
        ({"batch_size": 30, "drop_remainder": True}, "batch_size"),
        ({"image_size": 4}, "image_size"),
        ({"use_multiprocessing": True}, "workers"),
    ],
)
def test_a_wrong_argument_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        Batches(*arrays(), **options)


def test_labels_that_do_not_fit_are_refused():
    images, labels = arrays()
    with pytest.raises(ValueError, match="labels"):
        Batches(images, labels[:-1])
    with pytest.raises(ValueError, match="labels"):
        Batches(images, labels + 0.5)
    with pytest.raises(ValueError, match="images"):
        Batches(images[0], labels)


def test_synthetic_identities_go_from_the_specification_to_batches():
    loaded = load_arrays(open_source("synthetic:2x3", image_size=16), 16)
    images, labels = Batches(loaded.images, loaded.labels, 6)[0]
    assert images.shape == (6, 16, 16, 3)
    assert sorted(labels) == [0, 0, 0, 1, 1, 1]


def test_nothing_optional_is_imported_at_module_level():
    for path in Path(keras_hybrid.data.__file__).parent.glob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
                roots = {name.split(".")[0] for name in names}
                assert not roots & {"tensorflow", "tensorflow_datasets", "PIL", "torch", "jax"}
