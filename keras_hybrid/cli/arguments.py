"""The arguments of all commands, and which of them go together. Keras is not imported here."""

import argparse
import ast
import math
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from keras_hybrid.cli.align import run_align
from keras_hybrid.cli.errors import UsageError
from keras_hybrid.cli.evaluate import run_evaluate
from keras_hybrid.cli.explain import run_explain
from keras_hybrid.cli.export import CALIBRATION_IMAGES, run_export
from keras_hybrid.cli.models import run_convert, run_info, run_list
from keras_hybrid.cli.reading import RESULTS
from keras_hybrid.cli.shard import run_shard
from keras_hybrid.cli.verify import run_verify

BACKENDS = ("tensorflow", "jax", "torch")
EXPLANATIONS = ("auto", "grad-cam", "attention", "rollout", "tokens", "convolutional")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = _Parser(
        prog="keras-hybrid",
        description="CNN + attention hybrids for face recognition: the models, and what to do "
        "with a trained one.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {_version()}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    command = _command(commands, "list", run_list, "list the models that can be built")
    command.add_argument("pattern", nargs="?", default="*", help="a shell pattern, such as '*vit*'")

    command = _command(commands, "info", run_info, "say what is known of a model")
    command.add_argument("name", help="a name of `keras-hybrid list`")
    command.add_argument("--layers", action="store_true", help="build it and print its layers")

    command = _command(
        commands,
        "verify",
        run_verify,
        "say whether two face images show the same person",
        "Compare two face images, cropped as those the model was trained on. The exit status is "
        "0 for both verdicts.",
        check=_check_input_range,
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
    _add_input_range(command, "; images are brought to it. A .tflite file says its own")
    command.add_argument("--json", action="store_true", help="print JSON")

    command = _command(
        commands,
        "explain",
        run_explain,
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
    _add_input_range(command, "; IMAGE is brought to it")

    command = _command(
        commands,
        "export",
        run_export,
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
    _add_input_range(command, "; the images of --representative are brought to it")
    group = command.add_argument_group("for --to litert")
    group.add_argument("--quantize", choices=("float16", "dynamic", "int8", "int8_cpu"))
    group.add_argument(
        "--representative",
        metavar="SOURCE",
        help="images that int8 is calibrated with: a folder, .zip, .csv, .npz, .rec, tfds:NAME or "
        f"synthetic:IDENTITIESxIMAGES, of which {CALIBRATION_IMAGES} are used",
    )
    _add_data_options(group, "--representative")
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
        run_convert,
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
        run_evaluate,
        "measure a model: identification, verification or both",
        check=_check_evaluate,
    )
    command.add_argument(
        "model",
        type=Path,
        metavar="MODEL",
        help="a .keras file, or a .tflite file as it is shipped: exported with --output embedding "
        "for pairs, with scores for data",
    )
    command.add_argument("--flip", action="store_true", help="use each image's mirror image, too")
    _add_input_range(command, "; images are brought to it. A .tflite file says its own")
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
    _add_images(group)
    group.add_argument(
        "--landmarks",
        metavar="CSV",
        help="for a .csv and a model that takes landmarks: the table that has them, if it is "
        "another one",
    )
    group.add_argument("--split", help="the part of the data to use, such as `test`")
    _add_data_options(group, "--data")
    group.add_argument(
        "--test-fraction",
        type=_fraction,
        metavar="SHARE",
        help="for data without splits: use the share of each class that training with the same "
        "fraction and seed held out",
    )
    group.add_argument("--seed", type=_seed, help="of --test-fraction (default: 0)")
    group = command.add_argument_group("verification of pairs")
    group.add_argument(
        "--pairs",
        metavar="FILE",
        help="pairs.txt of LFW or a list in its form, pairs_CALFW.txt, pairs_CPLFW.txt, "
        "pair_SLLFW.txt, a .bin of InsightFace, or a folder or .zip with a folder for each of some "
        "people that were not trained on, of whom pairs are drawn",
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
        "--verification-set",
        metavar="NAME",
        help="what the pairs are, such as LFW, CFP-FP or AgeDB-30: stop if they are not as many as "
        "its protocol has",
    )
    group.add_argument(
        "--threshold",
        type=_number(-1, 1),
        help="judge at this cosine; by default each fold is judged at the best of the others",
    )

    command = _command(
        commands,
        "align",
        run_align,
        "cut the faces out of photographs, as training wants them",
        "Find the face of each photograph with YuNet and write it as an aligned crop, a folder for "
        "each person, with a table of landmarks, index.csv. Photographs without a face and broken "
        "files are reported and left out.",
        check=_check_quality,
    )
    command.add_argument(
        "source",
        metavar="SOURCE",
        help="photographs: a folder or .zip with a folder for each person, a .csv, .npz, .rec or "
        "tfds:NAME",
    )
    command.add_argument("out", type=Path, metavar="OUT", help="a new folder")
    command.add_argument(
        "--detector",
        type=Path,
        required=True,
        metavar="FILE",
        help="yunet_n_dynamic.onnx of https://github.com/ShiqiYu/libfacedetection.train",
    )
    _add_images(command)
    command.add_argument("--split", help="the part of the photographs to take, such as `train`")
    _add_columns(command)
    command.add_argument(
        "--image-size",
        type=_whole_number,
        default=112,
        metavar="N",
        help="side of the crops in pixels (default: 112)",
    )
    command.add_argument(
        "--several",
        choices=("largest", "skip"),
        default="largest",
        help="of a photograph with several faces: take the largest (default) or none",
    )
    command.add_argument(
        "--eye-distance",
        type=_number(0, math.inf),
        default=16.0,
        metavar="N",
        help="pixels between the eyes that a face needs (default: 16)",
    )
    command.add_argument(
        "--quality",
        type=_whole_number,
        metavar="N",
        help="write JPEG of this quality, 1 to 100, instead of PNG",
    )

    command = _command(
        commands,
        "shard",
        run_shard,
        "write a data set as a few large files that are quick to copy and to read at random",
        "Write labelled images into ArrayRecord files, which training reads as it reads a folder. "
        "JPEG, PNG and other files are kept byte for byte unless they are resized; unreadable ones "
        "are reported and left out.",
        check=_check_quality,
    )
    command.add_argument(
        "source", metavar="SOURCE", help="a folder, .zip, .csv, .npz, .rec or tfds:NAME"
    )
    command.add_argument("out", type=Path, metavar="OUT", help="a new folder")
    _add_images(command)
    command.add_argument("--split", help="the part of the data to write, such as `train`")
    _add_columns(command)
    command.add_argument(
        "--landmarks", metavar="CSV", help="for a .csv: the table of landmarks, if it is another"
    )
    command.add_argument(
        "--align",
        action="store_true",
        help="write aligned crops of --image-size (default: 112) instead of the photographs, which "
        "need landmarks",
    )
    command.add_argument(
        "--shards", type=_whole_number, metavar="N", help="default: one for 10,000 images"
    )
    command.add_argument(
        "--image-size",
        type=_whole_number,
        metavar="N",
        help="height and width in pixels that other images are resized to",
    )
    command.add_argument(
        "--quality",
        type=_whole_number,
        metavar="N",
        help="of JPEG, 1 to 100, for images that are resized or come from arrays; by default they "
        "become PNG, without loss",
    )
    command.add_argument(
        "--workers", type=_whole_number, default=1, metavar="N", help="threads (default: 1)"
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


def _add_images(parser) -> None:
    parser.add_argument(
        "--images", metavar="ZIP", help="for a .csv: the folder or .zip of its files"
    )


def _add_columns(parser) -> None:
    for kind in ("file", "label", "split"):
        parser.add_argument(
            f"--{kind}-column", metavar="NAME", help=f"for a .csv (default: {kind})"
        )


def _number(low: float, high: float) -> Callable[[str], float]:
    def number(text: str) -> float:
        value = float(text)
        if not low <= value <= high:
            limits = f"at least {low}" if high == math.inf else f"in [{low}, {high}]"
            raise argparse.ArgumentTypeError(f"{text} is not {limits}")
        return value

    return number


def _fraction(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def _whole_number(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive integer")
    return int(text)


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not 0 or a positive integer")
    return int(text)


def _batch_size(text: str) -> int | str:
    return "none" if text.lower() == "none" else _whole_number(text)


def _add_input_range(command: argparse.ArgumentParser, whose: str) -> None:
    command.add_argument(
        "--input-range",
        nargs=2,
        type=float,
        metavar=("LOW", "HIGH"),
        help="smallest and largest value the model expects of an image, if it was built without "
        f"preprocessing (default: 0 255){whose}",
    )


def _check_export(given: argparse.Namespace) -> None:
    for option in ("quantize", "representative", "input_dtype", "batch_size"):
        if given.to != "litert" and getattr(given, option) is not None:
            raise UsageError(f"--{option.replace('_', '-')} belongs to --to litert.")
    suffix = {"litert": ".tflite", "onnx": ".onnx"}.get(given.to, given.out.suffix)
    if given.out.suffix != suffix:
        raise UsageError(f"OUT must end in {suffix} for --to {given.to}, got {given.out}.")
    if given.data_options is not None and given.representative is None:
        raise UsageError("--data-options belongs to --representative.")
    if given.model.suffix and given.weights is not None:
        raise UsageError("--weights belongs to a model given by its name.")
    if given.output == "embedding" and given.names is not None:
        raise UsageError("--names belongs to an output of classes, not to --output embedding.")
    if given.quantize in ("int8", "int8_cpu") and given.representative is None:
        raise UsageError(
            f"--quantize {given.quantize} needs --representative: about a hundred images of the "
            "kind the model will see."
        )
    _check_input_range(given)


def _check_evaluate(given: argparse.Namespace) -> None:
    if given.data is None and given.pairs is None:
        raise UsageError("Give --data, or --pairs, or both.")
    from keras_hybrid.data.verification_sets import holds_images

    needs_images = given.pairs is not None and not holds_images(given.pairs)
    is_lost_folder = needs_images and not Path(given.pairs).suffix
    if is_lost_folder and given.pairs_images is None and not Path(given.pairs).exists():
        raise ValueError(f"--pairs: {given.pairs} does not exist.")
    if needs_images != (given.pairs_images is not None):
        raise UsageError(
            "--pairs and --pairs-images belong together, except for a .bin, a folder or a .zip: "
            "each holds its images."
        )
    for option, owner in (
        ("images", "data"),
        ("landmarks", "data"),
        ("split", "data"),
        ("data_options", "data"),
        ("test_fraction", "data"),
        ("seed", "test_fraction"),
        ("pairs_landmarks", "pairs_images"),
        ("verification_set", "pairs"),
        ("threshold", "pairs"),
    ):
        if getattr(given, option) is not None and getattr(given, owner) is None:
            raise UsageError(
                f"--{option.replace('_', '-')} belongs to --{owner.replace('_', '-')}."
            )
    _check_input_range(given)
    if given.split is not None and given.test_fraction is not None:
        raise UsageError("Give --split or --test-fraction, not both.")
    for name, _ in given.data_options or ():
        if name in ("images", "landmarks", "split"):
            raise UsageError(f"--data-options has {name}: give --{name} instead.")


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
    _check_input_range(given)


def _add_data_options(group: argparse._ArgumentGroup, of: str) -> None:
    group.add_argument(
        "--data-options",
        nargs="+",
        type=_keyword,
        metavar="KEY=VALUE",
        help=f"how {of} is read, as in training: align=true, label_column=person, …",
    )


def _keyword(text: str) -> tuple[str, object]:
    """Read KEY=VALUE as the programs of training do."""
    key, equals, value = text.partition("=")
    if not equals or not key.isidentifier():
        raise argparse.ArgumentTypeError(f"must be KEY=VALUE, got {text!r}")
    words = {"true": True, "false": False, "none": None}
    if value.lower() in words:
        return key, words[value.lower()]
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value


def _check_input_range(given: argparse.Namespace) -> None:
    if given.input_range is None:
        return
    low, high = given.input_range
    if not (low < high and math.isfinite(high - low)):
        raise UsageError(
            f"--input-range takes two finite numbers, the smaller one first, got {low:g} {high:g}."
        )


def _check_quality(given: argparse.Namespace) -> None:
    if given.quality is not None and given.quality > 100:
        raise UsageError(f"--quality must be in [1, 100], got {given.quality}.")


def _version() -> str:
    from keras_hybrid._version import __version__

    return __version__
