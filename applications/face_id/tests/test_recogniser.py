"""With the real detector, a published model and real faces."""

import io
import shutil

import numpy as np
import pytest
from PIL import Image

from applications.face_id.calibrate import Calibration, main, measure
from applications.face_id.recogniser import Embedder, Recogniser
from applications.face_id.tests.conftest import Tiles, existing
from keras_hybrid.data import Face, FaceDetector, face_template


@pytest.fixture(scope="session")
def orl():
    """AT&T's faces: (40 people, 10 photographs, 112, 92), grey."""
    return np.load(existing("orl_faces.npz"))["x"].reshape(40, 10, 112, 92)


def rgb(grey):
    return np.repeat(grey[..., None], 3, axis=-1)


def encoded(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def test_nearly_every_face_is_found(detector, orl):
    found = [len(detector.find(rgb(image))) for image in orl[:, :3].reshape(-1, 112, 92)]
    assert np.mean(np.array(found) == 1) >= 0.98


@pytest.mark.parametrize("shape", [(1, 1), (1, 3000), (33, 7), (480, 640)])
def test_no_face_is_found_in_a_wall(detector, shape):
    assert detector.find(np.full((*shape, 3), 120, np.uint8)) == []


@pytest.mark.parametrize("factor", [3, 12])
def test_landmarks_are_where_they_are_however_large_the_face(detector, orl, factor):
    errors = []
    for face in orl[:10, 0]:
        (expected,) = detector.find(rgb(face))
        large = Image.fromarray(rgb(face)).resize((92 * factor, 112 * factor), Image.BICUBIC)
        found = detector.find(np.asarray(large))[0]
        distances = (found.landmarks + 0.5) / factor - (expected.landmarks + 0.5)
        errors.append(np.linalg.norm(distances, axis=1).mean() / expected.eye_distance)
    assert np.mean(errors) < 0.08


def test_a_large_face_is_smoothed_before_it_is_sampled():
    """Stripes finer than the crop's pixels become grey, not stripes of another width."""

    class Model:
        image_size = 112

    photograph = np.zeros((1120, 1120, 3), np.uint8)
    photograph[:, ::2] = 255
    face = Face((0, 0, 1120, 1120), face_template(1120), 0.9)
    crop = Recogniser(Tiles(), Model()).crop(photograph, face)
    np.testing.assert_allclose(crop[8:-8, 8:-8], 127.5, atol=2)


def test_people_are_told_apart_end_to_end(published, open_client, orl):
    """Enrolled by two photographs each: others of theirs are recognised, strangers are not."""
    others = [rgb(image) for image in orl[20:, :4].reshape(-1, 112, 92)]
    embeddings = published.embed([published.crop(x, published.faces(x)[0]) for x in others])
    labels = np.repeat(np.arange(20), 4)
    model = published.embedder.fingerprint
    calibration = measure(embeddings, labels, model, "orl_faces.npz")
    client = open_client(published, calibration, false_accepts=0.05)
    for person in range(4):
        for image in orl[person, :2]:
            response = client.post(
                "/api/people",
                params={"name": f"Person {person}", "known": True},
                content=encoded(rgb(image)),
            )
            assert response.status_code == 200

    def answers(images):
        for image in images:
            (face,) = client.post("/api/identify", content=encoded(rgb(image))).json()["faces"]
            yield face["name"] if face["verdict"] == "match" else None

    assert list(answers(orl[:4, 2])) == [f"Person {person}" for person in range(4)]
    assert list(answers(orl[4:10, 0])) == [None] * 6


def test_three_people_in_one_photograph_are_all_named(published, open_client, orl):
    client = open_client(published, None)
    for person in range(3):
        content = encoded(rgb(orl[person, 0]))
        client.post(f"/api/people?name=Person {person}", content=content)
    group = rgb(np.concatenate([orl[person, 1] for person in (2, 0, 1)], axis=1))
    faces = client.post("/api/identify", content=encoded(group)).json()["faces"]
    assert [face["name"] for face in faces] == ["Person 2", "Person 0", "Person 1"]


@pytest.mark.slow
def test_the_commands_of_the_readme_run(published, published_file, tmp_path, capsys, orl):
    """Convert, export, calibrate; the LiteRT file embeds as the Keras file does."""
    for module in ("tensorflow", "ai_edge_litert"):
        pytest.importorskip(module)
    from keras_hybrid.cli import main as keras_hybrid

    keras_file = shutil.copy(published_file, tmp_path / "mobilefacenet.keras")
    model = tmp_path / "mobilefacenet.tflite"
    options = ["--to", "litert", "--output", "embedding"]
    assert keras_hybrid(["export", str(keras_file), str(model), *options]) == 0
    embedder = Embedder(model)
    crops = np.stack([np.asarray(Image.fromarray(rgb(x)).resize((112, 112))) for x in orl[:5, 0]])
    cosines = (embedder.embed(crops) * published.embedder.embed(crops)).sum(1)
    np.testing.assert_allclose(cosines, 1, atol=1e-5)

    detector, faces = existing("pretrained", "yunet_n_dynamic.onnx"), existing("lfw_112.zip")
    command = ["--model", str(model), "--detector", str(detector), "--data", str(faces)]
    assert main([*command, "--photographs", "150"]) == 0
    calibration = Calibration.read(f"{model}.calibration.json", embedder.fingerprint)
    assert calibration.photographs >= 140
    assert calibration.at(1e-2).true_accepts >= 0.95
    assert str(tmp_path) not in (tmp_path / f"{model.name}.calibration.json").read_text()


def test_files_that_are_something_else_are_named(tmp_path, detector):
    text = tmp_path / "model.tflite"
    text.write_text("not a model")
    with pytest.raises(ValueError, match=r"model\.tflite cannot be read as an exported model"):
        Embedder(text)
    network = tmp_path / "detector.onnx"
    network.write_text("not a detector")
    with pytest.raises(ValueError, match=r"cannot use .*detector\.onnx as a YuNet face detector"):
        FaceDetector(network)
    with pytest.raises(ValueError, match=r"there is no file .*missing\.tflite"):
        Embedder(tmp_path / "missing.tflite")
    archive = tmp_path / "model.keras"
    archive.write_text("not a model")
    with pytest.raises(ValueError, match=r"model\.keras cannot be loaded"):
        Embedder(archive)
    with pytest.raises(ValueError, match=r"must be a \.tflite or \.keras file"):
        Embedder(network)
