"""The page in headless Chromium, with a server that answers slowly."""

import functools
import http.server
import io
import json
import shutil
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from applications.face_id import server

PAGE = Path(server.__file__).parent / "page"
PLAYWRIGHT = PAGE.parents[1] / "browser" / "node_modules" / "playwright-core"
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
NODE = shutil.which("node")


class SlowServer(http.server.SimpleHTTPRequestHandler):
    """Gives the page, and the answers it waits for; keeps what it is sent."""

    def __init__(self, *args, sent: list, people: list, **kwargs):
        self.sent, self.people = sent, people
        super().__init__(*args, **kwargs)

    def log_message(self, *args):
        pass

    def do_GET(self):
        if self.path == "/api/gallery":
            self._answer({"people": self.people, "calibration": None, "model": None})
        else:
            super().do_GET()

    def do_DELETE(self):
        self.sent.append((self.path, b""))
        self.people.clear()  # by another page
        self._answer({"error": {"code": "gone", "message": "Not in the gallery any more."}}, 404)

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.sent.append((self.path.partition("&known")[0], body))
        time.sleep(1)
        person = {"name": "Ana", "photographs": 1}
        self._answer({"person": person, "photograph": 1, "box": [0, 0, 1, 1], "notes": []})

    def _answer(self, answer: dict, status: int = 200) -> None:
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


pytestmark = [
    pytest.mark.skipif(None in (CHROMIUM, NODE), reason="Chromium or Node is not installed"),
    pytest.mark.skipif(not PLAYWRIGHT.is_dir(), reason="`npm ci` not run in applications/browser"),
]


def drive(script: str, *arguments, people=()) -> tuple[dict, list]:
    """Return what a script saw on the page, and what the page sent."""
    sent = []
    handler = functools.partial(SlowServer, directory=PAGE, sent=sent, people=list(people))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{served.server_port}/index.html"
        command = [NODE, Path(__file__).with_name(script), PLAYWRIGHT, CHROMIUM, url, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        served.shutdown()
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), sent


def test_a_photograph_that_comes_while_one_is_enrolled_does_not_get_its_name():
    seen, sent = drive("drive.cjs")
    assert seen["errors"] == []
    assert sent == [("/api/people?name=Ana", b"ana.png")]
    assert "Enrolled: Ana" in seen["answer"] and "bob" not in seen["answer"]
    assert seen["whileAsked"] == [True, True, True] and seen["afterAnswer"] is False
    # What is dropped afterwards replaces the photograph that was asked about; no file, nothing.
    assert ["ana" in text for text in seen["afterText"]] == [True]
    assert ["bob" in text for text in seen["afterFile"]] == [True]


def test_a_still_of_the_camera_is_enrolled(tmp_path):
    film = tmp_path / "film.mjpeg"
    frame = io.BytesIO()
    picture = Image.new("RGB", (640, 480), (200, 30, 30))
    picture.paste((30, 30, 200), (320, 0, 640, 480))
    picture.save(frame, "JPEG", quality=95)
    film.write_bytes(10 * frame.getvalue())
    seen, [(path, photograph)] = drive("drive_camera.cjs", film)
    assert seen["errors"] == []
    assert seen["focused"] == "still"
    assert (seen["live"], seen["closed"]) == ("live", ["ended", True, "camera-open"])
    assert path == "/api/people?name=Ana"
    still = Image.open(io.BytesIO(photograph))
    assert (still.format, still.size) == ("JPEG", (640, 480))
    # As a photograph has it, not as a mirror: what is on the left stays there.
    assert np.abs(np.subtract(still.getpixel((160, 240)), (200, 30, 30))).max() < 40
    assert np.abs(np.subtract(still.getpixel((480, 240)), (30, 30, 200))).max() < 40


def test_a_camera_that_does_not_come_is_explained():
    seen, sent = drive("drive_camera.cjs")
    assert sent == []
    assert "was not allowed to use the camera" in seen["denied"]["text"]
    assert "There is no camera" in seen["absent"]["text"]
    for refusal in seen.values():
        assert (refusal["disabled"], refusal["errors"]) == (False, [])


def test_a_person_whom_another_page_deleted_leaves_the_list():
    ana = {"id": 1, "name": "Ana", "photographs": 1, "unusable": 0, "crops": []}
    seen, sent = drive("drive_deleted.cjs", people=[ana])
    assert sent == [("/api/people/1", b"")]
    assert "Not in the gallery any more" in seen["answer"]
    assert seen["list"] == "Nobody yet."
