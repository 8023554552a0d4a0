"""``keras-hybrid evaluate``: identification and verification on data of one's own."""

import argparse
import dataclasses
import importlib.util
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from keras_hybrid.cli.printing import indented, print_table
from keras_hybrid.cli.reading import (
    EVALUATION,
    RESULTS,
    check_embedding,
    check_file,
    check_names,
    image_size,
    in_range,
    load_model,
    open_litert,
    open_source,
    read_results,
    recorded_run,
)
from keras_hybrid.cli.verify import FLIP_NOTE


def run_evaluate(given: argparse.Namespace) -> None:
    """Measure identification and verification."""
    check_file(given.model)
    if given.out is not None:
        _check_out(given.out)
    from keras_hybrid import evaluation

    judged = _exported(given) if given.model.suffix.lower() == ".tflite" else _keras_model(given)
    crops = dict(given.data_options or ()).get("align")  # images that landmarks align
    for option in ("pairs_landmarks",) if crops else ("landmarks", "pairs_landmarks"):
        if getattr(given, option) is not None and not judged.takes_landmarks:
            raise ValueError(
                f"{given.model} takes no landmarks: leave --{option.replace('_', '-')} out."
            )
    results: dict[str, Any] = {
        "kind": EVALUATION,
        "model": str(given.model),
        "name": judged.name,
        "parameters": judged.parameters,
        "input_range": judged.input_range,
        "classification": None,
        "verification": None,
    }
    pairs = None
    if given.pairs is not None:  # before what takes long: a missing image is known at once
        from keras_hybrid import data

        embedder = judged.embedder()
        files, landmarks = (given.pairs, given.pairs_images), given.pairs_landmarks
        if given.verification_set is None:
            pairs = data.read_pairs(*files, landmarks=landmarks)
        else:
            known = given.verification_set
            pairs = data.read_verification_set(known, *files, landmarks=landmarks)
    if given.data is not None:
        results["classification"] = _identification(given, judged)
    verified = None
    if pairs is not None:
        verified = evaluation.evaluate_pairs(
            embedder,
            pairs,
            image_size=judged.size,
            flip=given.flip,
            batch_size=given.batch_size,
            threshold=given.threshold,
        )
        source = "cross-validation" if given.threshold is None else "--threshold"
        if given.threshold is None and len(verified.fold_thresholds) == 1:
            source = "the pairs themselves"
            print(
                "note: the pairs have one fold only, so the threshold is chosen on the very pairs "
                "it is judged on, which flatters the accuracy; give --threshold.",
                file=sys.stderr,
            )
        results["verification"] = {
            **verified.to_dict(),
            "pairs_file": given.pairs,
            "flip": given.flip,
            "threshold_source": source,
        }
        print(f"Verification of {len(pairs):,} pairs\n{indented(verified)}")
    if given.out is not None:
        results["environment"] = evaluation.environment()
        _write_results(results, judged.name, verified, given.out)


@dataclasses.dataclass(frozen=True)
class _Judged:
    """A model, or a file made of one, as far as it is judged."""

    name: str
    parameters: int | None
    size: tuple[int, int]
    input_range: list[float]
    takes_landmarks: bool
    labels: list[str] | None  # the classes' names, if it tells them
    embedder: Callable[[], Any]  # from photographs in [0, 255]; raises ValueError where it has none
    classifier: Callable[[], tuple[Any, int]]  # and the number of classes; likewise


def _keras_model(given: argparse.Namespace) -> _Judged:
    model = load_model(given.model)
    size = image_size(model, given.model, may_take_landmarks=True)

    def embedder():
        check_embedding(model, given.model)
        return in_range(model, given.input_range, embedding=True)

    def classifier():
        shape = tuple(model.outputs[0].shape) if len(model.outputs) == 1 else ()
        if len(shape) != 2:
            raise ValueError(
                f"{given.model} does not put out one score for each class, which --data needs; "
                f"its outputs are {[tuple(tensor.shape) for tensor in model.outputs]}."
            )
        return in_range(model, given.input_range), shape[1]

    return _Judged(
        model.name,
        model.count_params(),
        size,
        given.input_range or [0, 255],
        len(model.inputs) > 1,
        None,
        embedder,
        classifier,
    )


def _exported(given: argparse.Namespace) -> _Judged:
    model = open_litert(given.model, given.input_range)
    if given.flip and given.pairs is not None:
        print(FLIP_NOTE, file=sys.stderr)

    def classifier():
        scores = model.classifier()
        (output,) = model.outputs.values()
        return scores, output["shape"][-1]

    own = list(model.value_range)
    return _Judged(
        model.name, None, model.image_size, own, False, model.labels, model.embedder, classifier
    )


def _identification(given: argparse.Namespace, judged: _Judged) -> dict[str, Any]:
    import numpy as np

    from keras_hybrid import data, evaluation
    from keras_hybrid.data.files import some

    classifier, classes = judged.classifier()
    size, takes_landmarks = judged.size, judged.takes_landmarks
    table = {} if given.landmarks is None else {"landmarks": given.landmarks}
    options = dict(given.data_options or ())
    source = open_source(
        given.data, size, split=given.split, images=given.images, **table, **options
    )
    if given.split not in (None, "train"):
        _number_as_training_split(source, given)
    if len(source.class_names) != classes:
        raise ValueError(
            f"{given.data} has {len(source.class_names)} classes, {given.model} {classes}: "
            "identification needs the classes the model was trained on, in the same order."
        )
    check_names(source.class_names, given.data, given.model)
    _check_labels(judged.labels, source.class_names, given)
    if given.test_fraction is not None:
        source = data.split_source(source, given.test_fraction, given.seed or 0)[1]
        if not len(source):
            raise ValueError(
                f"--test-fraction {given.test_fraction} holds none of {given.data} out: no class "
                "has more than one image."
            )
    # The other classes are judged all the same.
    test = data.load_arrays(source, size, landmarks=takes_landmarks, every_class=False)
    _compare_with_training(given, {**options, **table}, len(test.labels))
    lost = [test.class_names[label] for label in np.setdiff1d(source.labels, test.labels)]
    if lost:
        print(
            f"note: no image of {len(lost)} classes could be read, so they are not judged: "
            f"{some(lost)}.",
            file=sys.stderr,
        )
    result = evaluation.evaluate_classifier(
        classifier,
        test.images,
        test.labels,
        flip=given.flip,
        batch_size=given.batch_size,
        class_names=test.class_names,
        landmarks=test.landmarks if takes_landmarks else None,
    )
    confused = result.most_confused(10)
    print(f"Identification on {given.data}\n{indented(result)}")
    if confused:
        print("  most confused")
        rows = [[c.true, c.predicted, str(c.count), f"{c.share:.1%}"] for c in confused]
        print_table(["is", "taken for", "times", "share"], rows, right={2, 3}, indent="    ")
    return {
        **result.to_dict(),
        "most_confused": [dataclasses.asdict(c) for c in confused],
        "data": given.data,
        "split": given.split,
        "test_fraction": given.test_fraction,
        "skipped_images": len(test.skipped),
        "skipped_classes": len(lost),
        "flip": given.flip,
    }


def _check_labels(labels: list[str] | None, names: list[str], given: argparse.Namespace) -> None:
    """Compare the names of classes that a file tells with those of the data."""
    if labels is None or labels == names:
        return
    if sorted(labels) == sorted(names):
        raise ValueError(
            f"The classes of {given.data} are {given.model}'s in another order: it was exported "
            "with the names in a wrong one, or these are numbered otherwise than in training."
        )
    number = next(i for i, pair in enumerate(zip(labels, names, strict=True)) if pair[0] != pair[1])
    _note(
        f"{given.model} calls its classes otherwise: {number} is {labels[number]!r} there, "
        f"{names[number]!r} in {given.data}."
    )


def _compare_with_training(given: argparse.Namespace, options: dict, count: int) -> None:
    """Say where the images are not read, or not drawn, as the run's record says of its own."""
    record = recorded_run(given.model)
    read = record.get("data_options", options)
    if read != options:
        asked = [f"--landmarks {read['landmarks']}"] if "landmarks" in read else []
        others = [f"{key}={value}" for key, value in read.items() if key != "landmarks"]
        asked += ["--data-options", *others] if others else []
        _note(f"training read its images with {' '.join(asked) or 'no --data-options'}.")
    fraction, seed = record.get("test_fraction"), record.get("seed")
    if fraction is None or given.split is not None:
        return
    if given.test_fraction is None:
        _note(
            f"the run held out a share of {fraction} of its images; if these are its data, judge "
            f"what it was not trained on: --test-fraction {fraction} --seed {seed}."
        )
        return
    # With so many images of each class the run kept fewer than it held out.
    same_count = record.get("test_images_per_class") or record["test_images"] == count
    if (fraction, seed) != (given.test_fraction, given.seed or 0) or not same_count:
        _note(
            f"the run held {record['test_images']} images out, with fraction {fraction} and seed "
            f"{seed}; these are {count}, with {given.test_fraction} and {given.seed or 0}. Images "
            "that it was trained on are among them, if they are of the same data."
        )


def _note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)


def _number_as_training_split(source, given: argparse.Namespace) -> None:
    """Number a split of a folder or .zip as the split `train` beside it, if there is one."""
    import numpy as np

    from keras_hybrid import data
    from keras_hybrid.data.files import some

    if not (Path(given.data).is_dir() or given.data.lower().endswith(".zip")):
        return  # a table and a data set of TFDS number all splits alike
    try:
        trained = data.open_source(given.data, split="train").class_names
    except ValueError:
        return
    if trained == source.class_names:
        return
    unknown = sorted({*source.class_names} - {*trained})
    if unknown:
        raise ValueError(
            f"--split {given.split} of {given.data} has classes that its split train lacks: "
            f"{some(unknown)}."
        )
    number = {name: label for label, name in enumerate(trained)}
    source.labels = np.array([number[n] for n in source.class_names], np.int32)[source.labels]
    source.class_names = list(trained)


def _check_out(folder: Path) -> None:
    """Raise an error where results would be lost; make the folder."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--out {folder} is a file; give a folder.")
    file = folder / RESULTS
    if file.exists() and read_results(file).get("kind") != EVALUATION:
        raise ValueError(
            f"{file} holds other results, such as a training's; give --out another folder."
        )
    folder.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=folder).close()


def _write_results(results: dict[str, Any], name: str, verified, folder: Path) -> None:
    from keras_hybrid import evaluation

    written = [folder / RESULTS]
    partial = folder / f".{RESULTS}.partial"
    # A name that is not UTF-8 becomes a JSON escape, which reads back as the same name.
    partial.write_text(
        json.dumps(results, indent=1, ensure_ascii=False),
        encoding="utf-8",
        errors="backslashreplace",
    )
    partial.replace(written[0])
    if verified is not None:
        if importlib.util.find_spec("matplotlib") is None:
            print("note: no figures without matplotlib.", file=sys.stderr)
        else:
            written.append(evaluation.plot_roc({name: verified}, folder / "roc.png"))
            written.append(evaluation.plot_scores(verified, folder / "scores.png"))
    print(f"Written: {', '.join(str(path) for path in written)}")
