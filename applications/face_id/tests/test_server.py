import functools
import io
import re
import sqlite3
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from applications.face_id import photograph as reading
from applications.face_id.tests.conftest import URL, Colours, photograph, recogniser

RED, GREEN, BLUE, ORANGE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 60, 0)
PAGE = Path(reading.__file__).parent / "page"


def enrol(client, name, *colours, **query):
    return client.post("/api/people", params={"name": name, **query}, content=photograph(*colours))


def identify(client, *colours):
    return client.post("/api/identify", content=photograph(*colours))


def people(client):
    return client.get("/api/gallery").json()["people"]


def refusal(response):
    return response.status_code, response.json()["error"]["code"]


# The three questions


def test_people_are_enrolled_identified_and_verified(client):
    for name, colour in (("Ana", RED), ("Ben", GREEN)):
        assert enrol(client, name, colour).json()["notes"] == []
    (face,) = identify(client, ORANGE).json()["faces"]
    assert (face["verdict"], face["name"]) == ("match", "Ana")
    assert face["score"] == pytest.approx(255 / np.hypot(255, 60), abs=1e-4)
    ana, ben = (person["id"] for person in people(client))
    for number, verdict in ((ana, "match"), (ben, "unknown")):
        answer = client.post(f"/api/people/{number}/verify", content=photograph(ORANGE))
        assert answer.json()["faces"][0]["verdict"] == verdict


def test_a_stranger_is_nobody(client):
    enrol(client, "Ana", RED)
    (face,) = identify(client, BLUE).json()["faces"]
    assert (face["verdict"], face["score"]) == ("unknown", pytest.approx(0, abs=1e-6))


def test_every_answer_states_its_false_accepts_and_keeps_what_was_asked_for(open_client):
    client = open_client(false_accepts=0.01)
    stated = []
    for number in range(1, 11):
        enrol(client, "Ana", RED, known=True)
        (face,) = identify(client, RED).json()["faces"]
        assert face["comparisons"] == number
        stated.append((face["threshold"], face["false_accepts"]))
    # 0.01 alone, then 0.001 for each of two to ten photographs.
    assert stated == [(0.5, 0.01)] + [(0.7, pytest.approx(n * 1e-3)) for n in range(2, 11)]


def test_a_gallery_too_large_for_the_calibration_states_a_higher_rate(open_client):
    client = open_client(false_accepts=1e-4)
    for _ in range(3):
        enrol(client, "Ana", RED, known=True)
    (face,) = identify(client, RED).json()["faces"]
    assert (face["threshold"], face["false_accepts"]) == (0.9, pytest.approx(3e-4))


def test_without_a_calibration_there_is_no_verdict(open_client):
    client = open_client(calibration=None)
    enrol(client, "Ana", RED)
    (face,) = identify(client, RED).json()["faces"]
    assert face["verdict"] == "uncalibrated" and "threshold" not in face
    assert client.get("/api/gallery").json()["calibration"] is None


def test_an_empty_gallery_is_said(client):
    assert refusal(identify(client, RED)) == (409, "empty")


# Enrolling


def test_a_second_person_of_a_name_is_not_mixed_with_the_first(client):
    enrol(client, "Ana", RED)
    response = enrol(client, " ana ", GREEN)
    assert refusal(response) == (409, "same_name")
    assert "somebody named Ana" in response.json()["error"]["message"]
    (person,) = people(client)
    assert person["photographs"] == 1
    assert enrol(client, "ana", ORANGE, known=True).json()["person"]["photographs"] == 2


def test_what_looks_like_somebody_else_is_doubted_and_can_be_taken_back(client):
    enrol(client, "Ana", RED)
    (note,) = enrol(client, "Ben", ORANGE).json()["notes"]
    assert "looks like Ana (similarity 0.97)" in note
    answer = enrol(client, "Ana", BLUE, known=True).json()
    assert "does not look like the other photographs" in answer["notes"][0]
    assert client.delete(f"/api/photographs/{answer['photograph']}").status_code == 204
    assert [person["photographs"] for person in people(client)] == [1, 1]


def test_a_picture_is_stored_only_where_it_is_asked_for(client, gallery_file):
    number = enrol(client, "Ana", RED).json()["photograph"]
    assert refusal(client.get(f"/api/photographs/{number}/crop")) == (404, "no_crop")
    assert b"PNG" not in gallery_file.read_bytes()
    kept = enrol(client, "Ben", GREEN, keep=True).json()
    assert kept["person"]["crops"] == [kept["photograph"]]
    picture = client.get(f"/api/photographs/{kept['photograph']}/crop")
    assert Image.open(io.BytesIO(picture.content)).size == (32, 32)
    client.delete(f"/api/people/{kept['person']['id']}")
    assert b"PNG" not in gallery_file.read_bytes()
    assert refusal(client.delete(f"/api/people/{kept['person']['id']}")) == (404, "nobody")


def test_embeddings_of_another_model_are_said_to_be_unusable(open_client):
    enrol(open_client(), "Ana", RED)
    other = recogniser()
    other.embedder = type("Other", (Colours,), {"fingerprint": "1" * 64})()
    client = open_client(other)
    assert [(p["photographs"], p["unusable"]) for p in people(client)] == [(0, 1)]
    response = identify(client, RED)
    assert refusal(response) == (409, "other_model")
    assert "enrolled with another model" in response.json()["error"]["message"]


# What people send


def test_several_faces_are_all_identified_and_none_is_enrolled(client):
    enrol(client, "Ana", RED)
    response = enrol(client, "Ben", GREEN, BLUE, RED)
    assert refusal(response) == (422, "several_faces")
    assert response.json()["error"]["message"].startswith("3 faces were found")
    verify = client.post("/api/people/1/verify", content=photograph(RED, RED))
    assert refusal(verify) == (422, "several_faces")
    faces = identify(client, GREEN, RED, BLUE).json()["faces"]
    assert [face["verdict"] for face in faces] == ["unknown", "match", "unknown"]
    assert [face["box"][0] for face in faces] == pytest.approx([0, 1 / 3, 2 / 3])


@pytest.mark.parametrize("path", ["/api/identify", "/api/people?name=Ana"])
def test_no_face_is_said(client, path):
    assert refusal(client.post(path, content=photograph(RED, size=100))) == (422, "no_face")


def test_a_photograph_is_turned_as_its_exif_says(client):
    enrol(client, "Ana", RED)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn to the right
    colours = np.concatenate([np.full((200, 200, 3), c, np.uint8) for c in (GREEN, RED)])
    file = io.BytesIO()
    Image.fromarray(np.rot90(colours.transpose(1, 0, 2), 1)).save(file, "PNG", exif=exif)
    faces = client.post("/api/identify", content=file.getvalue()).json()["faces"]
    assert [face["verdict"] for face in faces] == ["unknown", "match"]


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_the_content_counts_and_not_the_declared_type(client, form):
    content = photograph(RED, form=form)
    response = client.post(
        "/api/people?name=Ana", content=content, headers={"content-type": "image/png"}
    )
    assert response.status_code == 200


@pytest.mark.parametrize("content", [b"<script>alert(1)</script>", b"GIF89a" + bytes(50), b"MZ"])
def test_a_spoofed_content_type_is_seen_through(client, content):
    response = client.post("/api/identify", content=content, headers={"content-type": "image/jpeg"})
    assert refusal(response) == (415, "not_a_photograph")


@pytest.mark.parametrize("kind", ["text/plain", "multipart/form-data; boundary=x", "image/gif", ""])
def test_what_a_form_on_another_site_could_send_is_refused(client, kind):
    response = client.post("/api/identify", content=photograph(RED), headers={"content-type": kind})
    assert refusal(response) == (415, "content_type")


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("share", [0.1, 0.6])
def test_a_corrupt_file_is_said_to_be_damaged(client, form, share):
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, form)
    content = file.getvalue()[: int(share * len(file.getvalue()))]
    assert refusal(client.post("/api/identify", content=content)) == (422, "damaged")
    assert refusal(client.post("/api/identify", content=content[:16])) == (422, "damaged")


def test_a_hundred_megapixels_are_refused_before_they_are_decoded(client, monkeypatch):
    file = io.BytesIO()
    Image.new("1", (10_000, 10_000)).save(file, "PNG")
    bomb = bytearray(file.getvalue())
    assert len(bomb) < 20_000
    monkeypatch.setattr(reading, "decode_image", lambda *_: pytest.fail("decoded"))
    response = client.post("/api/identify", content=bytes(bomb))
    assert refusal(response) == (413, "too_many_pixels")
    assert "100 megapixels" in response.json()["error"]["message"]
    header = b"IHDR" + struct.pack(">II", 60_000, 60_000) + bomb[24:29]  # what Pillow itself fears
    bomb[12:33] = header + struct.pack(">I", zlib.crc32(header))
    response = client.post("/api/identify", content=bytes(bomb))
    assert refusal(response) == (413, "too_many_pixels")


def test_a_large_file_is_refused_whether_its_length_is_declared_or_not(client, monkeypatch):
    monkeypatch.setattr("applications.face_id.server.MAX_BYTES", 1000)
    sent = []

    def parts():
        for _ in range(5):
            sent.append(600)
            yield bytes(600)

    assert refusal(client.post("/api/identify", content=bytes(1001))) == (413, "too_large")
    assert refusal(client.post("/api/identify", content=parts())) == (413, "too_large")
    assert refusal(client.post("/api/identify", content=b"")) == (422, "empty")


def test_too_many_photographs_are_refused(open_client):
    client = open_client(photographs_per_minute=3)
    answers = [identify(client, RED).status_code for _ in range(4)]
    assert answers == [409, 409, 409, 429]
    assert "go on in 60 seconds" in identify(client, RED).json()["error"]["message"]
    assert client.get("/api/gallery").status_code == 200


# From elsewhere


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:8010", "192.168.0.2"])
@pytest.mark.parametrize("path", ["/", "/api/gallery"])
def test_another_host_name_is_refused(client, host, path):
    """A page whose name was bound to 127.0.0.1 after it was loaded sends its own name."""
    assert client.get(path, headers={"host": host}).status_code == 400


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:3000"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},  # another port of this machine
    ],
)
def test_another_page_cannot_use_the_program(client, headers):
    enrol(client, "Ana", RED)
    for method, path in (
        ("GET", "/api/gallery"),
        ("POST", "/api/identify"),
        ("POST", "/api/people?name=Eve"),
        ("DELETE", "/api/people/1"),
    ):
        content = photograph(RED) if method == "POST" else None
        response = client.request(method, path, content=content, headers=headers)
        assert refusal(response) == (403, "from_elsewhere")
    assert [person["name"] for person in people(client)] == ["Ana"]


def test_the_own_page_can(client):
    own = {"origin": URL, "sec-fetch-site": "same-origin"}
    response = client.post("/api/people?name=Ana", content=photograph(RED), headers=own)
    assert response.status_code == 200
    assert client.get("/", headers={"sec-fetch-site": "cross-site"}).status_code == 200  # a link


def test_the_page_takes_nothing_from_elsewhere(client):
    index = client.get("/")
    assert "default-src 'self'" in index.headers["content-security-policy"]
    references = re.findall(r'(?:src|href)="([^"]+)"', index.text)
    for name in references:
        if not name.startswith("data:"):
            assert client.get(f"/{name}").status_code == 200
    assert {"style.css", "page.js"} <= set(references)
    for file in PAGE.iterdir():
        assert "//" not in re.sub(r"^\s*//.*$|\s// .*$", "", file.read_text(), flags=re.MULTILINE)
    assert [client.get(path).status_code for path in ("/docs", "/openapi.json")] == [404, 404]


@pytest.mark.parametrize("number", [10**20, -1, "first"])
def test_a_number_that_no_row_has_is_refused_in_words(client, number):
    for method, path in [("delete", ""), ("get", "/crop")]:
        response = client.request(method, f"/api/photographs/{number}{path}")
        assert refusal(response) == (422, "bad_request")
        assert response.json()["error"]["message"].startswith("number: Input should be")
        assert response.headers["Cache-Control"] == "no-store"


def test_a_gallery_that_another_program_holds_is_said(open_client, gallery_file, monkeypatch):
    monkeypatch.setattr(sqlite3, "connect", functools.partial(sqlite3.connect, timeout=0.1))
    client = open_client()
    enrol(client, "Ana", RED)
    other = sqlite3.connect(gallery_file)
    other.execute("BEGIN EXCLUSIVE")
    answers = [identify(client, RED), enrol(client, "Ben", GREEN)]
    answers.append(client.delete(f"/api/people/{1}"))
    other.rollback()
    other.close()
    for answer in answers:
        assert refusal(answer) == (503, "gallery_unavailable")
        assert "database is locked" in answer.json()["error"]["message"]
    (person,) = people(client)
    assert person["name"] == "Ana" and identify(client, RED).json()["faces"][0]["name"] == "Ana"
