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
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from types import ModuleType

import numpy as np

from keras_hybrid.data.alignment import align_face, face_template, similarity_transform
from keras_hybrid.data.files import (
    CROPS_TABLE,
    UnreadableImageError,
    empty_folder,
    encode_image,
    some,
)
from keras_hybrid.data.landmarks import LANDMARK_COLUMNS
from keras_hybrid.data.sources import ImageSource

__all__ = ["Crops", "Face", "FaceDetector", "write_crops"]

_LOGGER = logging.getLogger(__name__)
# YuNet is made for faces of 10 to 300 pixels; larger ones it overlooks, or misplaces their
# landmarks: a photograph is searched at several sizes.
_LONGEST_SIDES = (1280, 640, 320)
_LARGEST_FACE = 320
_COLUMNS = ("file", "label", "label_number", "photograph", "faces", "confidence", *LANDMARK_COLUMNS)
_LONGEST_NAME = 120  # bytes; file systems take 255 with what is added
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # on Windows


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

    It finds upright faces: of a head tilted by more than about 30° the landmarks are wrong, and an
    upside-down face can be taken for an upright one. Faces smaller than about a hundredth of a
    large photograph's longer side are not found. Not to be called by two threads at once.

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
        scales = {max(1.0, max(image.shape[:2]) / side): None for side in _LONGEST_SIDES}
        faces: list[Face] = []
        limit = 0.0  # pixels: the largest face that the search before this one is made for
        for scale in scales:
            found = [
                face
                for face in self._find(image, scale)
                if max(face.box[2:]) > limit or not _is_among(face, faces)
            ]
            faces = [face for face in faces if not _is_among(face, found)] + found
            limit = _LARGEST_FACE * scale
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

    Beside the folders comes ``index.csv``: of each crop its file, its class's folder and number,
    the photograph, how many faces that has, the detector's confidence, and the landmarks in pixels
    of the crop. Classes have the same numbers there as in the folders. The table grows with the
    crops, so that after an interruption it names those that are there. A photograph without a crop
    is reported with its path and the reason.

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
    folder = empty_folder(folder)

    paths = source.paths
    taken_folders = {CROPS_TABLE}
    folders = [_free(_safe(name), taken_folders) for name in source.class_names]
    number = {name: rank for rank, name in enumerate(sorted(folders))}  # as a folder is read
    suffix = ".png" if quality is None else ".jpg"
    counts = dict.fromkeys(("unreadable", "without_face", "small", "crowded", "several"), 0)
    names: dict[int, set[str]] = {}

    def skip(kind: str, path: str, reason: object) -> None:
        counts[kind] += 1
        _LOGGER.warning("skipped %s: %s", path, reason)

    with (folder / CROPS_TABLE).open(
        "w", newline="", encoding="utf-8", errors="backslashreplace"
    ) as opened:
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
            name = _free(_safe(_stem(path)), taken)
            file = Path(folders[label], name + suffix)
            (folder / file).parent.mkdir(exist_ok=True)
            (folder / file).write_bytes(encode_image(crop, quality))
            moved = face.landmarks @ matrix[:, :2].T + matrix[:, 2]
            table.writerow(
                [
                    file.as_posix(),
                    folders[label],
                    number[folders[label]],
                    path,
                    len(faces),
                    round(face.confidence, 4),
                    *moved.round(2).ravel(),
                ]
            )
            opened.flush()
            counts["several"] += len(faces) > 1
    if not names:
        (folder / CROPS_TABLE).unlink()  # so that another try may use the folder
        found = ", ".join(f"{kind.replace('_', ' ')} {n}" for kind, n in counts.items() if n)
        raise ValueError(f"`source`: no crop of {len(source)} photographs was made ({found}).")
    lost = tuple(n for label, n in enumerate(source.class_names) if label not in names)
    if lost:
        _LOGGER.warning("%d classes have no crop: %s", len(lost), some(lost))
    return Crops(written=sum(map(len, names.values())), lost=lost, **counts)


def _is_among(face: Face, faces: Sequence[Face]) -> bool:
    """Whether the box of a face shares half of the smaller one with that of another."""
    boxes = np.array([other.box for other in faces]).reshape(-1, 4)
    start = np.maximum(boxes[:, :2], face.box[:2])
    end = np.minimum(boxes[:, :2] + boxes[:, 2:], np.add(face.box[:2], face.box[2:]))
    shared = np.maximum(end - start, 0).prod(1)
    smaller = np.minimum(boxes[:, 2:].prod(1), np.prod(face.box[2:]))
    return bool((shared > smaller / 2).any())


def _stem(path: str) -> str:
    """The name of a photograph: a file's without its suffix, or that of a place in an archive."""
    path = PurePosixPath(path.replace("\\", "/"))
    return path.name if path.name.endswith("]") else path.stem


def _safe(name: str) -> str:
    """A name as that of a file or folder: what some file system forbids becomes an underscore."""
    name = str(name).encode("utf-8", "replace")[:_LONGEST_NAME].decode("utf-8", "ignore")
    name = re.sub(r'[\x00-\x1f<>:"/\\|?*]', "_", name).strip().strip(" .")
    return f"{name}_" if not name or _RESERVED.fullmatch(name) else name


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
