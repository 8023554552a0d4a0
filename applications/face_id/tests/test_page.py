"""The page in headless Chromium, with a server that answers slowly."""

import functools
import http.server
import json
import shutil
import subprocess
import threading
import time
from pathlib import Path

import pytest

from applications.face_id import server

PAGE = Path(server.__file__).parent / "page"
PLAYWRIGHT = PAGE.parents[1] / "browser" / "node_modules" / "playwright-core"
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
NODE = shutil.which("node")


class SlowServer(http.server.SimpleHTTPRequestHandler):
    """Gives the page, and the answers it waits for; keeps what it is sent."""

    def __init__(self, *args, sent: list, **kwargs):
        self.sent = sent
        super().__init__(*args, **kwargs)

    def log_message(self, *args):
        pass

    def do_GET(self):
        if self.path == "/api/gallery":
            self._answer({"people": [], "calibration": None, "model": None})
        else:
            super().do_GET()

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.sent.append((self.path.partition("&known")[0], body.decode()))
        time.sleep(1)
        person = {"name": "Ana", "photographs": 1}
        self._answer({"person": person, "photograph": 1, "box": [0, 0, 1, 1], "notes": []})

    def _answer(self, answer: dict) -> None:
        content = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.mark.skipif(None in (CHROMIUM, NODE), reason="Chromium or Node is not installed")
@pytest.mark.skipif(not PLAYWRIGHT.is_dir(), reason="`npm ci` not run in applications/browser")
def test_a_photograph_that_comes_while_one_is_enrolled_does_not_get_its_name():
    sent = []
    handler = functools.partial(SlowServer, directory=PAGE, sent=sent)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{served.server_port}/index.html"
        drive = Path(__file__).with_name("drive.cjs")
        done = subprocess.run(
            [NODE, drive, PLAYWRIGHT, CHROMIUM, url], capture_output=True, text=True, timeout=120
        )
        served.shutdown()
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["errors"] == []
    assert sent == [("/api/people?name=Ana", "ana.png")]
    assert "Enrolled: Ana" in seen["answer"] and "bob" not in seen["answer"]
    assert seen["whileAsked"] == [True, True, True] and seen["afterAnswer"] is False
    # What is dropped afterwards replaces the photograph that was asked about; no file, nothing.
    assert ["ana" in text for text in seen["afterText"]] == [True]
    assert ["bob" in text for text in seen["afterFile"]] == [True]
