"""What several commands read: models, images, names of classes, records of runs."""

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from keras_hybrid.cli.printing import format_size
from keras_hybrid.data.files import composed, read_text, some, to_range

# The kind of results that `evaluate` writes; only these does it overwrite, not a training's.
EVALUATION = "keras_hybrid evaluation"
RESULTS = "results.json"


def load_model(path: Path):
    """Load a .keras file of this library, for inference."""
    if path.suffix.lower() != ".keras":
        raise ValueError(f"{path} must be a .keras file.")
    import keras

    from keras_hybrid import applications, layers, losses, metrics  # noqa: F401  registers them

    try:
        return keras.saving.load_model(path, compile=False)
    except Exception as error:  # a damaged or foreign archive can provoke almost any
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        for line in lines:
            if "Could not locate class" in line:
                raise ValueError(
                    f"{path} cannot be loaded: {line} Commands know the layers of Keras and of "
                    "keras_hybrid; with others call keras_hybrid from Python."
                ) from error
        raise ValueError(f"{path} cannot be loaded: {next(iter(lines), repr(error))}") from error


def image_size(model, path: Path, may_take_landmarks: bool = False) -> tuple[int, int]:
    """Return (height, width) of the photographs that a model takes."""
    from keras_hybrid.evaluation.inference import model_takes_landmarks

    shapes = [tuple(tensor.shape) for tensor in getattr(model, "inputs", None) or []]
    if may_take_landmarks and model_takes_landmarks(model) and shapes[1:] == [(None, 5, 2)]:
        shapes = shapes[:1]
    if len(shapes) != 1 or len(shapes[0]) != 4 or None in shapes[0][1:] or shapes[0][3] != 3:
        raise ValueError(
            f"{path} takes inputs of the shapes {shapes}; one of RGB images of a fixed size "
            "(batch, height, width, 3) is needed."
        )
    return shapes[0][1:3]


def in_range(model, input_range: list[float] | None, embedding: bool = False):
    """Return what takes images in [0, 255] to a model's output, or to its embedding.

    Args:
        model: A model; without another range it is what is returned.
        input_range: Smallest and largest value that it takes, or None for [0, 255].
        embedding: Whether to stop at its layer ``embedding``.

    Raises:
        ValueError: If the model takes landmarks and another range.
    """
    if input_range in (None, [0, 255]):
        return model
    if len(model.inputs) > 1:
        raise ValueError("--input-range is for models that take images alone.")
    import keras

    if embedding:
        model = keras.Model(model.input, model.get_layer("embedding").output)
    return lambda images: model.predict_on_batch(to_range(images, input_range))


def open_litert(path: Path, input_range: list[float] | None):
    """Open a .tflite file; raise ValueError for another input range than it says itself."""
    from keras_hybrid.export import LiteRTModel

    model = LiteRTModel(path)
    low, high = model.value_range
    if input_range not in (None, [low, high]):
        raise ValueError(
            f"{path} says itself that it takes values in [{low:g}, {high:g}]: leave --input-range "
            "out."
        )
    return model


def check_embedding(model, path: Path) -> None:
    """Raise ValueError for a model without an embedding."""
    if "embedding" not in [layer.name for layer in model.layers]:
        raise ValueError(
            f"{path} has no layer named 'embedding', whose output is compared in verification."
        )


def open_source(spec: str, size: tuple[int, int], /, **options: Any):
    """Open images; invented ones, and crops that are aligned, are at least of the given size."""
    from keras_hybrid import data

    if spec.startswith("synthetic:"):
        options["image_size"] = max(size)
    elif options.get("align"):
        options.setdefault("image_size", max(112, *size))
    return data.open_source(spec, **options)


def open_training_images(spec: str, size: tuple[int, int], /, **options: Any):
    """Open images; those of the split `train` where there are splits only."""
    try:
        return open_source(spec, size, **options)
    except ValueError as error:
        if "split" in options:
            raise
        try:
            return open_source(spec, size, split="train", **options)
        except ValueError:
            raise error from None


def note_resizing(path: Path, photograph, size: tuple[int, int], any_size: bool = True) -> None:
    """Say that a photograph (height, width, 3) is brought to the model's (height, width).

    Without ``any_size`` only where its proportions are others, as those of no crop would be.
    """
    height, width = photograph.shape[:2]
    if (height, width) == size:
        return
    # A pixel more or less is rounding.
    is_squeezed = abs(height * size[1] - width * size[0]) > max(height, width) * max(size) / 32
    how = "squeezed" if is_squeezed else "resized"
    question = ": is it cropped as those of the training?" if is_squeezed else "."
    if is_squeezed or any_size:
        print(
            f"note: {path} has {format_size((height, width))} pixels and is {how} to the model's "
            f"{format_size(size)}{question}",
            file=sys.stderr,
        )


def check_file(path: Path) -> None:
    """Raise ValueError if there is no such file."""
    if not path.is_file():
        problem = "is a folder, not a file" if path.is_dir() else "does not exist"
        raise ValueError(f"{path} {problem}.")


def class_names(source: str | None, model, path: Path) -> list[str] | None:
    """Return the names in a .txt file or of a data set's classes, or None without a source.

    Raises:
        ValueError: If they are not as many as the model's classes, or a data set's are not those
            in the record of the run that the model at ``path`` is of.
    """
    if source is None:
        return None
    if source.lower().endswith(".txt"):
        names = [name.strip() for name in read_text(source, "names").split("\n") if name.strip()]
    elif source.lower().endswith(".csv"):
        from keras_hybrid.data.sources import read_labels

        names = read_labels(source)
    else:
        names = list(open_training_images(source, (8, 8)).class_names)
    classes = model.outputs[0].shape[-1]
    if len(names) != classes:
        hint = " output: name what it is the score of" * (classes == 1)
        raise ValueError(f"{source} names {len(names)} classes, the model has {classes}{hint}.")
    if twice := sorted(name for name, count in Counter(names).items() if count > 1):
        raise ValueError(f"{source} names classes twice: {some(twice)}.")
    # Names in a .txt are for the reader, in any words; a model by its name has no record.
    if path.is_file() and not source.lower().endswith(".txt"):
        check_names(names, source, path)
    return names


def read_results(file: Path) -> dict[str, Any]:
    """Return the record of a run."""
    try:
        results = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}") from error
    if not isinstance(results, dict):
        raise ValueError(f"{file} is not the record of a run: it holds no JSON object.")
    return results


def recorded_run(model: Path) -> dict[str, Any]:
    """Return the record of the training that a model is of; empty without one."""
    file = model.parent / RESULTS
    results = read_results(file) if file.is_file() else {}
    return {} if results.get("kind") == EVALUATION else results


def recorded_classes(model: Path) -> list[str] | None:
    """Return the names of classes in the record of the run that a model is of, if there is one."""
    names = recorded_run(model).get("class_names")
    return [str(name) for name in names] if isinstance(names, list) else None


def check_names(names: list[str], source: str, model: Path) -> None:
    """Raise ValueError where the model's training had other classes, or in another order."""
    file = model.parent / RESULTS
    trained = recorded_classes(model)
    if trained is None or len(trained) != len(names):  # no record, or another model's
        return
    trained = [composed(name) for name in trained]  # records of before have names as stored
    names = [composed(name) for name in names]
    numbers = [str(number) for number in range(len(names))]
    if set(trained) != set(names) and numbers in (trained, names):  # which are nobody's names
        return
    wrong = [
        f"{number} is {name!r}, not {known!r}"
        for number, (name, known) in enumerate(zip(names, trained, strict=True))
        if name != known
    ]
    if wrong:
        raise ValueError(
            f"The classes of {source} are not those that {file} says {model} was "
            f"trained on, in the same order: {some(wrong)}."
        )
