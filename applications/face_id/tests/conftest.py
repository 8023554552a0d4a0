"""People as colours for what needs no face; real ones where they lie beside the repository."""

import io
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from applications.face_id.calibrate import Calibration, Point
from applications.face_id.gallery import Gallery
from applications.face_id.recogniser import Embedder, Recogniser
from applications.face_id.server import create_app
from keras_hybrid.data import Face, FaceDetector, face_template

DATA = Path(__file__).resolve().parents[3].parent / "shared" / "data"
MODEL = "0" * 64
CALIBRATION = Calibration(
    MODEL,
    "colours",
    people=100,
    photographs=200,
    different_pairs=300_000,
    same_pairs=100,
    points=(Point(1e-4, 0.9, 0.8), Point(1e-3, 0.7, 0.9), Point(1e-2, 0.5, 1.0)),
)
URL = "http://127.0.0.1:8010"


class Tiles:
    """Finds a face in every 200 pixels of a photograph's width."""

    def find(self, image):
        side = 200
        landmarks = face_template(side)
        return [
            Face((left, 0, side, side), np.add(landmarks, (left, 0)), 0.9)
            for left in range(0, image.shape[1] - side + 1, side)
        ]


class Colours:
    """Embeds a face as its colour: orthogonal people are red, green and blue."""

    name, fingerprint, image_size = "colours", MODEL, 32

    def embed(self, crops):
        colours = crops.mean((1, 2), dtype=np.float32)
        return colours / np.linalg.norm(colours, axis=1, keepdims=True)


def photograph(*colours, size=200, form="PNG", **options) -> bytes:
    """Faces of people side by side, as a file."""
    row = [np.full((size, size, 3), colour, np.uint8) for colour in colours]
    file = io.BytesIO()
    Image.fromarray(np.concatenate(row, axis=1)).save(file, form, **options)
    return file.getvalue()


def recogniser():
    return Recogniser(Tiles(), Colours())


@pytest.fixture
def gallery_file(tmp_path):
    return tmp_path / "gallery.db"


@pytest.fixture
def open_client(gallery_file):
    """Return a function that starts the program, by default with people who are colours."""
    galleries = []

    def start(recogniser=None, calibration=CALIBRATION, **options):
        recogniser = recogniser or globals()["recogniser"]()
        galleries.append(Gallery(gallery_file, recogniser.embedder.fingerprint))
        app = create_app(recogniser, galleries[-1], calibration, **options)
        client = TestClient(app, base_url=URL)
        client.headers["content-type"] = "application/octet-stream"
        return client

    yield start
    for gallery in galleries:
        gallery.close()


@pytest.fixture
def client(open_client):
    return open_client()


def existing(*parts: str) -> Path:
    path = DATA.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"{path} is not here")
    return path


@pytest.fixture(scope="session")
def detector():
    return FaceDetector(existing("pretrained", "yunet_n_dynamic.onnx"))


@pytest.fixture(scope="session")
def published_file(tmp_path_factory):
    """foamliu's MobileFaceNet, as `keras-hybrid convert` writes it."""
    checkpoint = existing("pretrained", "mobilefacenet_relu6.pth")
    pytest.importorskip("torch")
    from keras_hybrid.cli import main

    out = tmp_path_factory.mktemp("published") / "mobilefacenet.keras"
    command = ["convert", str(checkpoint), str(out), "--model", "mobilefacenet_relu6"]
    assert main([*command, "--without-top"]) == 0
    return out


@pytest.fixture(scope="session")
def published(detector, published_file):
    """The detector and that model: what a user has."""
    return Recogniser(detector, Embedder(published_file))
