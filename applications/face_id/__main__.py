"""Start the program: ``python -m applications.face_id --model … --detector … --gallery …``."""

import argparse
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
        default="127.0.0.1",
        help="address to listen on (default: 127.0.0.1, this machine alone)",
    )
    parser.add_argument("--port", type=int, default=8000)
    given = parser.parse_args(arguments)
    try:
        app = _build(given)
    except (ValueError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    import uvicorn

    print(f"Open http://{given.host}:{given.port} in a browser; Ctrl+C ends the program.")
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


def _rate(text: str) -> float:
    rate = float(text)
    if not 0 < rate < 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return rate


def _build(given: argparse.Namespace):
    from applications.face_id.calibrate import Calibration, calibration_file
    from applications.face_id.gallery import Gallery
    from applications.face_id.recogniser import Detector, Embedder, Recogniser
    from applications.face_id.server import LOOPBACK, create_app

    recogniser = Recogniser(Detector(given.detector), Embedder(given.model))
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
    if given.host not in LOOPBACK:
        print(
            f"warning: everybody who reaches {given.host} may use this program: nobody logs in, "
            "and nothing is encrypted.",
            file=sys.stderr,
        )
    return create_app(
        recogniser,
        Gallery(given.gallery, model),
        calibration,
        false_accepts=given.false_accepts,
        hosts=(*LOOPBACK, given.host),
    )


if __name__ == "__main__":
    sys.exit(main())
