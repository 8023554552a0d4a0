"""Train a recipe: ``python training/train.py RECIPE [--out FOLDER] [--epochs 10] …``.

Run the same command again to continue a run that was stopped, however it was stopped.
"""

import argparse
import contextlib
import dataclasses
import hashlib
import importlib.util
import inspect
import logging
import os
import pathlib
import sys
from collections.abc import Callable, Iterator

if __package__ in (None, ""):  # run as a file: find the package beside this folder
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

from training.model import begin_with_trained, build_model, check_classes, check_model
from training.recipe import (
    Recipe,
    add_overrides,
    check_use,
    load_recipe,
    recipe_names,
    with_overrides,
)

LOG = logging.getLogger("training")

# Fields that change nothing of what training computes: a run may be continued with others.
CHANGEABLE = (
    "checkpoint_steps",
    "export",
    "patience",
    "steps_per_execution",
    "verification_sets",
    "workers",
)


def parse(arguments: list[str] | None = None) -> tuple[argparse.Namespace, Recipe]:
    """Read the command line; neither Keras nor a backend is loaded yet."""
    parser = argparse.ArgumentParser(
        prog="train.py", description="Train a recipe, or continue it where it stopped."
    )
    parser.add_argument("recipe", help=f"one of: {', '.join(recipe_names())}")
    parser.add_argument("--out", help="folder of the run (default: runs/RECIPE)")
    parser.add_argument(
        "--backend", choices=("tensorflow", "jax", "torch"), help="sets KERAS_BACKEND"
    )
    parser.add_argument("--restart", action="store_true", help="throw an earlier run away")
    parser.add_argument("--quiet", action="store_true", help="one line for each epoch")
    add_overrides(parser)
    given = parser.parse_args(arguments)
    try:
        recipe = with_overrides(load_recipe(given.recipe), given)
        check_use(recipe, given)
        return given, recipe
    except ValueError as error:
        parser.error(str(error))


def open_data(recipe: Recipe):
    """Return the ``ImageSource`` of the training images, and that of the test images.

    Raises:
        ValueError: If they do not fit the recipe.
    """
    from keras_hybrid import data
    from keras_hybrid.cli.reading import open_source
    from keras_hybrid.data.loading import needed_landmarks

    size, options = (recipe.image_size, recipe.image_size), dict(recipe.data_options)
    if "landmarks" in options and not (recipe.takes_landmarks or options.get("align")):
        LOG.warning("%s takes no landmarks: those of the data are not used.", recipe.model)
    if recipe.images is not None:
        options["images"] = recipe.images
    if recipe.train_split is not None:
        train = open_source(recipe.data, size, split=recipe.train_split, **options)
        test = open_source(recipe.data, size, split=recipe.test_split, **options)
        _number_as(train, test, recipe)
    else:
        source = open_source(recipe.data, size, **options)
        train, test = data.split_source(source, recipe.test_fraction, recipe.seed)
        if not len(test):
            raise ValueError(
                f"test_fraction={recipe.test_fraction} holds none of {recipe.data} out: no class "
                "has more than one image. Give train_split and test_split, or more images."
            )
    _compare_labels(recipe, train, test)
    if len(train.class_names) < 2:
        raise ValueError(
            f"{recipe.data} has one class, {train.class_names[0]!r}, and training needs two at "
            "least: a folder for each."
        )
    if recipe.images_per_class is not None:
        train = data.sample_per_class(train, recipe.images_per_class, recipe.seed)
    if recipe.test_images_per_class is not None:
        test = data.sample_per_class(test, recipe.test_images_per_class, recipe.seed)
    if recipe.takes_landmarks:
        needed_landmarks(train)
    return train, test


def _number_as(train, test, recipe: Recipe) -> None:
    """Number the classes of the tested images as those of the training images."""
    import numpy as np

    from keras_hybrid.data.files import some

    if list(train.class_names) == list(test.class_names):
        return
    if unknown := sorted({*test.class_names} - {*train.class_names}):
        raise ValueError(
            f"test_split={recipe.test_split!r} of {recipe.data} has classes that train_split="
            f"{recipe.train_split!r} lacks: {some(unknown)}."
        )
    number = {name: label for label, name in enumerate(train.class_names)}
    test.labels = np.array([number[name] for name in test.class_names], "int32")[test.labels]
    test.class_names = list(train.class_names)


def _compare_labels(recipe: Recipe, train, test) -> None:
    """Say which classes are trained only or tested only; raise ValueError if none is both."""
    trained, tested = set(train.labels.tolist()), set(test.labels.tolist())
    if not trained & tested:
        raise ValueError(
            f"train_split={recipe.train_split!r} and test_split={recipe.test_split!r} of "
            f"{recipe.data} have images of different classes: no tested class would be trained. "
            "Compare people that are not trained on as pairs."
        )
    if untrained := len(tested - trained):
        LOG.warning(
            "%d classes have test images but none to train on: none of those is recognised.",
            untrained,
        )
    if untested := len(trained - tested):
        reason = "no test image" if recipe.train_split else "one image each"
        LOG.warning("%d classes have %s: they are not tested.", untested, reason)


def load_data(recipe: Recipe):
    """Return (training images, test images).

    Both are ``keras_hybrid.data.LoadedImages``; training images that are read lazily are an
    ``ImageSource``.
    """
    from keras_hybrid import data

    train, test = open_data(recipe)
    check_classes(recipe, len(train.class_names))  # before images are read, which may take long
    if recipe.reading == "memory":
        train = data.load_arrays(train, recipe.image_size, landmarks=recipe.takes_landmarks)
    tested = set(test.labels.tolist())
    test = data.load_arrays(
        test, recipe.image_size, landmarks=recipe.takes_landmarks, every_class=False
    )
    if lost := len(tested) - len(set(test.labels.tolist())):
        LOG.warning("%d classes have no test image that can be read: they are not tested.", lost)
    return train, test


def load_pairs(recipe: Recipe):
    """Return the ``PairList`` of the closing verification, or ``None``."""
    from keras_hybrid import data

    if recipe.pairs is None:
        return None
    if recipe.pairs.startswith("synthetic:"):
        drawn = recipe.data.removeprefix("synthetic:")
        known = int(drawn.partition("x")[0]) if drawn != recipe.data else 0
        strangers = data.open_source(
            recipe.pairs, image_size=recipe.image_size, first_identity=known
        )
        return data.make_pairs(strangers, seed=recipe.seed)
    return data.read_pairs(recipe.pairs, recipe.pairs_images, landmarks=recipe.pairs_landmarks)


def load_verification_sets(recipe: Recipe) -> dict:
    """Return the ``PairList`` of each of the recipe's verification sets, by its name in papers.

    Raises:
        ValueError: If a set is not known, or its file is not what its protocol says.
    """
    from keras_hybrid import data

    return {
        data.verification_set_info(name).name: data.read_verification_set(
            name, *str(where).split(",", 1)
        )
        for name, where in recipe.verification_sets.items()
    }


def check(recipe: Recipe) -> None:
    """Look at what can be wrong with a recipe before its data, which may take long, are read.

    Raises:
        ValueError: If the model, its arguments, its initial weights, arguments of the augmentation
            or a verification set do not exist.
        ImportError: If a format of ``export`` needs what is not installed.
    """
    from keras_hybrid.data import verification_set_info
    from training.report import check_export

    check_export(recipe)
    check_model(recipe)
    for name in recipe.verification_sets:
        verification_set_info(name)
    build_augmentation(recipe, classes=2)


def build_augmentation(recipe: Recipe, classes: int):
    """Return what ``keras_hybrid.data.Batches`` augments with, or ``None``.

    Raises:
        ValueError: If ``recipe.augmentation`` does not fit.
    """
    from keras_hybrid import data

    _check_augmentation(recipe)
    # Cross-entropy takes distributions, since mixed images have them.
    one_hot = classes if recipe.loss == "cross_entropy" else None
    try:
        if recipe.augment == "images":
            return data.image_augmentation(recipe.image_size, one_hot, **recipe.augmentation)
        is_of_faces = recipe.augment == "faces"
        augment = data.face_augmentation(**recipe.augmentation) if is_of_faces else None
    except TypeError as error:
        raise ValueError(
            f"augmentation={recipe.augmentation} does not fit augment={recipe.augment!r}: {error}"
        ) from error
    return augment if one_hot is None else _OneHot(augment, one_hot)


def _check_augmentation(recipe: Recipe) -> None:
    """Raise ValueError for arguments that the kind of augmentation has not."""
    from keras_hybrid import data

    kinds = {"images": data.image_augmentation, "faces": data.face_augmentation}
    accepted = []
    if recipe.augment in kinds:
        parameters = inspect.signature(kinds[recipe.augment]).parameters
        accepted = [name for name in parameters if name not in ("image_size", "classes")]
    unknown = sorted(recipe.augmentation.keys() - set(accepted))
    if unknown:
        raise ValueError(
            f"augmentation has {', '.join(unknown)}; augment={recipe.augment!r} takes "
            f"{', '.join(accepted) or 'nothing'}."
        )


def build_batches(recipe: Recipe, train):
    """Return the ``keras_hybrid.data.Batches`` of what `load_data` gives for training."""
    from keras_hybrid import data

    is_lazy = recipe.reading == "lazy"
    batch_size = min(recipe.batch_size, len(train.labels))
    if batch_size < recipe.batch_size:
        print(
            f"A batch is the {batch_size} training images there are, fewer than batch_size="
            f"{recipe.batch_size}.",
            flush=True,
        )
    return data.Batches(
        train if is_lazy else train.images,
        train.labels,
        batch_size,
        seed=recipe.seed,
        augment=build_augmentation(recipe, len(train.class_names)),
        drop_remainder=True,
        image_size=recipe.image_size if is_lazy else None,
        workers=recipe.workers,
        landmarks=train.landmarks if recipe.takes_landmarks else None,
    )


class _OneHot:
    """An augmentation of images alone, with labels as distributions."""

    takes_labels = True
    moves_landmarks = True

    def __init__(self, augment, classes: int):
        self.augment = augment
        self.classes = classes

    def __call__(self, images, labels, seed, **landmarks):
        if self.augment is not None:
            images = self.augment(images, seed=seed, **landmarks)
        elif landmarks:
            images = images, landmarks["landmarks"]
        return images, _one_hot(labels, self.classes)


def _one_hot(labels, classes: int):
    from keras_hybrid.data.layer_augmentation import one_hot

    return one_hot(labels, classes)


def fit(
    recipe: Recipe,
    model,
    train,
    test,
    out: pathlib.Path,
    *,
    settings: dict,
    restart: bool,
    verbose: int,
    pairs=None,
):
    """Train ``model`` to the recipe's last epoch, continuing ``out``'s checkpoint if there is one.

    Returns:
        (history, seconds): one dictionary for each epoch, and the training time of all runs.
    """
    import keras

    from keras_hybrid import data
    from training.checkpoint import (
        Checkpoint,
        StopAtNaN,
        StopEarly,
        Throughput,
        VerifyPairs,
        use_averaged_weights,
    )

    classes = len(train.class_names)
    batches = build_batches(recipe, train)
    content = {"content_of_data": _content(train, test)}
    checkpoint = Checkpoint(
        out,
        batches,
        recipe.checkpoint_steps,
        {**settings, **content},
        # A checkpoint from before the content was kept is taken for the same.
        {**_defaults(recipe), **content},
        CHANGEABLE,
    )
    checkpoint.set_model(model)
    if restart:
        checkpoint.discard()
    if checkpoint.restore():
        print(f"Continuing at epoch {batches.epoch + 1}, batch {batches.start_batch}.", flush=True)
    else:
        begin_with_trained(recipe, model, train)
    callbacks = [
        batches.callback(),
        Throughput(batches),
        *([VerifyPairs(pairs, recipe.pairs_every, out)] if recipe.pairs_every else []),
        StopAtNaN(),
        checkpoint,
        *_tensorboard(out / "tensorboard"),
    ]
    if recipe.ema_momentum is not None:
        callbacks.append(keras.callbacks.SwapEMAWeights())  # the average is what is validated
    early = StopEarly(checkpoint, recipe.patience) if recipe.patience is not None else None
    if early is not None:
        callbacks.append(early)
    validation_batch_size = recipe.batch_size
    if recipe.mesh_axes:
        # Keras lays all batches out as the first: where that one cannot be split, none is, and the
        # last may have any size.
        axes = recipe.mesh_axes
        split = axes["data"] if axes["data"] > 1 else axes["model"]
        validation_batch_size += validation_batch_size % split == 0
    validation = data.Batches(
        test.images,
        test.labels,
        validation_batch_size,
        shuffle=False,
        augment=_OneHot(None, classes) if recipe.loss == "cross_entropy" else None,
        landmarks=test.landmarks if recipe.takes_landmarks else None,
    )
    # An epoch that was broken off is finished by a fit of its own: Keras counts steps once a fit.
    stops = [batches.epoch + 1, recipe.epochs] if batches.start_batch else [recipe.epochs]
    for stop in stops:
        if batches.epoch >= stop or (early is not None and early.is_time()):
            continue
        on_tensorflow = keras.backend.backend() == "tensorflow"
        model.fit(
            batches.to_tf_dataset() if on_tensorflow else batches,
            initial_epoch=batches.epoch,
            epochs=stop,
            validation_data=validation.to_tf_dataset() if on_tensorflow else validation,
            validation_freq=_validated_epochs(recipe),
            callbacks=callbacks,
            shuffle=False,  # Keras would permute the batches; ``Batches`` has shuffled the images
            verbose=verbose,
        )
        if stop != recipe.epochs:
            checkpoint.restore()  # the end of a fit leaves the average in the weights' place
    if recipe.ema_momentum is not None:
        use_averaged_weights(model)  # also where nothing was left to train
    return checkpoint.history, checkpoint.seconds


def _defaults(recipe: Recipe) -> dict:
    """Return what the settings were for runs that were begun before they had names."""
    return {
        field.name: field.default
        for field in dataclasses.fields(recipe)
        if field.default is not dataclasses.MISSING
    }


def _content(train, test) -> str:
    """Return in a line what a continued run must find again: the same images in each class."""
    digest = hashlib.sha256("\0".join(map(str, train.class_names)).encode(errors="surrogatepass"))
    for part in (train, test):
        digest.update(part.labels.astype("int64").tobytes())
    return (
        f"{len(train.class_names)} classes, {len(train.labels)} training and {len(test.labels)} "
        f"test images ({digest.hexdigest()[:12]})"
    )


def _validated_epochs(recipe: Recipe) -> list[int]:
    """Return the epochs, counted from 1, that end with a validation."""
    every = range(recipe.validation_every, recipe.epochs + 1, recipe.validation_every)
    return sorted({*every, recipe.epochs})


def _tensorboard(folder: pathlib.Path) -> list:
    import keras

    missing = [n for n in ("tensorflow", "tensorboard") if importlib.util.find_spec(n) is None]
    if missing:
        LOG.warning("No TensorBoard logs: %s not installed.", " and ".join(missing))
        return []
    if keras.backend.backend() != "tensorflow":
        import tensorflow as tf

        # For the log alone it would take the memory of the GPU that another backend trains on.
        with contextlib.suppress(RuntimeError):  # it runs already
            tf.config.set_visible_devices([], "GPU")
    return [keras.callbacks.TensorBoard(str(folder), write_graph=False)]


def run(recipe: Recipe, out: pathlib.Path, *, restart: bool = False, verbose: int = 1) -> dict:
    """Train, test, verify, export and report a recipe.

    Args:
        recipe: What to run.
        out: Folder of the run; an unfinished run in it is continued.
        restart: Whether to throw an earlier run in ``out`` away.
        verbose: Of ``model.fit``.

    Returns:
        The results, as written to ``results.json``; of an export that failed ``"export"`` has the
        reason, for `report.raise_failed_exports`.

    Raises:
        ValueError: If the recipe, its data or the run in ``out`` do not fit.
        ImportError: If a format of ``recipe.export`` needs what is not installed.
        FloatingPointError: If the loss is no longer a number.
    """
    import keras

    with distribution(recipe):
        keras.config.set_dtype_policy(recipe.precision)
        return _run(recipe, out, restart, verbose)


def distribution(recipe: Recipe):
    """Return the context in which a recipe is run: that of its mesh, if it has one."""
    if not recipe.mesh_axes:
        return contextlib.nullcontext()
    from keras_hybrid.distribution import ClassParallel

    return ClassParallel(**recipe.mesh_axes).scope()


def _run(recipe: Recipe, out: pathlib.Path, restart: bool, verbose: int) -> dict:
    import keras

    from training.report import finish

    check(recipe)
    settings = {**dataclasses.asdict(recipe), "backend": keras.backend.backend()}
    _check_folder(out, {} if restart else settings, recipe)  # before data are read for long
    train, test = load_data(recipe)
    pairs = load_pairs(recipe)
    verification_sets = load_verification_sets(recipe)
    for compared in (pairs, *verification_sets.values()):
        for name in () if compared is None else compared.names:
            compared.read(name)  # one that is broken would end the run after its training
    # After the data: what a reader imports on its first use may draw from Python's generator.
    keras.utils.set_random_seed(recipe.seed)
    classes = len(train.class_names)
    steps = max(1, len(train.labels) // recipe.batch_size)
    model = build_model(recipe, classes, steps)
    print(
        f"{recipe.model}: {model.count_params():,} parameters, {classes} identities, "
        f"{len(train.labels):,} training and {len(test.labels):,} test images, "
        f"{keras.backend.backend()}, {recipe.precision}",
        flush=True,
    )
    with _sole_writer(out):
        history, seconds = fit(
            recipe,
            model,
            train,
            test,
            out,
            settings=settings,
            restart=restart,
            verbose=verbose,
            pairs=pairs,
        )
        model.save(out / "last.keras")
        return finish(
            recipe,
            model,
            train,
            test,
            pairs,
            verification_sets,
            history,
            seconds,
            settings,
            out,
        )


def _check_folder(folder: pathlib.Path, settings: dict, recipe: Recipe) -> None:
    """Raise ValueError for a folder that cannot be written, or that holds another run."""
    from training.checkpoint import check_settings

    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise ValueError(f"--out {folder}: {there} is no folder that can be written.")
    if folder.exists():
        with _sole_writer(folder):
            pass
    if settings:
        unknown = {*CHANGEABLE, "content_of_data"}  # compared when the data are there
        check_settings(folder, settings, _defaults(recipe), unknown)


@contextlib.contextmanager
def _sole_writer(folder: pathlib.Path) -> Iterator[None]:
    """Make the folder and hold it: a second run in it would throw this one's checkpoints away."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:  # Windows has no such lock
        yield
        return
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"Another run is writing to {folder}; give another --out.") from None
        yield


def run_command(backend: str | None, action: Callable[[], object]) -> int:
    """Choose Keras's backend, then do what a command is for; returns the exit status.

    Args:
        backend: What ``--backend`` says, or ``None`` for ``KERAS_BACKEND``, the user's
            ``keras.json`` or the first installed, as ``import keras_hybrid`` has it.
        action: Imports Keras, or what does, only when it is called.
    """
    if backend:
        os.environ["KERAS_BACKEND"] = backend
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        import keras_hybrid  # noqa: F401  (before Keras alone: it may choose the backend)

        action()
    except (ValueError, FloatingPointError, ImportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except RuntimeError as error:
        from keras_hybrid.export import ExportError  # imports Keras, which has its backend by now

        if not isinstance(error, ExportError):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    given, recipe = parse(arguments)
    out = pathlib.Path(given.out or f"runs/{given.recipe}")
    verbose = 2 if given.quiet else 1

    def action() -> None:
        from training.report import raise_failed_exports

        raise_failed_exports(run(recipe, out, restart=given.restart, verbose=verbose), out)

    return run_command(given.backend, action)


if __name__ == "__main__":
    sys.exit(main())
