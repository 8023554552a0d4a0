"""The command line: ``keras-hybrid list | info | verify | explain | export | convert | evaluate``.

Arguments are read before Keras is imported, so that ``--backend`` can choose what it runs on. An
error is one sentence on stderr: exit status 2 for arguments that make no sense, 1 for everything
that fails later.
"""

import argparse
import contextlib
import dataclasses
import difflib
import importlib.util
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

__all__ = ["main"]

BACKENDS = ("tensorflow", "jax", "torch")
RESULTS = "results.json"
# An evaluation's results.json says so, and only such a file is overwritten: not a training's.
KIND = "keras_hybrid evaluation"
CALIBRATION_IMAGES = 200
EXPLANATIONS = ("auto", "grad-cam", "attention", "rollout", "tokens", "convolutional")


class UsageError(ValueError):
    """Arguments that make no sense together."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments without the program's name; ``None``: the process's own.

    Returns:
        The exit status: 0, 1 for a failure, 2 for wrong arguments.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        given = _parser().parse_args(argv)
        given.check(given)
        if not _set_backend(given.backend):
            return _run_again(argv, given.backend)
        given.run(given)
        sys.stdout.flush()
    except UsageError as error:
        return _fail(error, 2)
    except SystemExit as exit_:  # --help and --version
        return int(exit_.code or 0)
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except (ValueError, ImportError, OSError, RuntimeError, MemoryError) as error:
        return _fail(error, 1)
    return 0


def _fail(error: object, status: int) -> int:
    text = str(error) or type(error).__name__
    if isinstance(error, OSError) and error.strerror and error.filename:
        text = f"{error.filename}: {error.strerror}"
    print(f"error: {text}", file=sys.stderr)
    return status


# Arguments


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="keras-hybrid",
        description="CNN + attention hybrids for face recognition: the models, and what to do "
        "with a trained one.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {_version()}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    command = _command(commands, "list", _list, "list the models that can be built")
    command.add_argument("pattern", nargs="?", default="*", help="a shell pattern, such as '*vit*'")

    command = _command(commands, "info", _info, "say what is known of a model")
    command.add_argument("name", help="a name of `keras-hybrid list`")
    command.add_argument("--layers", action="store_true", help="build it and print its layers")

    command = _command(
        commands,
        "verify",
        _verify,
        "say whether two face images show the same person",
        "Compare two face images, cropped as those the model was trained on. The exit status is "
        "0 for both verdicts.",
    )
    command.add_argument("first", type=Path, metavar="A.jpg")
    command.add_argument("second", type=Path, metavar="B.jpg")
    command.add_argument(
        "--model",
        type=Path,
        required=True,
        help="a .keras file with a layer `embedding`, or a .tflite file exported with "
        "--output embedding",
    )
    command.add_argument(
        "--threshold",
        type=_number(-1, 1),
        help="smallest cosine of the same person, in [-1, 1]; by default the one that training "
        f"or evaluation measured, in the {RESULTS} beside the model",
    )
    command.add_argument("--flip", action="store_true", help="add each image's mirror image")
    command.add_argument("--json", action="store_true", help="print JSON")

    command = _command(
        commands,
        "explain",
        _explain,
        "draw what a model looked at in an image",
        "Draw Grad-CAM, attention and what else a trained model gives for one image, and print "
        "what it answered. Attention shows where a model looked, not why it decided.",
        check=_check_explain,
    )
    command.add_argument("image", type=Path, metavar="IMAGE")
    command.add_argument(
        "--model", type=Path, required=True, help="the .keras file of a trained model"
    )
    command.add_argument(
        "--out",
        type=Path,
        default=Path("explain.png"),
        metavar="FILE",
        help="a .png, .svg or .pdf file (default: explain.png)",
    )
    command.add_argument(
        "--method",
        choices=EXPLANATIONS,
        default="auto",
        help="default: auto, everything that the model can give",
    )
    command.add_argument(
        "--layer",
        action="append",
        metavar="NAME",
        help="whose map Grad-CAM explains (give it again for several, side by side), or whose "
        "attention is drawn",
    )
    command.add_argument(
        "--class",
        dest="class_",
        metavar="N|NAME",
        help="what Grad-CAM explains: a class's number from 0, or with --names its name; by "
        "default the class with the highest score",
    )
    command.add_argument(
        "--names",
        metavar="SOURCE",
        help="names of the classes: a .txt file with one in each line, or what the model was "
        "trained on (a folder, .zip, .csv, .npz, tfds:NAME)",
    )

    command = _command(
        commands,
        "export",
        _export,
        "write a model as LiteRT, SavedModel or ONNX",
        "Export a model, load the result again and compare it with the model.",
        check=_check_export,
    )
    command.add_argument(
        "model",
        type=Path,
        metavar="MODEL",
        help="the .keras file of a trained model; or a name of `keras-hybrid list`, with --weights",
    )
    command.add_argument(
        "out", type=Path, metavar="OUT", help="a .tflite or .onnx file, or a folder"
    )
    command.add_argument("--to", required=True, choices=("litert", "saved_model", "onnx"))
    command.add_argument(
        "--output",
        choices=("embedding", "cosines", "probabilities", "predictions"),
        help="the L2-normalised embedding; the cosines of a cosine classifier; another one's "
        "probabilities; or what the model puts out, whatever it is (default)",
    )
    command.add_argument(
        "--names",
        metavar="SOURCE",
        help="names of the classes, to travel in the file: a .txt file with one in each line, or "
        "what the model was trained on (a folder, .zip, .csv, .npz, tfds:NAME)",
    )
    command.add_argument(
        "--weights",
        metavar="FILE|imagenet",
        help="for MODEL by name: a .weights.h5 or .keras file, or imagenet where Keras has such "
        "weights; without them the export is of an untrained model, to measure size and speed",
    )
    group = command.add_argument_group("for --to litert")
    group.add_argument("--quantize", choices=("float16", "dynamic", "int8"))
    group.add_argument(
        "--representative",
        metavar="SOURCE",
        help="images that int8 is calibrated with: a folder, .zip, .csv, .npz, .rec, tfds:NAME or "
        f"synthetic:IDENTITIESxIMAGES, of which {CALIBRATION_IMAGES} are used",
    )
    group.add_argument("--input-dtype", choices=("uint8", "float32"), help="default: float32")
    group.add_argument(
        "--batch-size",
        type=_batch_size,
        metavar="N|none",
        help="images in a call (default: 1); none leaves it open",
    )

    command = _command(
        commands,
        "convert",
        _convert,
        "write a checkpoint of an original PyTorch implementation as .keras",
        "Load a checkpoint that has the original implementation's parameter names. A missing, "
        "unexpected or misshapen tensor is an error.",
    )
    command.add_argument(
        "checkpoint", type=Path, help="a .pth, .pt, .bin, .safetensors or .npz file"
    )
    command.add_argument("out", type=Path, metavar="OUT.keras")
    command.add_argument("--model", required=True, help="a name of `keras-hybrid list`")
    command.add_argument(
        "--classes", type=_whole_number, help="of the checkpoint (default: the model's own)"
    )
    command.add_argument(
        "--without-top",
        action="store_true",
        help="end in the embedding; needed where the checkpoint has no classifier",
    )

    command = _command(
        commands,
        "evaluate",
        _evaluate,
        "measure a model: identification, verification or both",
        check=_check_evaluate,
    )
    command.add_argument("model", type=Path, metavar="MODEL.keras")
    command.add_argument("--flip", action="store_true", help="use each image's mirror image, too")
    command.add_argument(
        "--batch-size", type=_whole_number, default=64, metavar="N", help="default: 64"
    )
    command.add_argument("--out", type=Path, help=f"folder for {RESULTS}, roc.png and scores.png")
    group = command.add_argument_group("identification of the classes it was trained on")
    group.add_argument(
        "--data",
        metavar="SPEC",
        help="a folder, .zip, .csv, .npz, .rec, tfds:NAME or synthetic:IDENTITIESxIMAGES",
    )
    group.add_argument(
        "--images", metavar="ZIP", help="for a .csv: the folder or .zip of its files"
    )
    group.add_argument(
        "--landmarks",
        metavar="CSV",
        help="for a .csv and a model that takes landmarks: the table that has them, if it is "
        "another one",
    )
    group.add_argument("--split", help="the part of the data to use, such as `test`")
    group.add_argument(
        "--test-fraction",
        type=_number(0, 1),
        metavar="SHARE",
        help="for data without splits: use the share of each class that training with the same "
        "fraction and seed held out",
    )
    group.add_argument("--seed", type=int, help="of --test-fraction (default: 0)")
    group = command.add_argument_group("verification of pairs")
    group.add_argument(
        "--pairs",
        metavar="FILE",
        help="pairs.txt of LFW or a list in its form, pairs_CALFW.txt, pairs_CPLFW.txt, "
        "pair_SLLFW.txt, or a .bin of InsightFace",
    )
    group.add_argument(
        "--pairs-images", metavar="lfw.zip", help="the folder or .zip of a list's images"
    )
    group.add_argument(
        "--pairs-landmarks",
        metavar="CSV",
        help="for a model that takes landmarks: a table of those of a list's images",
    )
    group.add_argument(
        "--threshold",
        type=_number(-1, 1),
        help="judge at this cosine; by default each fold is judged at the best of the others",
    )
    return parser


def _command(
    commands,
    name: str,
    run: Callable[[argparse.Namespace], None],
    summary: str,
    description: str | None = None,
    check: Callable[[argparse.Namespace], None] = lambda given: None,
) -> argparse.ArgumentParser:
    command = commands.add_parser(
        name, help=summary, description=description or f"{summary[0].upper()}{summary[1:]}."
    )
    command.add_argument(
        "--backend", choices=BACKENDS, help="what Keras runs on; sets KERAS_BACKEND"
    )
    command.set_defaults(run=run, check=check)
    return command


def _number(low: float, high: float) -> Callable[[str], float]:
    def number(text: str) -> float:
        value = float(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text} is not in [{low}, {high}]")
        return value

    return number


def _whole_number(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive integer")
    return int(text)


def _batch_size(text: str) -> int | str:
    return "none" if text.lower() == "none" else _whole_number(text)


def _check_export(given: argparse.Namespace) -> None:
    for option in ("quantize", "representative", "input_dtype", "batch_size"):
        if given.to != "litert" and getattr(given, option) is not None:
            raise UsageError(f"--{option.replace('_', '-')} belongs to --to litert.")
    suffix = {"litert": ".tflite", "onnx": ".onnx"}.get(given.to, given.out.suffix)
    if given.out.suffix != suffix:
        raise UsageError(f"OUT must end in {suffix} for --to {given.to}, got {given.out}.")
    if given.model.suffix and given.weights is not None:
        raise UsageError("--weights belongs to a model given by its name.")
    if given.output == "embedding" and given.names is not None:
        raise UsageError("--names belongs to an output of classes, not to --output embedding.")
    if given.quantize == "int8" and given.representative is None:
        raise UsageError(
            "--quantize int8 needs --representative: about a hundred images of the kind the "
            "model will see."
        )


def _check_evaluate(given: argparse.Namespace) -> None:
    if given.data is None and given.pairs is None:
        raise UsageError("Give --data, or --pairs, or both.")
    needs_images = given.pairs is not None and not given.pairs.lower().endswith(".bin")
    if needs_images != (given.pairs_images is not None):
        raise UsageError(
            "--pairs and --pairs-images belong together, except for a .bin, which holds its images."
        )
    for option, owner in (
        ("images", "data"),
        ("landmarks", "data"),
        ("split", "data"),
        ("test_fraction", "data"),
        ("seed", "test_fraction"),
        ("pairs_landmarks", "pairs_images"),
        ("threshold", "pairs"),
    ):
        if getattr(given, option) is not None and getattr(given, owner) is None:
            raise UsageError(
                f"--{option.replace('_', '-')} belongs to --{owner.replace('_', '-')}."
            )
    if given.split is not None and given.test_fraction is not None:
        raise UsageError("Give --split or --test-fraction, not both.")


def _check_explain(given: argparse.Namespace) -> None:
    if given.out.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise UsageError(f"--out must end in .png, .svg or .pdf, got {given.out}.")
    if given.layer is not None and given.method in ("rollout", "tokens"):
        raise UsageError(f"--method {given.method} looks at all layers: leave --layer out.")
    if len(given.layer or ()) > 1 and given.method in ("attention", "convolutional"):
        raise UsageError(f"--method {given.method} draws one layer: give --layer once.")
    if given.class_ is not None and given.method not in ("auto", "grad-cam"):
        raise UsageError(f"--class belongs to Grad-CAM, not to --method {given.method}.")
    if given.class_ is not None and not given.class_.isdecimal() and given.names is None:
        raise UsageError("--class is a number unless --names tells the classes' names.")


def _version() -> str:
    from keras_hybrid._version import __version__

    return __version__


# The backend


def _set_backend(wanted: str | None) -> bool:
    """Choose Keras's backend; return False if Keras already runs on another one.

    Raises:
        ImportError: If the backend, or without a wish every backend, is not installed.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    installed = [name for name in BACKENDS if importlib.util.find_spec(name) is not None]
    if wanted is not None and wanted not in installed:
        raise ImportError(
            f"The backend {wanted} is not installed: pip install 'keras-hybrid[{wanted}]'"
        )
    if "keras" in sys.modules:
        import keras

        return wanted in (None, keras.backend.backend())
    if wanted is not None:
        os.environ["KERAS_BACKEND"] = wanted
    elif "KERAS_BACKEND" not in os.environ and "tensorflow" not in installed:
        if not installed:
            raise ImportError(
                "Keras needs a backend: pip install 'keras-hybrid[tensorflow]', [jax] or [torch]"
            )
        os.environ["KERAS_BACKEND"] = installed[0]
    return True


def _run_again(argv: list[str], backend: str) -> int:
    """Run the same command in a process of its own, where Keras has yet to choose a backend."""
    environment = os.environ | {
        "KERAS_BACKEND": backend,
        "PYTHONPATH": os.pathsep.join(entry or os.getcwd() for entry in sys.path),
    }
    sys.stdout.flush()
    command = [sys.executable, "-P", "-m", "keras_hybrid.cli", *argv]
    return subprocess.run(command, env=environment, check=False).returncode


# list, info


def _list(given: argparse.Namespace) -> None:
    from keras_hybrid.applications.registry import list_models, model_info

    infos = [model_info(name) for name in list_models(given.pattern)]
    if not infos:
        raise ValueError(f"No model matches {given.pattern!r}.")
    rows = [
        [
            info.name,
            info.family,
            _size(info.input_shape),
            f"{info.parameters:,}",
            _macs(info.macs),
            info.paper,
        ]
        for info in infos
    ]
    _print_table(["name", "family", "input", "parameters", "MACs", "paper"], rows, right={3, 4})


def _info(given: argparse.Namespace) -> None:
    from keras_hybrid.applications.registry import create_model, model_info

    info = model_info(given.name)
    facts = {field.name: getattr(info, field.name) for field in dataclasses.fields(info)}
    facts["input_shape"] = _size(info.input_shape)
    facts["macs"] = f"{info.macs:,} ({_macs(info.macs)})"
    facts["limitations"] = "; ".join(f"{k}: {v}" for k, v in info.limitations.items()) or "none"
    _print_facts(facts)
    if given.layers:
        print()
        create_model(given.name).summary()


# convert


def _convert(given: argparse.Namespace) -> None:
    from keras_hybrid.applications.registry import create_model, model_info
    from keras_hybrid.convert import load_torch_weights, read_torch_weights

    if given.out.suffix != ".keras":
        raise UsageError(f"OUT must end in .keras, got {given.out}.")
    info = model_info(given.model)
    weights = read_torch_weights(given.checkpoint)
    top = {"include_top": False, "pooling": "native"} if given.without_top else {}
    model = create_model(given.model, classes=given.classes or info.classes, **top)
    load_torch_weights(model, weights, family=info.family)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    model.save(given.out)
    _print_facts({"written": given.out, "parameters": f"{model.count_params():,}"})


# verify


def _verify(given: argparse.Namespace) -> None:
    for path in (given.first, given.second, given.model):
        _check_file(path)
    threshold, source = _threshold(given)
    from keras_hybrid.evaluation import cosine_scores

    is_litert = given.model.suffix.lower() == ".tflite"
    embeddings = (_embed_with_litert if is_litert else _embed_with_keras)(given)
    cosine = float(cosine_scores(embeddings[:1], embeddings[1:])[0])
    same = cosine >= threshold
    if given.json:
        answer = {
            "same": same,
            "cosine": cosine,
            "threshold": threshold,
            "threshold_source": source,
            "images": [str(given.first), str(given.second)],
            "model": str(given.model),
            "flip": given.flip,
        }
        print(json.dumps(answer, indent=1))
        return
    print("same person" if same else "different people")
    _print_facts({"cosine": f"{cosine:.4f}", "threshold": f"{threshold:.4f} (from {source})"})


def _threshold(given: argparse.Namespace) -> tuple[float, str]:
    """Return the threshold and where it comes from.

    Raises:
        ValueError: If there is none: it depends on the model, so none is made up.
    """
    if given.threshold is not None:
        return given.threshold, "--threshold"
    file = given.model.parent / RESULTS
    advice = (
        "Give --threshold, or measure one: keras-hybrid evaluate MODEL.keras --pairs pairs.txt "
        f"--pairs-images IMAGES --out {given.model.parent}"
    )
    if not file.is_file():
        raise ValueError(f"There is no threshold for {given.model}: no {file}. {advice}")
    verification = _read_results(file).get("verification") or {}
    threshold = verification.get("threshold") if isinstance(verification, Mapping) else None
    if not isinstance(threshold, int | float) or not math.isfinite(threshold):
        raise ValueError(f"{file} holds no verification threshold. {advice}")
    flip = verification.get("flip")
    if flip is not None and flip != given.flip:
        print(
            f"note: the threshold was measured {'with' if flip else 'without'} --flip.",
            file=sys.stderr,
        )
    return float(threshold), str(file)


def _read_results(file: Path) -> dict[str, Any]:
    try:
        results = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}") from error
    if not isinstance(results, dict):
        raise ValueError(f"{file} is not the record of a run: it holds no JSON object.")
    return results


def _read_pair(given: argparse.Namespace, size: tuple[int, int]):
    """Read both images as uint8 (2, height, width, 3)."""
    import numpy as np

    from keras_hybrid.data.files import decode_image, resize_image

    return np.stack(
        [
            resize_image(decode_image(path.read_bytes(), str(path)), size)
            for path in (given.first, given.second)
        ]
    )


def _embed_with_keras(given: argparse.Namespace):
    from keras_hybrid.evaluation import embed

    model = _load_model(given.model)
    size = _image_size(model, given.model)
    _check_embedding(model, given.model)
    return embed(model, _read_pair(given, size), batch_size=2, flip=given.flip)[0]


def _embed_with_litert(given: argparse.Namespace):
    import numpy as np

    from keras_hybrid.evaluation import embed_batches
    from keras_hybrid.export import read_metadata

    try:
        metadata = read_metadata(given.model)
    except ImportError:
        raise
    except Exception as error:  # a damaged file sends the reader anywhere
        raise ValueError(f"{given.model} cannot be read as an exported model: {error}") from error
    from ai_edge_litert.interpreter import Interpreter

    outputs = [output for output in metadata["outputs"] if output["name"] == "embedding"]
    if not outputs:
        raise ValueError(
            f"{given.model} does not put out an embedding: export it with --output embedding."
        )
    image = metadata["input"]
    if list(image["value_range"]) != [0, 255] or image["shape"][-1] != 3:
        raise ValueError(
            f"{given.model} takes values in {image['value_range']} and {image['shape'][-1]} "
            "channels; `verify` feeds photographs, RGB in [0, 255]."
        )
    runner = Interpreter(model_path=str(given.model)).get_signature_runner("serving_default")

    def embedder(batch: np.ndarray) -> np.ndarray:
        return runner(**{image["name"]: batch.astype(image["dtype"])})["embedding"]

    batch_size, *size = image["shape"][:3]
    batch_size = batch_size or 2
    pair = _read_pair(given, tuple(size))
    batches = (pair[start : start + batch_size] for start in range(0, 2, batch_size))
    if given.flip:
        print(
            "note: a .tflite puts out normalised embeddings; the mirror image's is added to these, "
            "so the cosine differs a little from that of the .keras file.",
            file=sys.stderr,
        )
    return embed_batches(embedder, batches, batch_size=batch_size, flip=given.flip)[0]


# explain


def _explain(given: argparse.Namespace) -> None:
    from keras_hybrid.applications.registry import list_models

    if str(given.model) in list_models():
        raise ValueError(
            f"{given.model} is a model without trained weights, which have nothing to explain; "
            "--model takes the .keras file of a trained one."
        )
    for path in (given.image, given.model):
        _check_file(path)
    from keras_hybrid.data.files import decode_image, resize_image

    photograph = decode_image(given.image.read_bytes(), str(given.image))
    model = _load_model(given.model)
    size = _image_size(model, given.model)
    if photograph.shape[:2] != size:
        print(
            f"note: {given.image} has {_size(photograph.shape[:2])} pixels and is resized to the "
            f"model's {_size(size)}.",
            file=sys.stderr,
        )
    names = _class_names(given.names, model)
    from keras_hybrid.explain import explain_image

    result = explain_image(
        model,
        resize_image(photograph, size),
        given.out,
        method=given.method,
        layer=given.layer,
        class_index=_class_number(given.class_, names),
        class_names=names,
    )

    def named(number: int) -> str:
        return f"class {number}" + (f" ({names[number]})" if names else "")

    facts: dict[str, object] = {}
    if result.predicted is not None:
        facts["predicted"] = f"{named(result.predicted)}, {result.score_kind} {result.score:.4f}"
    if result.explained is not None:
        facts["explained"] = named(result.explained)
    for method, layers in result.layers.items():
        facts[method] = f"layer {', '.join(layers)}" if layers else "drawn"
    _print_facts({**facts, "written": result.path})
    for note in result.notes:
        print(f"note: no {note}", file=sys.stderr)


def _class_names(source: str | None, model) -> list[str] | None:
    if source is None:
        return None
    if source.lower().endswith(".txt"):
        names = Path(source).read_text(encoding="utf-8").split("\n")
        names = [name.strip() for name in names if name.strip()]
    else:
        names = list(_open_source(source, (8, 8)).class_names)
    classes = model.outputs[0].shape[-1]
    if len(names) != classes:
        raise ValueError(f"{source} names {len(names)} classes, the model has {classes}.")
    return names


def _class_number(wanted: str | None, names: list[str] | None) -> int | None:
    if wanted is None:
        return None
    if names and wanted in names:
        return names.index(wanted)
    if wanted.isdecimal():
        return int(wanted)
    close = difflib.get_close_matches(wanted, names or [], n=3)
    hint = f" Did you mean {', '.join(close)}?" if close else ""
    raise ValueError(f"No class is named {wanted!r}.{hint}")


# export


def _export(given: argparse.Namespace) -> None:
    from keras_hybrid import export

    model = _model_to_export(given)
    options: dict[str, Any] = {
        "output": given.output,
        "labels": _class_names(given.names, model),
    }
    if given.to == "litert":
        options["quantization"] = given.quantize
        options["input_dtype"] = given.input_dtype or "float32"
        size = given.batch_size or 1
        options["batch_size"] = None if size == "none" else size
        if given.representative is not None:
            size = _image_size(model, given.model)
            options["representative_data"] = _calibration_images(given.representative, size)
    report = getattr(export, f"to_{given.to}")(model, given.out, **options)
    relative = f"{report.max_abs_difference:.3g} ({report.relative_difference:.2g} of the largest)"
    _print_facts(
        {
            "path": report.path,
            "format": report.format,
            "quantization": report.quantization or "none",
            "size": f"{report.size_bytes:,} bytes",
            "inputs": _tensors(report.inputs),
            "outputs": _tensors(report.outputs),
            "largest difference": relative,
            "smallest cosine": f"{report.cosine:.6f}",
            "compared on": f"{report.samples} images",
            "operators": ", ".join(f"{name} {count}" for name, count in report.operators.items()),
            "seconds": f"{report.seconds:.1f}",
        }
    )


def _model_to_export(given: argparse.Namespace):
    if given.model.suffix:
        _check_file(given.model)
        return _load_model(given.model)
    from keras_hybrid.applications.registry import create_model

    model = create_model(str(given.model), weights=given.weights)
    if given.weights is None:
        print(
            f"note: {given.model} is untrained; the file is fit to measure size and speed only.",
            file=sys.stderr,
        )
    return model


def _calibration_images(spec: str, size: tuple[int, int]):
    import numpy as np

    from keras_hybrid import data

    source = _open_source(spec, size)
    count = min(len(source), CALIBRATION_IMAGES)
    chosen = np.linspace(0, len(source) - 1, count).round().astype(int)
    return data.load_arrays(data.Subset(source, chosen.tolist()), size).images


def _tensors(tensors) -> str:
    return ", ".join(
        f"{t.name} {t.dtype} ({', '.join('n' if n is None else str(n) for n in t.shape)})"
        for t in tensors
    )


# evaluate


def _evaluate(given: argparse.Namespace) -> None:
    _check_file(given.model)
    if given.out is not None:
        _check_out(given.out)
    from keras_hybrid import evaluation

    model = _load_model(given.model)
    size = _image_size(model, given.model, may_take_landmarks=True)
    for option in ("landmarks", "pairs_landmarks"):
        if getattr(given, option) is not None and len(model.inputs) == 1:
            raise ValueError(
                f"{given.model} takes no landmarks: leave --{option.replace('_', '-')} out."
            )
    results: dict[str, Any] = {
        "kind": KIND,
        "model": str(given.model),
        "name": model.name,
        "parameters": model.count_params(),
        "classification": None,
        "verification": None,
    }
    pairs = None
    if given.pairs is not None:  # before what takes long: a missing image is known at once
        from keras_hybrid import data

        _check_embedding(model, given.model)
        pairs = data.read_pairs(given.pairs, given.pairs_images, landmarks=given.pairs_landmarks)
    if given.data is not None:
        results["classification"] = _identification(given, model, size)
    verified = None
    if pairs is not None:
        verified = evaluation.evaluate_pairs(
            model,
            pairs,
            flip=given.flip,
            batch_size=given.batch_size,
            threshold=given.threshold,
        )
        results["verification"] = {
            **verified.to_dict(),
            "pairs_file": given.pairs,
            "flip": given.flip,
            "threshold_source": "cross-validation" if given.threshold is None else "--threshold",
        }
        print(f"Verification of {len(pairs):,} pairs\n{_indented(verified)}")
    if given.out is not None:
        results["environment"] = evaluation.environment()
        _write_results(results, model.name, verified, given.out)


def _identification(given: argparse.Namespace, model, size: tuple[int, int]) -> dict[str, Any]:
    from keras_hybrid import data, evaluation

    shape = tuple(model.outputs[0].shape) if len(model.outputs) == 1 else ()
    if len(shape) != 2:
        raise ValueError(
            f"{given.model} does not put out one score for each class, which --data needs; its "
            f"outputs are {[tuple(tensor.shape) for tensor in model.outputs]}."
        )
    table = {} if given.landmarks is None else {"landmarks": given.landmarks}
    source = _open_source(given.data, size, split=given.split, images=given.images, **table)
    if len(source.class_names) != shape[1]:
        raise ValueError(
            f"{given.data} has {len(source.class_names)} classes, {given.model} {shape[1]}: "
            "identification needs the classes the model was trained on, in the same order."
        )
    if given.test_fraction is not None:
        source = data.split_source(source, given.test_fraction, given.seed or 0)[1]
    takes_landmarks = len(model.inputs) > 1
    test = data.load_arrays(source, size, landmarks=takes_landmarks)
    result = evaluation.evaluate_classifier(
        model,
        test.images,
        test.labels,
        flip=given.flip,
        batch_size=given.batch_size,
        class_names=test.class_names,
        landmarks=test.landmarks if takes_landmarks else None,
    )
    confused = result.most_confused(10)
    print(f"Identification on {given.data}\n{_indented(result)}")
    if confused:
        print("  most confused")
        rows = [[c.true, c.predicted, str(c.count), f"{c.share:.1%}"] for c in confused]
        _print_table(["is", "taken for", "times", "share"], rows, right={2, 3}, indent="    ")
    return {
        **result.to_dict(),
        "most_confused": [dataclasses.asdict(c) for c in confused],
        "data": given.data,
        "split": given.split,
        "test_fraction": given.test_fraction,
        "skipped_images": len(test.skipped),
        "flip": given.flip,
    }


def _check_out(folder: Path) -> None:
    """Raise ValueError where results would be lost."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--out {folder} is a file; give a folder.")
    file = folder / RESULTS
    if file.exists() and _read_results(file).get("kind") != KIND:
        raise ValueError(
            f"{file} holds other results, such as a training's; give --out another folder."
        )


def _write_results(results: dict[str, Any], name: str, verified, folder: Path) -> None:
    from keras_hybrid import evaluation

    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / RESULTS]
    partial = folder / f".{RESULTS}.partial"
    partial.write_text(json.dumps(results, indent=1, ensure_ascii=False), encoding="utf-8")
    partial.replace(written[0])
    if verified is not None:
        if importlib.util.find_spec("matplotlib") is None:
            print("note: no figures without matplotlib.", file=sys.stderr)
        else:
            written.append(evaluation.plot_roc({name: verified}, folder / "roc.png"))
            written.append(evaluation.plot_scores(verified, folder / "scores.png"))
    print(f"Written: {', '.join(str(path) for path in written)}")


# Models, files, tables


def _load_model(path: Path):
    """Load a .keras file of this library, for inference."""
    if path.suffix.lower() != ".keras":
        raise ValueError(f"{path} must be a .keras file.")
    import keras

    from keras_hybrid import applications, layers, losses, metrics  # noqa: F401  registers them

    try:
        return keras.saving.load_model(path, compile=False)
    except Exception as error:  # a damaged or foreign archive can provoke almost any
        reason = next((line for line in str(error).splitlines() if line.strip()), repr(error))
        raise ValueError(f"{path} cannot be loaded: {reason.strip()}") from error


def _image_size(model, path: Path, may_take_landmarks: bool = False) -> tuple[int, int]:
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


def _check_embedding(model, path: Path) -> None:
    if "embedding" not in [layer.name for layer in model.layers]:
        raise ValueError(
            f"{path} has no layer named 'embedding', whose output is compared in verification."
        )


def _open_source(spec: str, size: tuple[int, int], **options: Any):
    from keras_hybrid import data

    if spec.startswith("synthetic:"):
        options["image_size"] = max(size)
    return data.open_source(spec, **options)


def _check_file(path: Path) -> None:
    if not path.is_file():
        problem = "is a folder, not a file" if path.is_dir() else "does not exist"
        raise ValueError(f"{path} {problem}.")


def _size(shape: Sequence[int]) -> str:
    return "x".join(str(n) for n in shape)


def _macs(count: int) -> str:
    return f"{count / 1e9:.2f} G" if count >= 1e9 else f"{count / 1e6:.1f} M"


def _indented(text: object) -> str:
    return "\n".join(f"  {line}" for line in str(text).splitlines())


def _print_facts(facts: Mapping[str, object]) -> None:
    width = max(len(name) for name in facts)
    for name, value in facts.items():
        if isinstance(value, bool):
            value = "yes" if value else "no"
        elif isinstance(value, int):
            value = f"{value:,}"
        print(f"{name.replace('_', ' '):<{width}}  {value}")


def _print_table(
    head: Sequence[str], rows: Sequence[Sequence[str]], right: set[int], indent: str = ""
) -> None:
    """Print columns as wide as their widest cell, those in ``right`` aligned to the right."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    for row in [head, *rows]:
        cells = [
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print(f"{indent}{'  '.join(cells)}".rstrip())


if __name__ == "__main__":
    sys.exit(main())
