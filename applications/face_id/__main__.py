"""Start the program: ``python -m applications.face_id --model … --detector … --gallery …``."""

import argparse
import ipaddress
import socket
import sys
from pathlib import Path


def main(arguments: list[str] | None = None) -> int:
    """Serve until interrupted; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m applications.face_id",
        description="Enrol, verify and identify people by their faces, on this machine.",
    )
    parser.add_argument(
        "--model",
        type=Path,
        required=True,
        help="a .tflite exported with --output embedding, or a .keras with a layer `embedding`",
    )
    parser.add_argument("--detector", type=Path, required=True, help="YuNet's .onnx file")
    parser.add_argument(
        "--gallery", type=Path, required=True, help="database of the enrolled; made if missing"
    )
    parser.add_argument(
        "--calibration",
        type=Path,
        help="of python -m applications.face_id.calibrate (default: MODEL.calibration.json)",
    )
    parser.add_argument(
        "--false-accepts",
        type=_rate,
        default=1e-3,
        metavar="RATE",
        help="how often a stranger may be given a name (default: 0.001)",
    )
    parser.add_argument(
        "--host",
        type=_host,
        default="127.0.0.1",
        help="address or host name to listen on, as browsers use it "
        "(default: 127.0.0.1, this machine alone)",
    )
    parser.add_argument(
        "--port", type=_port, default=8010, help="1 to 65535 (default: 8010)", metavar="N"
    )
    given = parser.parse_args(arguments)
    try:
        app = _build(given)
    except (ValueError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    import uvicorn

    print(
        f"Open http://{_in_address(given.host)}:{given.port} in a browser; Ctrl+C ends the program."
    )
    # No access log: it would name the enrolled.
    uvicorn.run(
        app,
        host=given.host,
        port=given.port,
        access_log=False,
        log_level="warning",
        limit_concurrency=32,
    )
    return 0


def _host(text: str) -> str:
    """An address in the spelling that browsers send, or a name."""
    if text.startswith("[") and text.endswith("]"):  # as browsers write an address of version 6
        text = text[1:-1]
    flags = socket.AI_NUMERICHOST | socket.AI_PASSIVE
    try:
        found = socket.getaddrinfo(text or None, 0, type=socket.SOCK_STREAM, flags=flags)
    except socket.gaierror:
        return text
    address = ipaddress.ip_address(found[0][4][0])
    if address.is_unspecified:
        # Browsers never send it as the Host, by which requests are let in.
        raise argparse.ArgumentTypeError(
            f"{text!r} means every address of this machine; give the address or the host name that "
            "browsers will use"
        )
    return str(address)


def _in_address(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port, 1 to 65535")
    return int(text)


def _rate(text: str) -> float:
    rate = float(text)
    if not 0 < rate < 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return rate


def _build(given: argparse.Namespace):
    from applications.face_id.calibrate import Calibration, calibration_file
    from applications.face_id.gallery import Gallery
    from applications.face_id.recogniser import Embedder, Recogniser
    from applications.face_id.server import LOOPBACK, create_app
    from keras_hybrid.data import FaceDetector

    recogniser = Recogniser(FaceDetector(given.detector), Embedder(given.model))
    model = recogniser.embedder.fingerprint
    file = given.calibration or calibration_file(given.model)
    calibration = None
    if given.calibration or file.exists():
        calibration = Calibration.read(file, model)
    else:
        print(
            f"note: there is no {file}, so similarities are shown without a verdict; "
            "python -m applications.face_id.calibrate measures the threshold.",
            file=sys.stderr,
        )
    host = _in_address(given.host)
    if host not in LOOPBACK:
        print(
            f"warning: everybody who reaches {host} may use this program: nobody logs in, "
            "and nothing is encrypted.",
            file=sys.stderr,
        )
    return create_app(
        recogniser,
        Gallery(given.gallery, model),
        calibration,
        false_accepts=given.false_accepts,
        hosts=(*LOOPBACK, host),
    )


if __name__ == "__main__":
    sys.exit(main())
