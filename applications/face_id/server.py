"""The program's face to the browser: one page, and what it asks for.

It is made for one person on one machine. Nobody logs in: whoever reaches the address may use it,
which by default is this machine alone. A page from elsewhere, open in the same browser, is refused
by the Host, Origin and Sec-Fetch-Site headers. A photograph is the body of a request; it is
decoded, compared and forgotten.
"""

import asyncio
import io
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from fastapi import Depends, FastAPI, Request, Response
from fastapi import Path as PathParameter
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from PIL import Image
from starlette.middleware.trustedhost import TrustedHostMiddleware

from applications.face_id.calibrate import Calibration
from applications.face_id.gallery import Gallery, Match
from applications.face_id.photograph import MAX_BYTES, read_photograph
from applications.face_id.recogniser import Recogniser
from applications.face_id.refusal import Refusal
from keras_hybrid.data import Face

__all__ = ["LOOPBACK", "Judge", "create_app"]

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")

_PAGE = Path(__file__).parent / "page"
# None of these can be sent from another site's page without the browser asking first.
_TYPES = ("image/jpeg", "image/png", "image/webp", "application/octet-stream")
_SECONDS_TO_SEND = 60
_Number = Annotated[int, PathParameter(ge=1, le=2**63 - 1)]  # what SQLite numbers rows by
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def create_app(
    recogniser: Recogniser,
    gallery: Gallery,
    calibration: Calibration | None,
    *,
    false_accepts: float = 1e-3,
    hosts: tuple[str, ...] = LOOPBACK,
    photographs_per_minute: int = 120,
) -> FastAPI:
    """Build the program.

    Args:
        recogniser: Finds and embeds faces.
        gallery: Of the recogniser's model.
        calibration: Of the recogniser's model; without one there are similarities and no verdicts.
        false_accepts: How often a stranger may be given a name, in (0, 1). The threshold follows
            from it and from how many photographs the stranger's is compared with.
        hosts: Names under which a browser may address the program, IPv6 in brackets.
        photographs_per_minute: More are refused.
    """
    app = FastAPI(title="Face ID", docs_url=None, redoc_url=None, openapi_url=None)
    judge = Judge(calibration, false_accepts)
    lock = threading.Lock()  # one photograph at a time: detector, interpreter, database, memory

    @app.middleware("http")
    async def guard(request: Request, call_next: Callable) -> Response:
        response = _from_elsewhere(request) or await call_next(request)
        response.headers.update(_HEADERS)
        return response

    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)

    @app.exception_handler(Refusal)
    async def refused(request: Request, refusal: Refusal) -> JSONResponse:
        return _refusal(refusal)

    @app.exception_handler(sqlite3.OperationalError)
    async def busy(request: Request, error: sqlite3.OperationalError) -> JSONResponse:
        return _refusal(
            Refusal(503, "gallery_unavailable", f"The gallery cannot be used just now: {error}.")
        )

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        problems = [f"{part['loc'][-1]}: {part['msg']}" for part in error.errors()]
        return _refusal(Refusal(422, "bad_request", f"{'; '.join(problems)}."))

    limiter = _Limiter(photographs_per_minute)

    async def photograph(request: Request) -> bytes:
        limiter.check()
        return await _read_body(request)

    Photograph = Annotated[bytes, Depends(photograph)]

    for path, name in (("/", "index.html"), ("/style.css",) * 2, ("/page.js",) * 2):
        app.get(path)(_file_endpoint(_PAGE / name.lstrip("/")))

    @app.get("/api/gallery")
    def read_gallery() -> dict[str, Any]:
        with lock:
            people = gallery.people()
        embedder = recogniser.embedder
        return {
            "model": {"name": embedder.name, "fingerprint": embedder.fingerprint},
            "false_accepts": false_accepts,
            "calibration": judge.describe(),
            "people": [asdict(person) for person in people],
        }

    @app.post("/api/identify")
    def identify(data: Photograph) -> dict[str, Any]:
        with lock:
            image = read_photograph(data)
            faces = recogniser.faces(image)
            answers = []
            for face in sorted(faces, key=lambda face: face.box[0]):  # as they are read
                answer: dict[str, Any] = {"box": _box(face, image)}
                if recogniser.is_too_small(face):
                    answer["verdict"] = "too_small"
                else:
                    match = gallery.nearest(_embed(recogniser, image, face))
                    name = gallery.person(match.person).name
                    answer |= judge.answer(match) | {"name": name}
                answers.append(answer)
        return {"faces": answers}

    @app.post("/api/people/{number}/verify")
    def verify(number: _Number, data: Photograph) -> dict[str, Any]:
        with lock:
            person = gallery.person(number)
            image = read_photograph(data)
            face = recogniser.only_face(image)
            match = gallery.nearest(_embed(recogniser, image, face), number)
        answer = judge.answer(match) | {"name": person.name, "box": _box(face, image)}
        return {"faces": [answer]}

    @app.post("/api/people")
    def enrol(
        name: str, data: Photograph, known: bool = False, keep: bool = False
    ) -> dict[str, Any]:
        """Enrol a photograph; ``known``: of somebody enrolled; ``keep``: store the face's crop."""
        with lock:
            person = gallery.named(name)
            if person is not None and not known:
                raise Refusal(
                    409,
                    "same_name",
                    f"There already is somebody named {person.name}. If it is the same person, add "
                    "the photograph to theirs; if not, give a name that tells the two apart.",
                )
            image = read_photograph(data)
            face = recogniser.only_face(image)
            crop = recogniser.crop(image, face)
            embedding = recogniser.embed([crop])[0]
            notes = _doubts(gallery, judge, person and person.id, embedding)
            number = gallery.add(name, embedding, _png(crop) if keep else None)
            person = gallery.named(name)
        return {
            "person": asdict(person),
            "photograph": number,
            "box": _box(face, image),
            "notes": notes,
        }

    @app.delete("/api/people/{number}", status_code=204)
    def delete_person(number: _Number) -> None:
        with lock:
            gallery.delete_person(number)

    @app.delete("/api/photographs/{number}", status_code=204)
    def delete_photograph(number: _Number) -> None:
        with lock:
            gallery.delete_photograph(number)

    @app.get("/api/photographs/{number}/crop")
    def crop(number: _Number) -> Response:
        with lock:
            return Response(gallery.crop(number), media_type="image/png")

    return app


class Judge:
    """Turns similarities into verdicts, and says how often such a verdict is wrong."""

    def __init__(self, calibration: Calibration | None, false_accepts: float):
        self._calibration, self._false_accepts = calibration, false_accepts

    def describe(self) -> dict[str, Any] | None:
        """What the page says of the calibration."""
        if self._calibration is None:
            return None
        keys = ("source", "people", "photographs", "different_pairs")
        return {key: getattr(self._calibration, key) for key in keys}

    def answer(self, match: Match) -> dict[str, Any]:
        """The verdict on a match.

        A stranger's photograph that is compared with n others has n chances, so each may go wrong
        in one n-th of the cases at most; the rate that is stated is n times the measured one.
        """
        answer = {"score": match.score, "comparisons": match.comparisons}
        if self._calibration is None:
            return answer | {"verdict": "uncalibrated"}
        point = self._calibration.at(self._false_accepts / match.comparisons)
        return answer | {
            "verdict": "match" if match.score >= point.threshold else "unknown",
            "threshold": point.threshold,
            "false_accepts": min(1.0, match.comparisons * point.false_accepts),
            "true_accepts": point.true_accepts,
        }


def _doubts(gallery: Gallery, judge: Judge, person: int | None, embedding: np.ndarray) -> list:
    """What should be said before a photograph is enrolled as a person's."""
    notes = []
    try:
        match = gallery.nearest(embedding)
        if match.person != person and judge.answer(match)["verdict"] == "match":
            notes.append(
                f"It looks like {gallery.person(match.person).name} (similarity {match.score:.2f})."
                " If that is the same person, delete one of the two."
            )
        if person is not None:
            match = gallery.nearest(embedding, person)
            if judge.answer(match)["verdict"] == "unknown":
                notes.append(
                    "It does not look like the other photographs of this person (similarity "
                    f"{match.score:.2f}). If it shows somebody else, take it back."
                )
    except Refusal:  # nothing to compare with
        pass
    return notes


def _embed(recogniser: Recogniser, image: np.ndarray, face: Face) -> np.ndarray:
    return recogniser.embed([recogniser.crop(image, face)])[0]


def _box(face: Face, image: np.ndarray) -> list[float]:
    """Left, top, width and height as shares of the photograph's width and height."""
    height, width = image.shape[:2]
    return [value / side for value, side in zip(face.box, (width, height) * 2, strict=True)]


def _png(crop: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(crop).save(file, "PNG")
    return file.getvalue()


def _file_endpoint(path: Path) -> Callable[[], FileResponse]:
    return lambda: FileResponse(path)


def _refusal(refusal: Refusal) -> JSONResponse:
    content = {"error": {"code": refusal.code, "message": str(refusal)}}
    return JSONResponse(content, refusal.status)


def _from_elsewhere(request: Request) -> JSONResponse | None:
    """Refuse what another site's page sends; opening the page by a link is allowed."""
    origin = request.headers.get("origin")
    site = request.headers.get("sec-fetch-site", "none")
    own = f"{request.url.scheme}://{request.headers.get('host')}"
    is_own_site = site in ("same-origin", "none") or request.url.path == "/"
    if is_own_site and origin in (None, own):
        return None
    return _refusal(Refusal(403, "from_elsewhere", "Another page may not use this program."))


class _Limiter:
    """Refuses more calls than so many in a minute."""

    def __init__(self, per_minute: int):
        self._times: deque[float] = deque(maxlen=per_minute)

    def check(self) -> None:
        now = time.monotonic()
        if len(self._times) == self._times.maxlen and now - self._times[0] < 60:
            wait = 60 - (now - self._times[0])
            raise Refusal(
                429,
                "too_many",
                f"Too many photographs at once: go on in {max(1, round(wait))} seconds.",
            )
        self._times.append(now)


async def _read_body(request: Request) -> bytes:
    """Read a photograph, and stop as soon as it is too large."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in _TYPES:
        raise Refusal(
            415, "content_type", f"Send a photograph as {', '.join(_TYPES)}, not as {kind!r}."
        )
    too_large = Refusal(413, "too_large", f"The file is larger than {MAX_BYTES // 2**20} MB.")
    length = request.headers.get("content-length", "0")
    if length.isdecimal() and int(length) > MAX_BYTES:
        raise too_large
    data = bytearray()
    try:
        async with asyncio.timeout(_SECONDS_TO_SEND):
            async for part in request.stream():
                data += part
                if len(data) > MAX_BYTES:
                    raise too_large
    except TimeoutError as error:
        raise Refusal(408, "too_slow", "The photograph did not arrive in time.") from error
    return bytes(data)
