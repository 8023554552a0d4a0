"""The page beside the Python package: crops, descriptions, embeddings, and a walk through it."""

import base64
import functools
import http.server
import json
import re
import shlex
import shutil
import subprocess
import threading
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_hybrid as kh
from keras_hybrid.cli.arguments import build_parser

pytest.importorskip("ai_edge_litert", reason="ai-edge-litert is not installed")
pytest.importorskip("tensorflow", reason="TensorFlow, which exports, is not installed")
Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")

PAGE = Path(__file__).parents[1]
YUNET = PAGE.parents[2] / "shared" / "data" / "pretrained" / "yunet_n_dynamic.onnx"
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
NODE = shutil.which("node")
SIZE = 32

if NODE is None:
    pytest.skip("Node.js is not installed", allow_module_level=True)


def in_node(script: str, **values) -> dict:
    """Run a module script in the page's folder; it reads ``values`` and sets ``answer``."""
    program = f"""
        import {{ readFileSync }} from "node:fs";
        const bytes = (text) => new Uint8Array(Buffer.from(text, "base64"));
        const values = JSON.parse(readFileSync(0, "utf-8"));
        {script}
        process.stdout.write(JSON.stringify(answer));
    """
    done = subprocess.run(
        [NODE, "--input-type=module", "--eval", program],
        input=json.dumps(values),
        cwd=PAGE,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def text_of(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> dict[str, Path]:
    """A tiny hybrid network in two files: floats in and throughout, and bytes in and int8."""
    keras.utils.set_random_seed(0)
    model = kh.create_model(
        "facerec_small",
        classes=3,
        input_shape=(SIZE, SIZE, 3),
        stem_channels=(4, 8),
        stem_blocks=(0, 1),
        dim=16,
        depth=1,
        num_heads=2,
        conv_dim=8,
        conv_head_dim=4,
        place_dim=2,
        embedding_dim=12,
    )
    faces, _ = kh.data.synthetic_identities(4, 4, SIZE)
    folder = tmp_path_factory.mktemp("models")
    files = {"float.tflite": {}, "int8.tflite": {"quantization": "int8", "input_dtype": "uint8"}}
    for name, options in files.items():
        kh.export.to_litert(
            model, folder / name, output="embedding", representative_data=faces, **options
        )
    return {name: folder / name for name in files}


def embed(path: Path, crop: np.ndarray) -> np.ndarray:
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(model_path=str(path)).get_signature_runner()
    dtype = runner.get_input_details()["image"]["dtype"]
    return runner(image=crop[None].astype(dtype))["embedding"][0]


def cosine(first: np.ndarray, second: np.ndarray) -> float:
    return first @ second / np.linalg.norm(first) / np.linalg.norm(second)


def test_crops_equal_those_of_the_package():
    generator = np.random.default_rng(0)
    cases = []
    for index, (height, width, size, scale, angle, centre) in enumerate(
        [
            (112, 112, 112, 1.0, 0.0, None),  # an aligned crop comes out as it went in
            (90, 140, 112, 0.7, 0.3, (70, 40)),
            (300, 200, 64, 3.0, -0.8, (20, 60)),  # reaches over the edge
            (301, 250, 64, 5.3, 0.4, (120, 150)),  # the face is several times the crop
            (60, 60, 160, 0.1, 2.5, (30, 30)),
            (50, 70, 112, 2.0, 0.0, (35.25, 24.5)),
        ]
    ):
        image = generator.integers(0, 256, (height, width, 3), np.uint8)
        template = kh.data.face_template(112)
        if centre is None:
            landmarks = template
        else:
            turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
            landmarks = (template - template.mean(0)) @ turn.T * scale + centre
            landmarks += generator.normal(0, 1 if index % 2 else 0, (5, 2))
        cases.append((image, landmarks, size))
    crops = in_node(
        """
        import { alignFace } from "./src/alignment.js";
        const answer = values.cases.map(({ data, width, height, landmarks, size }) =>
          Array.from(alignFace({ data: bytes(data), width, height }, landmarks, size)));
        """,
        cases=[
            {
                "data": text_of(np.dstack([image, np.full(image.shape[:2], 255, np.uint8)])),
                "width": image.shape[1],
                "height": image.shape[0],
                "landmarks": landmarks.tolist(),
                "size": size,
            }
            for image, landmarks, size in cases
        ],
    )
    np.testing.assert_array_equal(np.array(crops[0]).reshape(112, 112, 3), cases[0][0])
    for crop, (image, landmarks, size) in zip(crops, cases, strict=True):
        expected = kh.data.align_face(image, landmarks, size, antialias=True).astype(int)
        difference = np.abs(np.array(crop).reshape(expected.shape) - expected)
        assert difference.max() <= 1  # the last digit of a matrix decides a rounding
        assert (difference > 0).mean() < 1e-3


def test_points_that_fit_no_face_are_refused():
    square = [[1, 1], [-1, 1], [-1, -1], [1, -1]]
    mirrored = [[-x, y] for x, y in square]  # every rotation fits equally well
    answer = in_node(
        """
        import { similarityTransform } from "./src/alignment.js";
        const answer = values.pairs.map(([points, target]) => {
          try {
            return similarityTransform(points, target);
          } catch (error) {
            return error.message;
          }
        });
        """,
        pairs=[(square, square), ([[3, 3]] * 4, square), (square, mirrored)],
    )
    assert answer[0] == {"a": 1, "b": 0, "x": 0, "y": 0}
    assert "fit no face" in answer[1]
    assert "fit no face" in answer[2]


def test_descriptions_are_read_as_by_the_package(exported):
    whole = exported["float.tflite"].read_bytes()
    answer = in_node(
        """
        import { readMetadata } from "./src/metadata.js";
        const answer = values.files.map((file) => {
          try {
            return readMetadata(bytes(file));
          } catch (error) {
            return error.message;
          }
        });
        """,
        files=[
            text_of(content)
            for content in (
                whole,
                exported["int8.tflite"].read_bytes(),
                whole.replace(b"keras_hybrid\0", b"another_name\0"),
                whole[: len(whole) // 2],
                b"%PDF-1.7",
                b"",
            )
        ],
    )
    assert answer[0] == kh.export.read_metadata(exported["float.tflite"])
    assert answer[1] == kh.export.read_metadata(exported["int8.tflite"])
    assert "not written by" in answer[2]
    assert "damaged" in answer[3]
    assert "not a LiteRT" in answer[4]
    assert "not a LiteRT" in answer[5]


def test_the_command_line_takes_the_commands_of_the_page():
    lines = re.findall(r"^keras-hybrid (.+)$", (PAGE / "README.md").read_text("utf-8"), re.M)
    assert len(lines) == 2
    for line in lines:
        given = build_parser().parse_args(shlex.split(line))
        given.check(given)


def kept_files() -> list[str]:
    """What the service worker says that the page is made of."""
    text = (PAGE / "service-worker.js").read_text("utf-8")
    return re.findall(r'^  "(.+)",$', text, re.M)


def test_the_service_worker_keeps_every_file():
    vendored = re.findall(r'^  "(.+)": "', (PAGE / "vendor.js").read_text("utf-8"), re.M)
    sources = [f"src/{path.name}" for path in (PAGE / "src").iterdir()]
    assert sorted(kept_files()) == sorted(
        ["./", "style.css", *sources, *(f"vendor/{name}" for name in vendored)]
    )


class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def end_headers(self):
        if self.path.endswith("?no-store"):
            self.send_header("Cache-Control", "private, no-store")
        super().end_headers()


@pytest.fixture(scope="module")
def walk(exported, tmp_path_factory) -> dict:
    """What tests/drive.js saw, with what it was given."""
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    if not (PAGE / "node_modules" / "playwright-core").is_dir() or not (PAGE / "vendor").is_dir():
        pytest.skip("`npm ci` has not been run in applications/browser")
    site, files = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("files")
    for name in ("index.html", "style.css", "service-worker.js", "src", "vendor"):
        (site / name).symlink_to(PAGE / name)
    for name, path in exported.items():
        (site / name).symlink_to(path)

    crops = np.array(kh.data.synthetic_identities(2, 1, SIZE)[0])
    crops[0][:8, :8] = 255  # what is transparent in the first picture lies on white, as in Python
    cut_out = np.dstack([crops[0], np.full((SIZE, SIZE), 255, np.uint8)])
    cut_out[:8, :8] = 0
    Image.fromarray(cut_out).save(files / "crop0.png")
    Image.fromarray(crops[1]).save(files / "crop1.png")
    Image.fromarray(kh.data.synthetic_identities(1, 1, 112)[0][0]).save(files / "picture.png")
    # Two of the drawn people whom the detector knows as faces, on one photograph.
    people = kh.data.synthetic_identities(3, 3, 320)[0]
    photograph = np.concatenate([people[8], people[4]], axis=1)
    Image.fromarray(photograph).save(site / "photograph.png")
    whole = exported["float.tflite"].read_bytes()
    wrong = {
        "predictions.tflite": whole.replace(b'"l2_normalized": true', b'"l2_normalized": null'),
        "batches.tflite": whole.replace(b'"shape": [1, 32, 32', b'"shape": [4, 32, 32'),
        "other.tflite": b"a text",
        "other.onnx": b"a text",
        "other.png": b"a text",
    }
    for name, content in wrong.items():
        (files / name).write_bytes(content)
    content = whole.replace(b'"quantization": null', b'"threshold": 0.25000')
    (files / "threshold.tflite").write_bytes(content)
    inputs = {".tflite": "#model", ".onnx": "#detector", ".png": '[accept="image/*"] >> nth=0'}
    if YUNET.is_file():
        (site / "detector.onnx").symlink_to(YUNET)

    handler = functools.partial(Handler, directory=site)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    job = {
        "url": f"http://127.0.0.1:{server.server_port}/",
        "chromium": CHROMIUM,
        "models": list(exported),
        "model": str(exported["float.tflite"]),
        "crop": crops[0].ravel().tolist(),
        "crops": [str(files / "crop0.png"), str(files / "crop1.png")],
        "picture": str(files / "picture.png"),
        "withThreshold": str(files / "threshold.tflite"),
        "wrong": [[str(files / name), inputs[Path(name).suffix]] for name in wrong],
        "detector": str(YUNET) if YUNET.is_file() else None,
        "photograph": "photograph.png",
        "photographFile": str(site / "photograph.png"),
    }
    (files / "job.json").write_text(json.dumps(job))
    driver = subprocess.Popen(
        [NODE, PAGE / "tests" / "drive.js", files / "job.json", files / "answer.json"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        driver.stdout.readline()
        server.shutdown()
        server.server_close()
        _, errors = driver.communicate("gone\n", timeout=240)
    finally:
        driver.kill()
    assert driver.returncode == 0, errors
    answer = json.loads((files / "answer.json").read_text())
    return {"given": job, "crops": crops, "photograph": photograph, **answer}


def test_embeddings_equal_those_of_the_python_runtime(walk, exported):
    for name, path in exported.items():
        expected = embed(path, walk["crops"][0])
        actual = np.array(walk["embeddings"][name])
        assert cosine(actual, expected) >= 0.9999, name
        assert np.linalg.norm(actual) == pytest.approx(np.linalg.norm(expected), abs=1e-3)


def test_two_crops_get_a_similarity_a_verdict_and_times(walk, exported):
    assert (
        walk["initially"]
        == "Still missing: a face model, the first photograph, the second photograph."
    )
    assert walk["modelNote"].endswith("32×32, float32")
    first, second = (embed(exported["float.tflite"], crop) for crop in walk["crops"])
    similarity = f"Similarity {cosine(first, second):.3f}: "
    assert walk["withoutThreshold"].startswith(f"{similarity}no verdict without a threshold.")
    assert walk["same"].startswith(f"{similarity}same person at the threshold -1.")
    assert walk["different"].startswith(f"{similarity}different persons at the threshold 1.")
    assert len(re.findall(r"alignment [\d.]+ ms, embedding [\d.]+ ms", walk["same"])) == 2
    crop = np.array(walk["crop"]).reshape(SIZE, SIZE, 4)
    np.testing.assert_array_equal(crop[..., :3], walk["crops"][0])


def test_a_threshold_in_the_file_is_taken_and_goes_with_its_model(walk):
    assert walk["thresholds"] == ["0.25", ""]


def test_a_picture_counts_as_a_crop_of_the_model_that_is_loaded_and_of_no_other(walk):
    supposed, known = walk["notes"]
    assert supposed.startswith("Taken as it is")
    assert "Move the five points" in known


def test_a_photograph_without_a_detector_waits_for_its_points(walk):
    assert walk["withoutDetector"] == "Still missing: the five points on the second photograph."


def test_photographs_dropped_together_take_both_places_and_the_last_one_stays(walk):
    *widths, beside_notes, error, last = walk["widths"]
    assert widths == [[101, 102], [201, 202]]
    assert beside_notes == [301, 302]
    assert error.startswith("notes.txt is neither a .tflite model")
    assert last == [50, 302]


def test_wrong_files_are_refused_in_words(walk):
    said = {Path(path).name: text for path, text in walk["refusals"].items()}
    assert "--output embedding" in said["predictions.tflite"]
    assert "4 images a call" in said["batches.tflite"]
    assert "not a LiteRT" in said["other.tflite"]
    assert "cannot read" in said["other.onnx"]
    assert "not an image" in said["other.png"]
    assert walk["pageErrors"] == []


def test_the_page_works_by_keyboard(walk):
    assert walk["focus"][:3] == ["Face model", "Face detector (optional)", "Threshold"]
    panel = [
        "Choose a photograph, or drop it here",
        *("Left eye", "Right eye", "Nose", "Left mouth corner", "Right mouth corner"),
        "It is an aligned crop",
    ]
    for label, start in zip(walk["focus"][3:], panel * 2, strict=True):
        assert label.startswith(start)
    # The left eye went a twentieth and a two-hundredth of the side; the crop followed.
    landmarks = np.array(walk["landmarks"]) / 100 * SIZE - 0.5
    expected = kh.data.face_template(SIZE)
    expected[0] += (0.05 * SIZE, 0.005 * SIZE)
    np.testing.assert_allclose(landmarks, expected, atol=1e-2)
    crop = np.array(walk["movedCrop"]).reshape(SIZE, SIZE, 4)[..., :3]
    aligned = kh.data.align_face(walk["crops"][0], expected, SIZE).astype(int)
    assert np.abs(crop - aligned).max() <= 1


def test_axe_finds_no_obstacle(walk):
    assert walk["violations"] == []


def test_the_page_fits_a_phone(walk):
    assert walk["phone"]["width"] == 390
    assert walk["phone"]["smallest"] >= 24


def test_faces_are_those_that_opencv_finds(walk):
    cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed")
    if not YUNET.is_file():
        pytest.skip(f"no {YUNET.name}")
    photograph = walk["photograph"]
    detector = cv2.FaceDetectorYN.create(str(YUNET), "", photograph.shape[1::-1], 0.7)
    _, found = detector.detect(photograph[..., ::-1].copy())
    found = sorted(found, key=lambda face: -face[2] * face[3])
    assert len(walk["faces"]) == len(found) == 2
    for face, expected in zip(walk["faces"], found, strict=True):
        assert face["score"] == pytest.approx(expected[14], abs=1e-3)
        np.testing.assert_allclose(face["box"], expected[:4], atol=0.1)
        np.testing.assert_allclose(np.ravel(face["landmarks"]), expected[4:14], atol=0.1)
    assert walk["detectionNote"] == "Face 1 of 2, the largest first."


def test_the_page_needs_no_server_once_loaded(walk):
    assert walk["offlineNote"] == "This page works without a network now."
    said = re.match(r"Similarity [-.\d]+: different", walk["withoutServer"])
    assert said and walk["different"].startswith(said[0])


def test_a_model_named_at_the_first_visit_is_kept(walk):
    for note in ("firstOfflineNote", "lastOfflineNote"):
        assert walk[note] == "This page works without a network now."
    assert walk["given"]["url"] + "float.tflite" in walk["kept"]


def test_nothing_but_the_page_and_the_named_model_is_kept(walk):
    """Another program at the same address must not find its answers in the browser."""
    files = [name.removeprefix("./") for name in kept_files()]
    assert sorted(walk["kept"]) == sorted(
        walk["given"]["url"] + name for name in [*files, "float.tflite"]
    )
    assert set(walk["kept"].values()) == {None}  # the style sheet was answered with no-store too


def test_a_full_disk_costs_the_copy_and_not_the_model(walk):
    assert walk["fullDisk"]["modelNote"].endswith("32×32, float32")
    said = "Not kept for offline use: float.tflite could not be stored."
    assert walk["fullDisk"]["offlineNote"] == said


def test_nothing_beyond_the_server_is_asked(walk):
    assert len(walk["requests"]) > 10
    assert all(url.startswith((walk["given"]["url"], "data:", "blob:")) for url in walk["requests"])
