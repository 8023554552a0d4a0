"""What applications/face_id promises, measured: strangers given a name, and people missed.

    python benchmarks/face_id.py mobilefacenet.tflite --detector yunet.onnx --data lfw/

The people of the data are split in two. One half is what the program is calibrated on. Of the other
half, those with enough photographs are enrolled by three each; each of their other photographs, and
one of everybody else, is then identified, as the program does it. One row for each gallery and rate
is added to the CSV file.
"""

import argparse
import pathlib
import sys
import tempfile
from collections import defaultdict

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

ENROLLED = 3
PROBES = 5  # at most, of a person
COLUMNS = (
    "model",
    "data",
    "people",
    "photographs",
    "false_accepts_asked",
    "false_accepts_stated",
    "threshold",
    "known",
    "known_named",
    "known_misnamed",
    "strangers",
    "strangers_named",
    "calibration_people",
    "calibration_pairs",
    "seed",
    "commit",
    "command",
)


def main() -> None:
    """Calibrate, enrol, identify and add to the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", help="a .tflite or .keras file")
    parser.add_argument("--detector", required=True)
    parser.add_argument("--data", required=True, help="a folder or .zip, one folder a person")
    parser.add_argument("--people", type=int, nargs="+", default=[10, 100], help="enrolled")
    parser.add_argument("--false-accepts", type=float, nargs="+", default=[0.01, 0.001])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table", default=str(ROOT / "benchmarks/results/face_id.csv"))
    given = parser.parse_args()

    from applications.face_id.calibrate import choose, embed_source, measure
    from applications.face_id.gallery import Gallery
    from applications.face_id.recogniser import Embedder, Recogniser
    from applications.face_id.server import Judge
    from benchmarks.table import append_row
    from keras_hybrid.data import FaceDetector, open_source
    from training.report import command, commit

    recogniser = Recogniser(FaceDetector(given.detector), Embedder(given.model))
    fingerprint = recogniser.embedder.fingerprint
    source = open_source(given.data)
    people = np.random.default_rng(given.seed).permutation(np.unique(source.labels))
    first, second = np.array_split(people, 2)

    rows = np.flatnonzero(np.isin(source.labels, first))
    chosen = rows[choose(source.labels[rows], 2000, given.seed)]
    embeddings, labels, _ = embed_source(recogniser, source, chosen)
    calibration = measure(embeddings, labels, fingerprint, pathlib.Path(given.data).name)

    rows_of = defaultdict(list)
    for row in np.random.default_rng(given.seed).permutation(len(source.labels)):
        rows_of[source.labels[row]].append(row)
    known = [p for p in second if len(rows_of[p]) > ENROLLED][: max(given.people)]
    wanted = [row for p in known for row in rows_of[p][: ENROLLED + PROBES]]
    wanted += [rows_of[p][0] for p in second if p not in known]
    embeddings, labels, skipped = embed_source(recogniser, source, wanted)
    print(f"{len(wanted)} photographs, {skipped} of them without a face that was found")
    of = {p: embeddings[labels == p] for p in second}
    strangers = [of[p][0] for p in second if p not in known and len(of[p])]

    for count in given.people:
        if count > len(known):
            raise ValueError(f"--people {count}: only {len(known)} have enough photographs.")
        with tempfile.TemporaryDirectory() as folder:
            gallery = Gallery(pathlib.Path(folder) / "gallery.db", fingerprint)
            for p in known[:count]:
                for embedding in of[p][:ENROLLED]:
                    gallery.add(f"person {p}", embedding)
            number = {gallery.named(f"person {p}").id: p for p in known[:count]}
            for asked in given.false_accepts:
                judge = Judge(calibration, asked)

                def name(embedding, judge=judge, number=number, gallery=gallery):
                    match = gallery.nearest(embedding)
                    return number[match.person] if judge.answer(match)["verdict"] == "match" else -1

                answers = [(p, name(e)) for p in known[:count] for e in of[p][ENROLLED:]]
                stated = judge.answer(gallery.nearest(strangers[0]))
                row = {
                    "model": recogniser.embedder.name,
                    "data": pathlib.Path(given.data).name,
                    "people": count,
                    "photographs": stated["comparisons"],
                    "false_accepts_asked": asked,
                    "false_accepts_stated": round(stated["false_accepts"], 6),
                    "threshold": round(stated["threshold"], 4),
                    "known": len(answers),
                    "known_named": sum(p == answer for p, answer in answers),
                    "known_misnamed": sum(answer not in (p, -1) for p, answer in answers),
                    "strangers": len(strangers),
                    "strangers_named": sum(name(e) != -1 for e in strangers),
                    "calibration_people": calibration.people,
                    "calibration_pairs": calibration.different_pairs,
                    "seed": given.seed,
                    "commit": commit(),
                    "command": command(),
                }
                append_row(pathlib.Path(given.table), COLUMNS, row)
                print({key: row[key] for key in COLUMNS[2:12]}, flush=True)
            gallery.close()


if __name__ == "__main__":
    main()
