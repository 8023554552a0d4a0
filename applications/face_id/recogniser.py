"""From a photograph to faces, from a face to an embedding.

``keras_hybrid.data.FaceDetector`` finds faces and five landmarks; ``keras_hybrid.data.align_face``
cuts the face out as ArcFace's template has it; an exported model embeds it.
"""

import hashlib
from collections.abc import Callable
from os import PathLike
from pathlib import Path

import numpy as np

from applications.face_id.refusal import Refusal
from keras_hybrid.data import Face, FaceDetector, align_face

__all__ = ["Embedder", "Recogniser"]

_SMALLEST_EYE_DISTANCE = 16.0
_BATCH = 32


class Embedder:
    """A model that this library exported: aligned faces → unit vectors.

    Attributes:
        name: The model's.
        fingerprint: SHA-256 of its file. Embeddings of different files are not comparable.
        image_size: Side of the crops it takes, in pixels.

    Raises:
        ValueError: If the file is no such model.
    """

    def __init__(self, path: str | PathLike):
        path = Path(path)
        _check_file(path, "--model")
        readers = {".tflite": _open_litert, ".keras": _open_keras}
        if path.suffix.lower() not in readers:
            raise ValueError(f"--model must be a .tflite or .keras file, got {path}.")
        self.fingerprint = hashlib.sha256(path.read_bytes()).hexdigest()
        self.name, shape, self._model = readers[path.suffix.lower()](path)
        if len(shape) != 4 or None in shape[1:] or shape[1] != shape[2] or shape[3] != 3:
            raise ValueError(f"{path} takes inputs of shape {shape}; square RGB images are needed.")
        self._batch_size = shape[0]
        self.image_size = int(shape[1])

    def embed(self, crops: np.ndarray) -> np.ndarray:
        """Embed aligned faces.

        Args:
            crops: uint8 (n, image_size, image_size, 3), RGB, n ≥ 1.

        Returns:
            float32 (n, dim), each of length 1.
        """
        from keras_hybrid.evaluation import embed_batches

        size = self._batch_size or min(len(crops), _BATCH)
        batches = (crops[start : start + size] for start in range(0, len(crops), size))
        return embed_batches(self._model, batches, batch_size=size)[0]


def _open_litert(path: Path) -> tuple[str, tuple, Callable]:
    from keras_hybrid.export import LiteRTModel

    model = LiteRTModel(path)
    return model.name, (model.batch_size, *model.image_size, 3), model.embedder()


def _open_keras(path: Path) -> tuple[str, tuple, Callable]:
    import keras

    import keras_hybrid  # noqa: F401  registers the layers

    try:
        model = keras.saving.load_model(path, compile=False)
    except Exception as error:  # a damaged or foreign archive can provoke almost any
        raise ValueError(f"{path} cannot be loaded: {error}") from error
    if "embedding" not in [layer.name for layer in model.layers] or len(model.inputs) != 1:
        raise ValueError(f"{path} has no layer named 'embedding', or several inputs.")
    return model.name, tuple(model.inputs[0].shape), model


def _check_file(path: Path, option: str) -> None:
    if not path.is_file():
        raise ValueError(f"{option}: there is no file {path}.")


class Recogniser:
    """Detector and embedder, one after the other.

    Not to be called by two threads at once.
    """

    def __init__(self, detector: FaceDetector, embedder: Embedder):
        self.detector = detector
        self.embedder = embedder

    def faces(self, image: np.ndarray) -> list[Face]:
        """Find the faces of a photograph, the largest first.

        Args:
            image: uint8 (height, width, 3), RGB.

        Raises:
            Refusal: If there is none.
        """
        faces = self.detector.find(image)
        if not faces:
            raise Refusal(
                422,
                "no_face",
                "No face was found. It should be seen from the front and not be covered.",
            )
        return faces

    def only_face(self, image: np.ndarray) -> Face:
        """Find the face of a photograph that must show one person.

        Args:
            image: uint8 (height, width, 3), RGB.

        Raises:
            Refusal: If there is no face, or there are several, or it is too small.
        """
        faces = self.faces(image)
        if len(faces) > 1:
            raise Refusal(
                422,
                "several_faces",
                f"{len(faces)} faces were found. Use a photograph of one person, or cut the others "
                "off.",
            )
        if self.is_too_small(faces[0]):
            raise Refusal(
                422,
                "small_face",
                f"The face is too small: {faces[0].eye_distance:.0f} pixels between the eyes, "
                f"{_SMALLEST_EYE_DISTANCE:.0f} are needed.",
            )
        return faces[0]

    def is_too_small(self, face: Face) -> bool:
        """Whether a face has too few pixels to be compared."""
        return face.eye_distance < _SMALLEST_EYE_DISTANCE

    def crop(self, image: np.ndarray, face: Face) -> np.ndarray:
        """Cut a face out, aligned.

        Args:
            image: uint8 (height, width, 3), RGB.
            face: One that was found in it.

        Returns:
            uint8 (image_size, image_size, 3).
        """
        return align_face(image, face.landmarks, self.embedder.image_size, antialias=True)

    def embed(self, crops: list[np.ndarray]) -> np.ndarray:
        """Embed aligned faces: float32 (n, dim), each of length 1."""
        return self.embedder.embed(np.stack(crops))
