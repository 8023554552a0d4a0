"""From a photograph to faces, from a face to an embedding.

YuNet finds faces and five landmarks (OpenCV's ``FaceDetectorYN``); ``keras_hybrid.data.align_face``
cuts the face out as ArcFace's template has it; an exported model embeds it.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from applications.face_id.refusal import Refusal
from keras_hybrid.data import align_face, face_template, similarity_transform

__all__ = ["Detector", "Embedder", "Face", "Recogniser"]

# YuNet is made for faces of 10 to 300 pixels and misplaces the landmarks of those twice as large: a
# photograph is searched at the first size, and where that shows a large face, at the second.
_LONGEST_SIDES = (640, 320)
_LARGEST_FACE = 320
_CONFIDENCE = 0.8
_SMALLEST_EYE_DISTANCE = 16.0
_BATCH = 32


@dataclass(frozen=True)
class Face:
    """A face in a photograph; coordinates are its pixels.

    Attributes:
        box: Left, top, width, height; may reach beyond the photograph.
        landmarks: float64 (5, 2), in the order of :func:`keras_hybrid.data.align_face`.
        confidence: The detector's, in [0, 1].
    """

    box: tuple[float, float, float, float]
    landmarks: np.ndarray = field(repr=False)
    confidence: float

    @property
    def eye_distance(self) -> float:
        """Pixels between the eyes."""
        return float(np.linalg.norm(self.landmarks[1] - self.landmarks[0]))


class Detector:
    """YuNet, from its ONNX file.

    Raises:
        ValueError: If OpenCV cannot read the file.
    """

    def __init__(self, path: str | PathLike):
        _check_file(Path(path), "--detector")
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)  # a warning at each start
        try:
            self._network = cv2.FaceDetectorYN.create(
                str(path), "", (320, 320), score_threshold=_CONFIDENCE
            )
            self.find(np.zeros((64, 64, 3), np.uint8))
        except cv2.error as error:
            raise ValueError(
                f"OpenCV {cv2.__version__} cannot use {path} as a YuNet face detector: {error}"
            ) from error

    def find(self, image: np.ndarray) -> list[Face]:
        """Find the faces in a photograph, the largest first.

        Args:
            image: uint8 (height, width, 3), RGB.
        """
        for longest_side in _LONGEST_SIDES:
            scale = max(1.0, max(image.shape[:2]) / longest_side)
            faces = self._find(image, scale)
            if all(max(face.box[2:]) <= _LARGEST_FACE * scale for face in faces):
                break
        return sorted(faces, key=lambda face: -face.box[2] * face.box[3])

    def _find(self, image: np.ndarray, scale: float) -> list[Face]:
        height, width = image.shape[:2]
        size = max(1, round(width / scale)), max(1, round(height / scale))
        if scale > 1:
            image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        self._network.setInputSize(size)
        _, found = self._network.detect(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        faces = []
        for row in np.asarray([] if found is None else found, np.float64):
            # Whole numbers are the centres of pixels, whose corners scale.
            landmarks = (row[4:14].reshape(5, 2) + 0.5) * scale - 0.5
            faces.append(Face(tuple((row[:4] * scale).tolist()), landmarks, float(row[14])))
        return faces


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
    from keras_hybrid.export import read_metadata

    try:
        metadata = read_metadata(path)
    except ImportError:
        raise
    except Exception as error:  # a damaged file sends the reader anywhere
        raise ValueError(f"{path} cannot be read as an exported model: {error}") from error
    if "embedding" not in [output["name"] for output in metadata["outputs"]]:
        raise ValueError(f"{path} puts out no embedding: export it with --output embedding.")
    image = metadata["input"]
    if list(image["value_range"]) != [0, 255] or image["color_order"] != "RGB":
        raise ValueError(
            f"{path} takes {image['color_order']} values in {image['value_range']}; photographs "
            "are RGB in [0, 255]."
        )
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(model_path=str(path)).get_signature_runner("serving_default")

    def model(batch: np.ndarray) -> np.ndarray:
        return runner(**{image["name"]: np.asarray(batch).astype(image["dtype"])})["embedding"]

    return metadata["model"], tuple(image["shape"]), model


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

    def __init__(self, detector: Detector, embedder: Embedder):
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
        size = self.embedder.image_size
        matrix = similarity_transform(face.landmarks, face_template(size))
        factor = int(1 / np.hypot(*matrix[:, 0]))
        landmarks = face.landmarks
        if factor > 1:  # averaged first: align_face samples one pixel in `factor`
            image = np.asarray(Image.fromarray(image).reduce(factor))
            landmarks = (landmarks + 0.5) / factor - 0.5
        return align_face(image, landmarks, size)

    def embed(self, crops: list[np.ndarray]) -> np.ndarray:
        """Embed aligned faces: float32 (n, dim), each of length 1."""
        return self.embedder.embed(np.stack(crops))
