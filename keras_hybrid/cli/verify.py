"""``keras-hybrid verify``: do two photographs show the same person?"""

import argparse
import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path

from keras_hybrid.cli.printing import print_facts
from keras_hybrid.cli.reading import (
    EVALUATION,
    RESULTS,
    check_embedding,
    check_file,
    image_size,
    in_range,
    load_model,
    note_resizing,
    open_litert,
    read_results,
)

FLIP_NOTE = (
    "note: a .tflite puts out normalised embeddings; the mirror image's is added to these, so the "
    "cosine differs a little from that of the .keras file."
)


def run_verify(given: argparse.Namespace) -> None:
    """Say whether two photographs show the same person."""
    for path in (given.first, given.second, given.model):
        check_file(path)
    threshold, source = _threshold(given)
    from keras_hybrid.evaluation import cosine_scores

    is_litert = given.model.suffix.lower() == ".tflite"
    embeddings = (_embed_with_litert if is_litert else _embed_with_keras)(given)
    cosine = float(cosine_scores(embeddings[:1], embeddings[1:])[0])
    same = cosine >= threshold
    if given.json:
        answer = {
            "same": same,
            "cosine": cosine,
            "threshold": threshold,
            "threshold_source": source,
            "images": [str(given.first), str(given.second)],
            "model": str(given.model),
            "flip": given.flip,
        }
        print(json.dumps(answer, indent=1))
        return
    print("same person" if same else "different people")
    print_facts({"cosine": f"{cosine:.4f}", "threshold": f"{threshold:.4f} (from {source})"})


def _threshold(given: argparse.Namespace) -> tuple[float, str]:
    """Return the threshold and where it comes from.

    Raises:
        ValueError: If there is none: it depends on the model, so none is made up.
    """
    if given.threshold is not None:
        return given.threshold, "--threshold"
    file = given.model.parent / RESULTS
    advice = (
        "Give --threshold, or measure one: keras-hybrid evaluate MODEL.keras --pairs PEOPLE/, a "
        "folder for each of some people that were not trained on, prints it."
    )
    if not file.is_file():
        raise ValueError(f"There is no threshold for {given.model}: no {file}. {advice}")
    results = read_results(file)
    verification = results.get("verification") or {}
    threshold = verification.get("threshold") if isinstance(verification, Mapping) else None
    if not isinstance(threshold, int | float) or not math.isfinite(threshold):
        raise ValueError(f"{file} holds no verification threshold. {advice}")
    # A training measures the model that it ends with.
    measured = str(results.get("model")) if results.get("kind") == EVALUATION else "last.keras"
    if Path(measured).name != given.model.name:  # of the quantized file, say, another was measured
        print(f"note: the threshold was measured on {measured}.", file=sys.stderr)
    own, taken = results.get("input_range", [0, 255]), given.input_range or [0, 255]
    if own != taken and given.model.suffix.lower() != ".tflite":  # which has its own
        print(
            f"note: the threshold was measured with --input-range {own[0]:g} {own[1]:g}.",
            file=sys.stderr,
        )
    flip = verification.get("flip")
    if flip is not None and flip != given.flip:
        print(
            f"note: the threshold was measured {'with' if flip else 'without'} --flip.",
            file=sys.stderr,
        )
    return float(threshold), str(file)


def _read_pair(given: argparse.Namespace, size: tuple[int, int]):
    """Read both images as uint8 (2, height, width, 3)."""
    import numpy as np

    from keras_hybrid.data.files import decode_image, resize_image

    pair = []
    for path in (given.first, given.second):
        photograph = decode_image(path.read_bytes(), str(path))
        note_resizing(path, photograph, size, any_size=False)
        pair.append(resize_image(photograph, size))
    return np.stack(pair)


def _embed_with_keras(given: argparse.Namespace):
    from keras_hybrid.evaluation import embed

    model = load_model(given.model)
    size = image_size(model, given.model)
    check_embedding(model, given.model)
    embedder = in_range(model, given.input_range, embedding=True)
    return embed(embedder, _read_pair(given, size), batch_size=2, flip=given.flip)[0]


def _embed_with_litert(given: argparse.Namespace):
    from keras_hybrid.evaluation import embed

    model = open_litert(given.model, given.input_range)
    if given.flip:
        print(FLIP_NOTE, file=sys.stderr)
    pair = _read_pair(given, model.image_size)
    return embed(model.embedder(), pair, batch_size=2, flip=given.flip)[0]
