"""Faces in photographs: found by a detector, cut out, written as training reads them.

YuNet finds faces and five landmarks through OpenCV's ``FaceDetectorYN``; its file is not part of
this package. :func:`keras_hybrid.data.align_face` cuts a face out as ArcFace's template has it.

Source:
    Wu et al., "YuNet: A Tiny Millisecond-level Face Detector", Machine Intelligence Research 20,
    2023; https://github.com/ShiqiYu/libfacedetection.train (Apache-2.0).
"""

import csv
import dataclasses
import logging
import os
import re
from pathlib import Path, PurePosixPath
from types import ModuleType

import numpy as np

from keras_hybrid.data.alignment import align_face, face_template, similarity_transform
from keras_hybrid.data.files import CROPS_TABLE, UnreadableImageError, encode_image, some
from keras_hybrid.data.landmarks import LANDMARK_COLUMNS
from keras_hybrid.data.sources import ImageSource

__all__ = ["Crops", "Face", "FaceDetector", "write_crops"]

_LOGGER = logging.getLogger(__name__)
# YuNet is made for faces of 10 to 300 pixels and misplaces the landmarks of those twice as large: a
# photograph is searched at the first size, and where that shows a large face, at the second.
_LONGEST_SIDES = (640, 320)
_LARGEST_FACE = 320
_COLUMNS = ("file", "label", "photograph", "faces", "confidence", *LANDMARK_COLUMNS)


@dataclasses.dataclass(frozen=True)
class Face:
    """A face in a photograph; coordinates are its pixels.

    Attributes:
        box: Left, top, width, height; may reach beyond the photograph.
        landmarks: float64 (5, 2), in the order of :func:`keras_hybrid.data.align_face`.
        confidence: The detector's, in [0, 1].
    """

    box: tuple[float, float, float, float]
    landmarks: np.ndarray = dataclasses.field(repr=False)
    confidence: float

    @property
    def eye_distance(self) -> float:
        """Pixels between the eyes."""
        return float(np.linalg.norm(self.landmarks[1] - self.landmarks[0]))


class FaceDetector:
    """YuNet, from its ONNX file with inputs of any size (``yunet_n_dynamic.onnx``).

    Not to be called by two threads at once.

    Args:
        path: The file.
        confidence: Faces that the detector is less sure of are left out, in [0, 1].

    Raises:
        ImportError: If OpenCV is not installed.
        ValueError: If there is no such file, OpenCV cannot use it, or ``confidence`` is out of
            range.
    """

    def __init__(self, path: str | os.PathLike, confidence: float = 0.8):
        if not 0.0 <= confidence <= 1.0:
            raise ValueError(f"`confidence` must be in [0, 1], got {confidence!r}.")
        if not Path(path).is_file():
            raise ValueError(f"`path`: there is no file {path} with a face detector.")
        self._cv2 = cv2 = _import_cv2()
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)  # a warning at each start
        try:
            self._network = cv2.FaceDetectorYN.create(
                str(path), "", (320, 320), score_threshold=confidence
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

        Returns:
            The faces, none if there are none.
        """
        for longest_side in _LONGEST_SIDES:
            scale = max(1.0, max(image.shape[:2]) / longest_side)
            faces = self._find(image, scale)
            if all(max(face.box[2:]) <= _LARGEST_FACE * scale for face in faces):
                break
        return sorted(faces, key=lambda face: -face.box[2] * face.box[3])

    def _find(self, image: np.ndarray, scale: float) -> list[Face]:
        cv2 = self._cv2
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


@dataclasses.dataclass(frozen=True)
class Crops:
    """What became of the photographs.

    Attributes:
        written: Crops that were written.
        unreadable: Photographs that could not be decoded.
        without_face: In which no face was found, or landmarks that fit none.
        small: Whose largest face was too small.
        crowded: With several faces that were therefore left out.
        several: Of the written, those from photographs with more faces than the one.
        lost: Names of the classes of which nothing was written.
    """

    written: int
    unreadable: int
    without_face: int
    small: int
    crowded: int
    several: int
    lost: tuple[str, ...]


def write_crops(
    source: ImageSource,
    folder: str | os.PathLike,
    detector: FaceDetector,
    image_size: int = 112,
    *,
    several: str = "largest",
    smallest_eye_distance: float = 16.0,
    quality: int | None = None,
) -> Crops:
    """Find the face of each photograph and write it as an aligned crop: a folder for each class.

    Beside the folders comes ``index.csv``: of each crop its file and class, the photograph, how
    many faces that has, the detector's confidence, and the landmarks in pixels of the crop. It
    grows with the crops, so that after an interruption it names those that are there. A photograph
    without a crop is reported with its path and the reason.

    Args:
        source: The photographs.
        folder: A new or empty folder.
        detector: What finds the faces: ``find(image)`` gives them, the largest first.
        image_size: Side of the crops in pixels; faces that are larger are smoothed first.
        several: Of a photograph with several faces ``"largest"`` takes the largest; ``"skip"``
            leaves the photograph out, for collections where that is often somebody else.
        smallest_eye_distance: Pixels between the eyes that a face needs.
        quality: Of JPEG, in [1, 100]; None: PNG, which keeps every pixel.

    Returns:
        What became of the photographs.

    Raises:
        ValueError: If the source has no photograph, no crop was written, the folder holds
            something, or an argument is not as described.
        ImportError: If Pillow is not installed.
    """
    if several not in ("largest", "skip"):
        raise ValueError(f"`several` must be 'largest' or 'skip', got {several!r}.")
    if quality is not None and (not isinstance(quality, int) or not 1 <= quality <= 100):
        raise ValueError(f"`quality` must be an integer in [1, 100] or None, got {quality!r}.")
    if not smallest_eye_distance >= 0:
        raise ValueError(f"`smallest_eye_distance` must be ≥ 0, got {smallest_eye_distance!r}.")
    template = face_template(image_size)
    if not len(source):
        raise ValueError(f"`source`={source!r} has no photograph.")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    present = sorted(path.name for path in folder.iterdir())
    if present:
        raise ValueError(f"`folder`: {folder} must be new or empty; it holds {some(present)}.")

    paths = source.paths
    folders = _unique(_safe(name) for name in source.class_names)
    suffix = ".png" if quality is None else ".jpg"
    counts = dict.fromkeys(("unreadable", "without_face", "small", "crowded", "several"), 0)
    names: dict[int, set[str]] = {}

    def skip(kind: str, path: str, reason: object) -> None:
        counts[kind] += 1
        _LOGGER.warning("skipped %s: %s", path, reason)

    with (folder / CROPS_TABLE).open("w", newline="", encoding="utf-8") as opened:
        table = csv.writer(opened)
        table.writerow(_COLUMNS)
        for row, label in enumerate(source.labels.tolist()):
            path = paths[row]
            try:
                photograph = source.read(row)
            except UnreadableImageError as error:
                skip("unreadable", path, error.reason)
                continue
            faces = detector.find(photograph)
            if not faces:
                skip("without_face", path, "no face was found")
                continue
            if several == "skip" and len(faces) > 1:
                skip("crowded", path, f"it shows {len(faces)} faces")
                continue
            face = faces[0]
            if face.eye_distance < smallest_eye_distance:
                distance = f"{face.eye_distance:.0f} pixels between the eyes"
                skip("small", path, f"{distance}, {smallest_eye_distance:g} are needed")
                continue
            try:
                matrix = similarity_transform(face.landmarks, template)
            except ValueError:
                skip("without_face", path, "its landmarks fit no face")
                continue
            crop = align_face(photograph, face.landmarks, image_size, antialias=True)
            taken = names.setdefault(label, set())
            name = _free(_safe(PurePosixPath(path.replace("\\", "/")).stem), taken)
            file = Path(folders[label], name + suffix)
            (folder / file).parent.mkdir(exist_ok=True)
            (folder / file).write_bytes(encode_image(crop, quality))
            moved = face.landmarks @ matrix[:, :2].T + matrix[:, 2]
            table.writerow(
                [
                    file.as_posix(),
                    source.class_names[label],
                    path,
                    len(faces),
                    round(face.confidence, 4),
                    *moved.round(2).ravel(),
                ]
            )
            opened.flush()
            counts["several"] += len(faces) > 1
    if not names:
        raise ValueError(f"`source`: no face was found in {len(source)} photographs of {source!r}.")
    lost = tuple(n for label, n in enumerate(source.class_names) if label not in names)
    if lost:
        _LOGGER.warning("%d classes have no crop: %s", len(lost), some(lost))
    return Crops(written=sum(map(len, names.values())), lost=lost, **counts)


def _safe(name: str) -> str:
    """A name as that of a file or folder: what some file system forbids becomes an underscore."""
    name = re.sub(r'[\x00-\x1f<>:"/\\|?*]', "_", str(name)).strip(" .")
    return name or "_"


def _unique(names) -> list[str]:
    """The names, those that came before with a number; case does not tell files apart."""
    taken: set[str] = set()
    return [_free(name, taken) for name in names]


def _free(name: str, taken: set[str]) -> str:
    """The name, with a number if it is taken; the answer is taken from now on."""
    free, number = name, 1
    while free.casefold() in taken:
        number += 1
        free = f"{name}_{number}"
    taken.add(free.casefold())
    return free


def _import_cv2() -> ModuleType:
    try:
        import cv2
    except ImportError as error:
        raise ImportError(
            'Finding faces needs OpenCV, not installed here: pip install "keras-hybrid[detect]"'
        ) from error
    return cv2
