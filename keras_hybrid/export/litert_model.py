"""An exported ``.tflite`` file as a function of photographs: what is shipped, judged as it is."""

from collections.abc import Callable
from os import PathLike
from typing import Any

import numpy as np

from keras_hybrid.data.files import to_range
from keras_hybrid.export.metadata import read_metadata

__all__ = ["LiteRTModel"]


class LiteRTModel:
    """A ``.tflite`` file that this package wrote, with its outputs as functions of photographs.

    What a function gets is what the Keras model would: uint8 or float (n, height, width, 3) with
    values in [0, 255], any number of them. It is brought to the file's range, type and batch.

    ```python
    model = kh.export.LiteRTModel("face_int8.tflite")
    embeddings, _ = kh.evaluation.embed(model.embedder(), crops)
    print(kh.evaluation.evaluate_pairs(model.embedder(), pairs, image_size=model.image_size))
    ```

    Args:
        path: The file.
        num_threads: Of the interpreter; ``None``: its own default.

    Attributes:
        name: The model's name.
        image_size: (height, width) of the photographs that it takes.
        batch_size: Of its input; ``None`` where it is free.
        value_range: (smallest, largest) value that it takes itself.
        outputs: The description of each output by its name, as :func:`read_metadata` has it.
        labels: Names of the classes, in the order of the scores, or ``None``.

    Raises:
        ValueError: If it is no such file, or does not take photographs in RGB.
        ImportError: If ``ai-edge-litert`` is not installed.
    """

    def __init__(self, path: str | PathLike, num_threads: int | None = None):
        try:
            metadata = read_metadata(path)
        except ImportError:
            raise
        except Exception as error:  # a damaged file sends the reader anywhere
            raise ValueError(f"{path} cannot be read as an exported model: {error}") from error
        from ai_edge_litert.interpreter import Interpreter

        self.path = path
        self.name: str = metadata["model"]
        self.outputs: dict[str, dict[str, Any]] = {o["name"]: o for o in metadata["outputs"]}
        self.labels: list[str] | None = metadata["labels"]
        self._input = metadata["input"]
        self.batch_size, *size = self._input["shape"]
        self.image_size: tuple[int, ...] = tuple(size[:-1])
        self.value_range: tuple[float, float] = tuple(self._input["value_range"])
        if self._input["color_order"] != "RGB":
            raise ValueError(f"{path} takes images of shape {tuple(size)}, not photographs in RGB.")
        interpreter = Interpreter(model_path=str(path), num_threads=num_threads)
        self._run = interpreter.get_signature_runner(metadata["signature"])

    def embedder(self) -> Callable[[np.ndarray], np.ndarray]:
        """Return the function from photographs to unit vectors (n, dim), float32.

        Raises:
            ValueError: If the file puts out none.
        """
        if "embedding" not in self.outputs:
            raise ValueError(
                f"{self.path} does not put out an embedding: export it with output='embedding' "
                "(--output embedding)."
            )
        return self._function("embedding")

    def classifier(self) -> Callable[[np.ndarray], np.ndarray]:
        """Return the function from photographs to scores (n, classes), float32.

        Raises:
            ValueError: If the file does not put out one score for each class.
        """
        (name, output), *others = self.outputs.items()
        if others or name == "embedding" or len(output["shape"]) != 2:
            described = [f"{name} {tuple(o['shape'])}" for name, o in self.outputs.items()]
            raise ValueError(
                f"{self.path} does not put out one score for each class, but "
                f"{', '.join(described)}: export it with output='cosines' or 'probabilities' "
                "(--output)."
            )
        return self._function(name)

    def _function(self, output: str) -> Callable[[np.ndarray], np.ndarray]:
        name, dtype = self._input["name"], self._input["dtype"]

        def call(images: np.ndarray) -> np.ndarray:
            images = np.asarray(images)
            # LiteRT would resize its tensor, and a network that pools answer all the same.
            if images.ndim != 4 or images.shape[1:] != (*self.image_size, 3) or not len(images):
                raise ValueError(
                    f"{self.path} takes images of shape (n, {', '.join(map(str, self.image_size))}"
                    f", 3), n at least 1; received {images.shape}."
                )
            if dtype == "uint8":
                images = np.rint(images)
            images = to_range(images, self.value_range)
            size = self.batch_size or len(images)
            found = []
            for start in range(0, len(images), size):
                some = images[start : start + size].astype(dtype)
                missing = [(0, size - len(some)), (0, 0), (0, 0), (0, 0)]
                full = np.pad(some, missing, mode="edge")  # the file's batch may be fixed
                found.append(self._run(**{name: full})[output][: len(some)])
            return np.concatenate(found)

        return call
