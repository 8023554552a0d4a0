"""From the model in hand to what is exported: one image in, float32 throughout, with samples.

Runs on the model's own backend; the reference outputs that an exported file is compared with
come from here.
"""

import contextlib
import json
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import keras
import numpy as np

IMAGE = "image"
SIGNATURE = "serving_default"
OUTPUTS = ("predictions", "embedding", "cosines", "probabilities")
# Where TensorFlow reads the variables of a SavedModel, it takes these in a path for a pattern.
PATTERN = frozenset("*?[]")
MAX_REPRESENTATIVE_IMAGES = 1000
_MAX_SAMPLES = 8
_FLOAT_POLICIES = {"float16", "bfloat16", "float64", "mixed_float16", "mixed_bfloat16"}
_RESCALING = (keras.layers.Rescaling, keras.layers.Normalization)


@dataclass(frozen=True)
class PreparedModel:
    """A model ready for conversion.

    Attributes:
        model: Functional float32 model: one image batch in, a list of outputs or one output.
        model_name: Name of the model that was given, before its output was chosen.
        folder: Where it was saved, an unzipped Keras archive.
        output_names: Names of the outputs in the exported file.
        kind: What the outputs are: ``"embedding"`` (a unit vector), ``"cosines"``,
            ``"probabilities"``, or ``"predictions"`` (whatever the model puts out).
        modules: Modules that must be imported before the archive can be loaded.
    """

    model: keras.Model
    model_name: str
    folder: Path
    output_names: tuple[str, ...]
    kind: str
    modules: tuple[str, ...]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of the input."""
        return tuple(self.model.inputs[0].shape[1:])

    @property
    def normalization(self) -> dict[str, Any] | None:
        """What the model makes of an image first, x · scale + offset, if one layer does that.

        ``None`` where another such layer or bare arithmetic may have a part in it, and where
        something else takes the image as it is.
        """
        layers = [layer for layer in self.model._flatten_layers() if isinstance(layer, _RESCALING)]
        nodes = [node for level in self.model._nodes_by_depth.values() for node in level]
        first = [node for node in nodes if _takes(node, self.model.inputs[0])]
        if len(layers) != 1 or [node.operation for node in first] != layers:
            return None
        second = [node.operation for node in nodes if _takes(node, first[0].outputs[0])]
        if not all(isinstance(operation, keras.Layer) for operation in second):
            return None
        return _scale_and_offset(layers[0])

    def predict(self, images: np.ndarray) -> list[np.ndarray]:
        """Return the model's outputs for ``images``, as a list of float32 arrays."""
        outputs = self.model.predict(images, batch_size=len(images), verbose=0)
        outputs = outputs if isinstance(outputs, list) else [outputs]
        return [np.asarray(output, dtype=np.float32) for output in outputs]


def prepare(model: keras.Model | str | PathLike, output: str | None, folder: Path) -> PreparedModel:
    """Check a model, choose its outputs, bring it to float32 and save it for conversion.

    Args:
        model: A built Functional or Sequential model, or the path of a ``.keras`` file.
        output: ``None`` or ``"predictions"`` for the model's own outputs, ``"embedding"``,
            ``"cosines"`` or ``"probabilities"``.
        folder: An existing folder; the model is saved below it.

    Returns:
        The prepared model.

    Raises:
        ValueError: If the model cannot be exported as it is; the message says why.
        TypeError: If ``model`` is neither a Keras model nor a path.
    """
    if output not in (None, *OUTPUTS):
        raise ValueError(f"output must be None or one of {OUTPUTS}, received {output!r}.")
    model = _load(model)
    _check(model)
    model_name = model.name
    if output == "embedding":
        from keras_hybrid.applications import embedding_model

        model = embedding_model(model)
    elif output in ("cosines", "probabilities"):
        model = _with_scores(model, output)
    # A model of its own around the same layers: without optimizer, compile() and train_step.
    outputs = list(model.outputs)
    with _float32_defaults():
        bare = keras.Model(
            model.inputs[0], outputs[0] if len(outputs) == 1 else outputs, name=model.name
        )
    archive = folder / "model"
    keras.saving.save_model(bare, archive, zipped=False)
    config_file = archive / "config.json"
    config = json.loads(config_file.read_text("utf-8"))
    float32_config = _as_float32(config)
    modules = {type(layer).__module__ for layer in bare._flatten_layers()} | _modules(config)
    if float32_config != config or any(map(_has_other_precision, bare._flatten_layers())):
        config_file.write_text(json.dumps(float32_config), "utf-8")
        with _float32_defaults():
            bare = keras.saving.load_model(archive, compile=False, safe_mode=False)
    return PreparedModel(
        model=bare,
        model_name=model_name,
        folder=archive,
        output_names=_output_names(model, output),
        kind=output or "predictions",
        modules=tuple(sorted(name for name in modules if _is_custom(name))),
    )


def read_images(data: Any, image_shape: tuple[int, int, int]) -> np.ndarray:
    """Collect representative images into one array.

    Args:
        data: An array ``(n, height, width, channels)``, or an iterable of such arrays, of single
            images, or of tuples that begin with one of these (as data sets of images and labels
            do). At most the first 1000 images are taken.
        image_shape: The height, width and channels that the model expects.

    Returns:
        Array ``(n, height, width, channels)``, uint8 if the data are, float32 otherwise.

    Raises:
        ValueError: If there are no images, or they have another shape.
    """
    batches: list[np.ndarray] = []
    total = 0
    for batch in _batches(data):
        if batch.shape[1:] != image_shape:
            raise ValueError(
                f"representative_data must hold images of shape {image_shape}, "
                f"received an array of shape {batch.shape}."
            )
        batches.append(batch[: MAX_REPRESENTATIVE_IMAGES - total])
        total += len(batches[-1])
        if total >= MAX_REPRESENTATIVE_IMAGES:
            break
    if total == 0:
        raise ValueError("representative_data holds no images.")
    images = np.concatenate(batches)
    return images if images.dtype == np.uint8 else images.astype(np.float32)


def in_float32(model: keras.Model | str | PathLike) -> keras.Model:
    """Return a model as export sees it: in float32, with the same layers and weights.

    Args:
        model: A built Functional or Sequential model, or the path of a ``.keras`` file.

    Raises:
        ValueError: If the model could not be exported; the message says why.
        TypeError: If ``model`` is neither a Keras model nor a path.
    """
    with tempfile.TemporaryDirectory() as folder:
        return prepare(model, None, Path(folder)).model


def choose_samples(
    images: np.ndarray | None,
    image_shape: tuple[int, int, int],
    input_range: tuple[float, float],
    whole_numbers: bool,
) -> np.ndarray:
    """Return the images on which an exported file is compared with the model.

    Args:
        images: Representative images, of which up to eight are taken at equal distances; or
            ``None`` for smooth random ones, always the same.
        image_shape: Height, width and channels.
        input_range: Smallest and largest value of the random images.
        whole_numbers: Whether to round, so that the file may be fed with uint8.

    Returns:
        Float32 array ``(n, height, width, channels)``, n at least 2 for random images.
    """
    if images is not None:
        chosen = np.linspace(0, len(images) - 1, min(_MAX_SAMPLES, len(images))).round()
        samples = images[chosen.astype(int)].astype(np.float32)
    else:
        low, high = input_range
        generator = np.random.default_rng(0)
        height, width, channels = image_shape
        # Coarse squares under fine noise: pure noise looks the same to every convolution.
        coarse = generator.uniform(0, 1, (4, 5, 5, channels))
        rows, columns = (np.arange(size) * 5 // size for size in (height, width))
        fine = generator.uniform(0, 1, (4, height, width, channels))
        unit = 0.8 * coarse[:, rows][:, :, columns] + 0.2 * fine
        samples = (low + (high - low) * unit).astype(np.float32)
    return samples.round() if whole_numbers else samples


def _takes(node: Any, tensor: Any) -> bool:
    return any(taken is tensor for taken in node.input_tensors)


def _scale_and_offset(layer: keras.Layer) -> dict[str, Any] | None:
    """Return what a layer of ``_RESCALING`` does, if that is the same at every pixel."""
    if isinstance(layer, keras.layers.Rescaling):
        scale, offset = np.asarray(layer.scale), np.asarray(layer.offset)
    else:
        mean, variance = _to_numpy(layer.mean), _to_numpy(layer.variance)
        if layer.invert or mean.size != mean.shape[-1]:
            return None
        scale = 1.0 / np.maximum(np.sqrt(variance), keras.config.epsilon())
        scale, offset = scale.squeeze(), (-mean * scale).squeeze()
    return {"scale": scale.tolist(), "offset": offset.tolist()}


def _load(model: keras.Model | str | PathLike) -> keras.Model:
    if isinstance(model, keras.Model):
        return model
    if isinstance(model, str | PathLike):
        return keras.saving.load_model(model, compile=False)
    raise TypeError(
        f"model must be a keras.Model or the path of a .keras file, received {type(model)}."
    )


def _check(model: keras.Model) -> None:
    """Raise ValueError for what none of the formats could take."""
    if not getattr(model, "inputs", None) or not getattr(model, "outputs", None):
        raise ValueError(
            f"Model {model.name!r} has no symbolic inputs: export takes built Functional and "
            "Sequential models."
        )
    functional = type(keras.Model(model.inputs, model.outputs))
    if type(model).call not in (functional.call, keras.Sequential.call):
        raise ValueError(
            f"Model {model.name!r} is a {type(model).__name__}, whose own call() is not among its "
            "symbolic layers, which are what is exported: make a Functional model of what it does."
        )
    if len(model.inputs) != 1:
        names = [tensor.name for tensor in model.inputs]
        raise ValueError(f"Export takes models with one input, received the inputs {names}.")
    shape = tuple(model.inputs[0].shape)
    if len(shape) != 4 or None in shape[1:]:
        raise ValueError(
            "Export takes images of a fixed size, (batch, height, width, channels); the input of "
            f"model {model.name!r} has the shape {shape}. Build it with input_shape=(height, "
            "width, channels) and load the weights."
        )
    for layer in model._flatten_layers():
        if getattr(layer, "data_format", None) == "channels_first":
            raise ValueError(
                f"Layer {layer.name!r} has data_format='channels_first'; export takes "
                "'channels_last' only."
            )
        if getattr(layer, "quantization_mode", None) is not None:
            raise ValueError(
                f"Layer {layer.name!r} was quantized by Keras to {layer.quantization_mode!r}, "
                "which does not convert: export the model as it was before quantize(), with "
                "to_litert(quantization=...)."
            )


def _with_scores(model: keras.Model, output: str) -> keras.Model:
    """Return the model with cosines or probabilities as its output, if it has them.

    Raises:
        ValueError: If it has not; the message says what its classifier puts out.
    """
    from keras_hybrid.layers import CosineClassifier

    if len(model.outputs) != 1 or model.layers[-1].name != "predictions":
        raise ValueError(
            f"output={output!r} needs a model that ends in a layer named 'predictions'; "
            f"{model.name!r} ends in {model.layers[-1].name!r}."
        )
    classifier = model.layers[-1]
    activation = getattr(classifier, "activation", None)
    if isinstance(classifier, CosineClassifier):
        found = "cosines"
    else:
        found = {keras.activations.softmax: "probabilities", keras.activations.linear: "logits"}
        if classifier.output.shape[-1] == 1:
            found[keras.activations.sigmoid] = "probabilities"
        found = found.get(activation, "scores of a kind that cannot be told")
    if found == "logits" and output == "probabilities":
        # One logit is that of the second of two classes; a softmax of it would always be 1.
        kind = "sigmoid" if model.outputs[0].shape[-1] == 1 else "softmax"
        scores = keras.layers.Activation(kind, dtype="float32", name="probabilities")
        return keras.Model(model.inputs[0], scores(model.outputs[0]), name=model.name)
    if found != output:
        reason = (
            " (a probability would depend on the scale of the loss it was trained with)"
            if found == "cosines"
            else ""
        )
        raise ValueError(
            f"output={output!r} does not fit: the layer 'predictions' of {model.name!r}, a "
            f"{type(classifier).__name__}, puts out {found}{reason}. output='predictions' exports "
            "them as they are."
        )
    return model


def _output_names(model: keras.Model, output: str | None) -> tuple[str, ...]:
    if output not in (None, "predictions"):
        return (output,)
    if len(model.outputs) == 1:
        return ("output",)
    names = [name.replace("/", "_") for name in _given_names(model)]
    if len({*names, IMAGE}) < len(model.outputs) + 1:  # the input's name is taken, too
        names = [f"output_{index}" for index in range(len(model.outputs))]
    return tuple(names)


def _given_names(model: keras.Model) -> list[str]:
    """Return the keys of a model's outputs, where they are a dictionary, or their layers' names."""
    outputs = model._outputs_struct
    if isinstance(outputs, dict):
        by_tensor = {id(tensor): key for key, tensor in outputs.items()}
        if all(id(tensor) in by_tensor for tensor in model.outputs):
            return [by_tensor[id(tensor)] for tensor in model.outputs]
    return list(model.output_names)


def _as_float32(config: Any) -> Any:
    """Return a model configuration in which every floating dtype is float32."""
    if isinstance(config, list):
        return [_as_float32(entry) for entry in config]
    if not isinstance(config, dict):
        return config
    config = {key: _as_float32(value) for key, value in config.items()}
    dtype = config.get("dtype")
    if isinstance(dtype, str) and dtype in _FLOAT_POLICIES:
        config["dtype"] = "float32"
    inner = config.get("config")
    is_policy = "DTypePolicy" in str(config.get("class_name")) and isinstance(inner, dict)
    if is_policy and inner.get("name") in _FLOAT_POLICIES:
        config["config"] = inner | {"name": "float32"}
    return config


def _has_other_precision(layer: keras.Layer) -> bool:
    """Tell whether a layer, or a layer inside one, computes or stores in another float type."""
    return bool({layer.compute_dtype, layer.variable_dtype} & _FLOAT_POLICIES)


@contextlib.contextmanager
def _float32_defaults() -> Iterator[None]:
    """Make float32 the default that layers take which a configuration does not name."""
    policy, floatx = keras.config.dtype_policy(), keras.config.floatx()
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")
    try:
        yield
    finally:
        keras.config.set_floatx(floatx)
        keras.config.set_dtype_policy(policy)


def _modules(config: Any) -> set[str]:
    """Return the names of all modules that a model configuration mentions."""
    if isinstance(config, list):
        return set().union(*map(_modules, config))
    if not isinstance(config, dict):
        return set()
    found = set().union(*map(_modules, config.values()))
    is_object = {"class_name", "config"} <= config.keys()  # and no argument of a layer's own
    return found | {config["module"]} if is_object and config.get("module") else found


def _is_custom(module: str) -> bool:
    return module.partition(".")[0] not in {"keras", "builtins", "__main__"}


def _batches(data: Any) -> Iterable[np.ndarray]:
    """Yield arrays of rank 4 from an array or an iterable of arrays or tuples."""
    if hasattr(data, "shape"):
        data = (data,)
    elif isinstance(data, list | tuple) and data:
        is_image = not _is_labelled(data[0]) and np.ndim(data[0]) == 3
        data = (np.stack([_to_numpy(image) for image in data]),) if is_image else data
    for entry in data:
        array = _to_numpy(entry[0] if isinstance(entry, list | tuple) else entry)
        if array.ndim not in (3, 4):
            raise ValueError(
                "representative_data must be images of shape (height, width, channels) or "
                f"batches of them, received an array of shape {array.shape}."
            )
        yield array if array.ndim == 4 else array[None]


def _is_labelled(entry: Any) -> bool:
    """Tell a tuple that begins with an array from an image that is made of lists."""
    return isinstance(entry, list | tuple) and len(entry) > 0 and hasattr(entry[0], "shape")


def _to_numpy(array: Any) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(array))
