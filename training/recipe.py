"""What a recipe is, and how the command line changes one. Imports neither Keras nor a backend."""

import argparse
import ast
import dataclasses
import importlib
import inspect
import pathlib
import re
from typing import Any

__all__ = [
    "EXPORTS",
    "MIRROR_ONLY",
    "Recipe",
    "add_overrides",
    "check_use",
    "load_recipe",
    "recipe_names",
    "with_overrides",
]

# Of `face_augmentation`: half of the images are mirrored, and nothing else happens to them.
MIRROR_ONLY = {name: 0.0 for name in ("shift", "scale", "rotation", "jitter", "grey", "erasing")}
RECIPES = pathlib.Path(__file__).parent / "recipes"

# Formats of `export`, and the modules that `keras_hybrid.export` requires for them.
EXPORTS = {
    "litert": ("tensorflow", "ai_edge_litert"),
    "int8": ("tensorflow", "ai_edge_litert"),
    "int8_cpu": ("tensorflow", "ai_edge_litert"),
    "saved_model": ("tensorflow",),
    "onnx": ("jax", "jax2onnx", "onnx", "onnxruntime"),
}
# Of Python's words, as they are written on a command line.
_WORDS = {"true": True, "false": False, "none": None}
# What a number may be: a square bracket includes its end, a round one does not.
INTERVALS = {
    "learning_rate": "(0, inf)",
    "matrix_learning_rate": "(0, inf)",
    "scale": "(0, inf)",
    "warmup_epochs": "[0, inf)",
    "restart_factor": "[1, inf)",
    "weight_decay": "[0, inf)",
    "matrix_weight_decay": "[0, inf)",
    "beta_2": "[0, 1)",
    "momentum": "[0, 1)",
    "clip_norm": "(0, inf) or none",
    "ema_momentum": "(0, 1) or none",
    "label_smoothing": "[0, 1)",
    "sampling_rate": "(0, 1]",
    "test_fraction": "(0, 1)",
    "seed": "[0, 4294967295]",
    "workers": "[0, inf)",
}
# The margin's, by loss: an angle, a cosine, a factor.
MARGINS = {
    "arcface": "[0, 3.14159) or none",
    "curricularface": "[0, 3.14159) or none",
    "adaface": "[0, 3.14159) or none",
    "cosface": "[0, inf) or none",
    "sphereface": "(0, inf) or none",
}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything that decides what a run computes. Every field is an option of ``train.py``.

    Attributes:
        model: A name of ``keras_hybrid.list_models()``.
        model_arguments: Further keywords of its builder. KP-RPE with ``landmarks="given"`` takes
            the landmarks of the data.
        initial_weights: A .keras file of another run, or of ``keras-hybrid convert``, that training
            begins with: every layer whose name and shapes agree, at any image size
            (``keras_hybrid.transfer_weights``). Layers that the file lacks begin anew and are
            named, as does the classifier of other classes, by number or by name in the
            ``results.json`` beside the file; the centres of a loss with a margin then begin with
            the classes' mean embeddings (``keras_hybrid.transfer.imprint``). ``None``: from
            scratch.
        data: Training images: a folder, .zip, .csv, .npz, .rec, ``tfds:NAME`` or
            ``synthetic:IDENTITIESxIMAGES`` (``keras_hybrid.data.open_source``).
        images: For a .csv: the folder or .zip its files are relative to.
        train_split: Split of ``data`` to train on: a value of the CSV's split column, a TFDS split.
        test_split: Split of ``data`` to test on. ``None``: ``test_fraction`` of each identity.
        test_fraction: Share of each identity's images that is held out when there is no split.
        images_per_class: Of these, train on at most this many of each class
            (``keras_hybrid.data.sample_per_class`` with ``seed``); ``None``: on all.
        test_images_per_class: And test on at most this many.
        data_options: Further keywords of ``open_source``.
        reading: "memory": training images are decoded once and kept, 37 kB each at 112×112; "lazy":
            each is decoded when a batch wants it, for sets that do not fit into memory.
        image_size: Side of the images in pixels.
        batch_size: Images in a step.
        epochs: Passes over the training images.
        loss: "arcface", "cosface", "sphereface", "curricularface", "adaface" or "softmax"
            (cross-entropy on scaled cosines: a margin of 0), with a cosine classifier; or
            "cross_entropy", with a dense one.
        margin: Of the loss. ``None``: the loss's own default.
        scale: Factor on the cosines (the papers' s).
        sampling_rate: Share of the identities in a training step, for a loss with a margin and very
            many identities (``keras_hybrid.layers.PartialCosineClassifier``); 1: all of them.
        label_smoothing: Of "cross_entropy": the share that is spread over all classes.
        optimizer: "adamw", "adam", "sgd" or "muon" (``keras_hybrid.optimizers.Muon``: for matrices
            and convolutions; AdamW for everything else).
        learning_rate: Peak learning rate.
        schedule: "cosine" (to zero), "cosine_restarts", "one_cycle" (from a 25th of the peak up
            to it in 30 % of the steps, then a cosine to almost zero; Smith and Topin 2018) or
            "constant".
        warmup_epochs: Epochs of linear warm-up, for "cosine".
        restart_steps: First period of "cosine_restarts" in steps (the papers' T_init).
        restart_factor: Growth of the periods (T_mult).
        weight_decay: Decoupled, on matrices and kernels only: not on biases, normalisation, class
            tokens, position embeddings, relative position tables and PReLU's slopes.
        beta_2: Of Adam and AdamW.
        momentum: Of SGD.
        matrix_learning_rate: Peak rate of the matrices that "muon" orthogonalises the updates of;
            everything else has AdamW at ``learning_rate``.
        matrix_weight_decay: Their decoupled weight decay.
        gradient_accumulation_steps: Batches whose gradients are averaged to one update, for batches
            that do not fit into memory. Schedules and averages of the weights go on counting
            batches, as in Keras, and the run's last batches make no update where they are fewer.
        steps_per_execution: Steps that TensorFlow takes in one call of its graph, and JAX without
            calling the callbacks; a checkpoint within an epoch waits for the last of them. PyTorch
            takes 1.
        clip_norm: Largest global norm of the gradients, or ``None``.
        augment: "faces" (``keras_hybrid.data.face_augmentation``), "images"
            (``keras_hybrid.data.image_augmentation``) or "none".
        augmentation: Keywords of that function.
        ema_momentum: Of an exponential moving average of the weights, which is what is validated
            and what the run ends with; ``None``: no average.
        patience: End the run when this many epochs have brought no better validation accuracy;
            ``None``: never.
        validation_every: Epochs between validations; the last epoch is always validated.
        precision: "float32", "mixed_bfloat16" or "mixed_float16".
        remat: Whether attention maps are computed again in the backward pass instead of being kept
            (``keras_hybrid.create_model``): less memory for more time.
        mesh: Devices to train on, such as "data=4,model=2": eight, which share out the images of a
            batch, and in four groups of two the identities
            (``keras_hybrid.distribution.ClassParallel``; JAX only). ``None``: one device.
        seed: Of initial weights, data order, augmentation and dropout; also of the choice of test
            images by ``test_fraction`` and of ``images_per_class``.
        checkpoint_steps: Steps between checkpoints within an epoch, besides one at each epoch's
            end: what a killed run loses at most.
        workers: Threads that prepare batches; 0: none, each is made when training asks for it.
        pairs: Optional images for the closing verification: a list of pairs as LFW's, a ``.bin``
            of InsightFace, a folder or .zip with a folder for each of some people, of whom pairs
            are drawn, or ``synthetic:IDENTITIESxIMAGES``. The people should not be in ``data``.
        pairs_images: For a list of pairs: the folder or .zip of its images.
        pairs_landmarks: For a list of pairs: a table of its images' landmarks
            (``keras_hybrid.data.read_landmarks``), if the model takes them.
        verification_sets: Sets that the trained model is verified on, as ``LFW=lfw.bin
            CFP_FP=cfp_fp.bin``: names of ``keras_hybrid.data.list_verification_sets()``, with
            hyphens or underscores, and the file, or FILE,IMAGES for a list of pairs and the folder
            or .zip of its images (``keras_hybrid.data.read_verification_set``, which compares the
            file with the set's protocol).
        pairs_every: Epochs between verifications of the pairs during training, whose accuracy, its
            deviation, area under the ROC and XNorm join the logs, and whose ROC curves the report
            shows in one figure; 0: only at the end.
        export: Formats to write at the end, joined by "+": "litert", "int8", "int8_cpu",
            "saved_model", "onnx"; or "none".
    """

    model: str
    data: str
    model_arguments: dict[str, Any] = dataclasses.field(default_factory=dict)
    initial_weights: str | None = None
    images: str | None = None
    train_split: str | None = None
    test_split: str | None = None
    test_fraction: float = 0.2
    images_per_class: int | None = None
    test_images_per_class: int | None = None
    data_options: dict[str, Any] = dataclasses.field(default_factory=dict)
    reading: str = "memory"
    image_size: int = 64
    batch_size: int = 64
    epochs: int = 40
    loss: str = "cosface"
    margin: float | None = None
    scale: float = 30.0
    sampling_rate: float = 1.0
    label_smoothing: float = 0.0
    optimizer: str = "adamw"
    learning_rate: float = 1e-3
    schedule: str = "cosine"
    warmup_epochs: float = 4.0
    restart_steps: int = 1000
    restart_factor: float = 1.0
    weight_decay: float = 0.05
    beta_2: float = 0.99
    momentum: float = 0.9
    matrix_learning_rate: float = 5e-3
    matrix_weight_decay: float = 0.2
    gradient_accumulation_steps: int = 1
    steps_per_execution: int = 1
    clip_norm: float | None = 2.0
    augment: str = "faces"
    augmentation: dict[str, Any] = dataclasses.field(default_factory=dict)
    ema_momentum: float | None = None
    patience: int | None = None
    validation_every: int = 4
    precision: str = "float32"
    remat: bool = False
    mesh: str | None = None
    seed: int = 0
    checkpoint_steps: int = 500
    workers: int = 1
    pairs: str | None = None
    pairs_images: str | None = None
    pairs_landmarks: str | None = None
    verification_sets: dict[str, Any] = dataclasses.field(default_factory=dict)
    pairs_every: int = 0
    export: str = "none"

    def __post_init__(self):
        accepted = {
            "loss": (
                "arcface",
                "cosface",
                "sphereface",
                "curricularface",
                "adaface",
                "softmax",
                "cross_entropy",
            ),
            "optimizer": ("adamw", "adam", "sgd", "muon"),
            "schedule": ("cosine", "cosine_restarts", "one_cycle", "constant"),
            "augment": ("faces", "images", "none"),
            "reading": ("memory", "lazy"),
            "precision": ("float32", "mixed_bfloat16", "mixed_float16"),
        }
        for name, values in accepted.items():
            if getattr(self, name) not in values:
                raise ValueError(
                    f"{name} must be one of {', '.join(values)}; got {getattr(self, name)!r}."
                )
        for name in (
            "image_size",
            "batch_size",
            "epochs",
            "gradient_accumulation_steps",
            "steps_per_execution",
            "restart_steps",
            "checkpoint_steps",
            "validation_every",
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a positive integer; got {value!r}.")
        for name, interval in INTERVALS.items():
            self._check_number(name, interval)
        if self.loss in MARGINS:
            self._check_number("margin", MARGINS[self.loss], f" for loss={self.loss!r}")
        for name in ("patience", "images_per_class", "test_images_per_class"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be positive or none; got {value!r}.")
        if self.batch_size % self.mesh_axes.get("data", 1):
            raise ValueError(
                f"batch_size must be a multiple of the mesh's data; got batch_size="
                f"{self.batch_size}, mesh={self.mesh!r}."
            )
        if self.margin is not None and self.loss in ("cross_entropy", "softmax"):
            raise ValueError(
                f"margin is for a loss with one, such as 'cosface'; got margin={self.margin!r}, "
                f"loss={self.loss!r}."
            )
        if self.sampling_rate < 1 and self.loss == "cross_entropy":
            raise ValueError(
                "sampling_rate below 1 needs a loss on cosines, such as 'cosface'; got "
                "loss='cross_entropy'."
            )
        mixes = self.augmentation.get("mixup") or self.augmentation.get("cutmix")
        if self.loss != "cross_entropy" and (self.label_smoothing or mixes):
            raise ValueError(
                "label_smoothing, mixup and cutmix need loss='cross_entropy': a margin has one "
                f"class; got loss={self.loss!r}."
            )
        owners = {"images": "images", "split": "train_split and test_split"}
        if taken := sorted(self.data_options.keys() & owners):
            raise ValueError(f"data_options has {taken[0]}: give {owners[taken[0]]} instead.")
        if (self.train_split is None) != (self.test_split is None):
            raise ValueError(
                "train_split and test_split belong together; got "
                f"train_split={self.train_split!r}, test_split={self.test_split!r}."
            )
        if self.pairs_every < 0 or (self.pairs_every and self.pairs is None):
            raise ValueError(
                "pairs_every must be 0, or positive with pairs; got "
                f"pairs_every={self.pairs_every!r}, pairs={self.pairs!r}."
            )
        if self.export != "none" and not set(self.export.split("+")) <= set(EXPORTS):
            raise ValueError(
                f"export must be of {', '.join(EXPORTS)}, joined by '+', or none; got "
                f"{self.export!r}."
            )
        pairs = self.pairs or ""
        # As `keras_hybrid.data.verification_sets.holds_images`; no Keras before its backend is set.
        alone = not pairs or pairs.startswith("synthetic:") or pathlib.Path(pairs).is_dir()
        alone = alone or pairs.lower().endswith((".bin", ".zip"))
        is_lost_folder = not alone and not pathlib.Path(pairs).suffix
        if is_lost_folder and self.pairs_images is None and not pathlib.Path(pairs).exists():
            raise ValueError(f"pairs={self.pairs!r} does not exist.")
        if alone != (self.pairs_images is None):
            raise ValueError(
                "A list of pairs and pairs_images belong together; got "
                f"pairs={self.pairs!r}, pairs_images={self.pairs_images!r}."
            )
        if self.pairs_landmarks is not None and self.pairs_images is None:
            raise ValueError(
                "pairs_landmarks belongs to a list of pairs with pairs_images; got "
                f"pairs={self.pairs!r}, pairs_landmarks={self.pairs_landmarks!r}."
            )
        if self.takes_landmarks:
            self._check_landmarks()

    @property
    def mesh_axes(self) -> dict[str, int]:
        """Devices by axis of the mesh; empty without one."""
        if self.mesh is None:
            return {}
        axes = re.fullmatch(r"data=([1-9]\d*)(?:,model=([1-9]\d*))?", self.mesh)
        if axes is None:
            raise ValueError(f"mesh must be like 'data=4,model=2' or none; got {self.mesh!r}.")
        return {"data": int(axes[1]), "model": int(axes[2] or 1)}

    @property
    def takes_landmarks(self) -> bool:
        """Whether the model has landmarks as its second input."""
        return self.model_arguments.get("landmarks") == "given"

    def _check_number(self, name: str, interval: str, where: str = "") -> None:
        """Raise ValueError for a number outside its interval, and for NaN."""
        value = getattr(self, name)
        ends = interval.removesuffix(" or none")
        if value is None and ends != interval:
            return
        low, high = (float(end) for end in ends[1:-1].split(","))
        above = value >= low if ends[0] == "[" else value > low
        below = value <= high if ends[-1] == "]" else value < high
        if not (above and below):
            raise ValueError(f"{name} must be in {interval}{where}; got {value!r}.")

    def _check_landmarks(self) -> None:
        """Raise ValueError where something does not go with a model that takes landmarks."""
        model = "a model with landmarks='given'"
        if self.augment == "images":
            raise ValueError(
                f"augment='images' does not move landmarks with the pixels, which {model} needs: "
                "augment must be 'faces' or 'none'."
            )
        if self.export != "none":
            raise ValueError(
                f"export must be 'none' for {model}: files are written of models with one input; "
                f"got {self.export!r}."
            )
        if self.verification_sets:
            raise ValueError(
                f"verification_sets have no landmarks, which {model} needs: give one of them as "
                f"pairs with pairs_landmarks; got {self.verification_sets!r}."
            )
        if self.pairs is not None and self.pairs_landmarks is None:
            raise ValueError(
                f"pairs need pairs_landmarks, a table of their images' landmarks, for {model}, "
                f"hence a list of pairs with pairs_images; got pairs={self.pairs!r}."
            )


def recipe_names() -> list[str]:
    """Return the names of the recipes that come with the project, sorted."""
    return sorted(path.stem for path in RECIPES.glob("*.py") if path.stem != "__init__")


def load_recipe(name: str) -> Recipe:
    """Return the ``recipe`` of ``training/recipes/NAME.py``.

    Raises:
        ValueError: If there is no such file.
    """
    if name not in recipe_names():
        raise ValueError(f"No recipe is named {name!r}; there are: {', '.join(recipe_names())}.")
    return importlib.import_module(f"training.recipes.{name}").recipe


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Give ``parser`` one option for every field of a recipe."""
    group = parser.add_argument_group("recipe values (each overrides the recipe's)")
    descriptions = _descriptions()
    for field in dataclasses.fields(Recipe):
        option = f"--{field.name.replace('_', '-')}"
        description = descriptions.get(field.name, "")  # `python -OO` leaves none
        if getattr(field.type, "__origin__", None) is dict:
            description += " Added to the recipe's, key by key."
            group.add_argument(option, nargs="+", metavar="KEY=VALUE", help=description)
        else:
            group.add_argument(option, metavar="VALUE", help=description)


def _descriptions() -> dict[str, str]:
    """Return what the docstring says of each field, as argparse wants it."""
    text = inspect.cleandoc(Recipe.__doc__ or "").partition("Attributes:\n")[2]
    entries = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", text, re.MULTILINE)
    return {
        name: " ".join(entry.replace("``", "").replace("%", "%%").split())
        for name, entry in entries
    }


def with_overrides(recipe: Recipe, arguments: argparse.Namespace) -> Recipe:
    """Return the recipe with the values that were given on the command line.

    Raises:
        ValueError: If a value has the wrong type for its field; the message names the option.
    """
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(Recipe):
        given = getattr(arguments, field.name, None)
        if given is None:
            continue
        option = f"--{field.name.replace('_', '-')}"
        if isinstance(given, list):
            changes[field.name] = {**getattr(recipe, field.name), **_pairs(option, given)}
        else:
            changes[field.name] = _convert(option, given, field.type)
    if changes.get("augment", recipe.augment) != recipe.augment:
        # Keywords of another function: the recipe's own mean nothing to it.
        changes["augmentation"] = _pairs("--augmentation", arguments.augmentation or [])
    if changes.get("loss", recipe.loss) != recipe.loss:
        changes.setdefault("margin", None)  # one loss's angle is another's cosine or factor
    return dataclasses.replace(recipe, **changes)


def check_use(recipe: Recipe, arguments: argparse.Namespace) -> None:
    """Raise ValueError where a value of the command line has no use in the recipe."""
    for name, is_used, where in (
        ("test_fraction", recipe.test_split is None, f"test_split={recipe.test_split!r}"),
        ("scale", recipe.loss != "cross_entropy", "loss='cross_entropy'"),
        *(
            (name, recipe.optimizer == "muon", f"optimizer={recipe.optimizer!r}")
            for name in ("matrix_learning_rate", "matrix_weight_decay")
        ),
        *(
            (name, recipe.schedule == "cosine_restarts", f"schedule={recipe.schedule!r}")
            for name in ("restart_steps", "restart_factor")
        ),
        ("momentum", recipe.optimizer == "sgd", f"optimizer={recipe.optimizer!r}"),
        ("beta_2", recipe.optimizer != "sgd", f"optimizer={recipe.optimizer!r}"),
        ("warmup_epochs", recipe.schedule == "cosine", f"schedule={recipe.schedule!r}"),
    ):
        if getattr(arguments, name, None) is not None and not is_used:
            raise ValueError(f"--{name.replace('_', '-')} has no use with {where}: leave it out.")


def _pairs(option: str, items: list[str]) -> dict[str, Any]:
    values = {}
    for item in items:
        key, equals, text = item.partition("=")
        if not equals or not key.replace("-", "_").isidentifier():
            raise ValueError(f"{option} takes KEY=VALUE, got {item!r}.")
        values[key] = _literal(text)
    return values


def _literal(text: str) -> Any:
    if text.lower() in _WORDS:  # as for a recipe's own fields
        return _WORDS[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _convert(option: str, text: str, kind: Any) -> Any:
    kinds = getattr(kind, "__args__", (kind,))
    if type(None) in kinds and text.lower() == "none":
        return None
    target = next(k for k in kinds if k is not type(None))
    if target is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError(f"{option} must be true or false; got {text!r}.")
        return text.lower() == "true"
    try:
        return target(text)
    except ValueError:
        raise ValueError(f"{option} must be {target.__name__}; got {text!r}.") from None
