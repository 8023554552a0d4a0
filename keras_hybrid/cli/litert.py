"""A .tflite file of this library in place of a model: what is shipped can be judged as it is."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from keras_hybrid.cli.reading import to_range


class ExportedModel:
    """What a ``.tflite`` file says of itself, and its outputs as functions of photographs.

    Args:
        path: The file.
        input_range: What ``--input-range`` says, or None; it must be the file's own.

    Attributes:
        name: The model's name.
        size: (height, width) of the photographs that it takes.
        batch_size: Of its input; None where it is free.
        input_range: Smallest and largest value that it takes.
        outputs: The description of each output by its name
            (:func:`keras_hybrid.export.read_metadata`).

    Raises:
        ValueError: If it is no file of this library, or does not take RGB photographs.
        ImportError: If ``ai-edge-litert`` is not installed.
    """

    def __init__(self, path: Path, input_range: list[float] | None):
        from keras_hybrid.export import read_metadata

        try:
            metadata = read_metadata(path)
        except ImportError:
            raise
        except Exception as error:  # a damaged file sends the reader anywhere
            raise ValueError(f"{path} cannot be read as an exported model: {error}") from error
        from ai_edge_litert.interpreter import Interpreter

        self.path = path
        self.name = metadata["model"]
        self.outputs = {output["name"]: output for output in metadata["outputs"]}
        self._input = metadata["input"]
        self.batch_size, *size, channels = self._input["shape"]
        self.size = tuple(size)
        self.input_range = self._input["value_range"]
        low, high = self.input_range
        if input_range not in (None, [low, high]):
            raise ValueError(
                f"{path} says itself that it takes values in [{low:g}, {high:g}]: leave "
                "--input-range out."
            )
        if channels != 3:
            raise ValueError(f"{path} takes {channels} channels, not photographs in RGB.")
        interpreter = Interpreter(model_path=str(path))
        self._run = interpreter.get_signature_runner(metadata["signature"])

    def embedder(self) -> Callable[[np.ndarray], np.ndarray]:
        """Return the function from photographs to embeddings.

        Raises:
            ValueError: If it puts out none.
        """
        if "embedding" not in self.outputs:
            raise ValueError(
                f"{self.path} does not put out an embedding: export it with --output embedding."
            )
        return self._function("embedding")

    def classifier(self) -> tuple[Callable[[np.ndarray], np.ndarray], int]:
        """Return the function from photographs to scores, and the number of classes.

        Raises:
            ValueError: If it does not put out one score for each class.
        """
        (name, output), *others = self.outputs.items()
        if others or name == "embedding" or len(output["shape"]) != 2:
            described = [f"{name} {tuple(o['shape'])}" for name, o in self.outputs.items()]
            raise ValueError(
                f"{self.path} does not put out one score for each class, which --data needs, but "
                f"{', '.join(described)}: export it with --output cosines or probabilities."
            )
        return self._function(name), output["shape"][1]

    def _function(self, output: str) -> Callable[[np.ndarray], np.ndarray]:
        def call(images: np.ndarray) -> np.ndarray:
            """Photographs in [0, 255] (n, height, width, 3) → (n, …), float32."""
            images = to_range(np.asarray(images), self.input_range).astype(self._input["dtype"])
            size = self.batch_size or len(images)
            found = []
            for start in range(0, len(images), size):
                some = images[start : start + size]
                missing = [(0, size - len(some)), (0, 0), (0, 0), (0, 0)]
                full = np.pad(some, missing, mode="edge")  # the input's batch may be fixed
                found.append(self._run(**{self._input["name"]: full})[output][: len(some)])
            return np.concatenate(found)

        return call
