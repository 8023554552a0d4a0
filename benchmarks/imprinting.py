"""New people without training: how many photographs of each does a published face model need?

    python benchmarks/imprinting.py mobilefacenet_relu6 mobilefacenet.pth --data faces.csv \
        --images faces.zip --train-split train --test-split test

Converts the checkpoint, lets a cosine classifier begin with the mean embedding of some photographs
of each person (``keras_hybrid.transfer.imprint``), and classifies the test images, one crop each.
The photographs are drawn anew several times; a row of the CSV file has the mean and the standard
deviation over the draws. People with fewer photographs give what they have.
"""

import argparse
import os
import pathlib
import platform
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

COLUMNS = (
    "model",
    "checkpoint",
    "photographs",
    "top1",
    "top1_std",
    "draws",
    "classes",
    "test_images",
    "data",
    "backend",
    "hardware",
    "commit",
    "command",
)


def main() -> None:
    """Embed once, then imprint and classify for each number of photographs."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", help="a name of keras_hybrid.list_models()")
    parser.add_argument("checkpoint", help="a .pth, .pt, .safetensors or .npz file")
    parser.add_argument("--data", required=True, help="people the model was not trained on")
    parser.add_argument("--images", help="for a .csv: the folder or .zip of its files")
    parser.add_argument("--train-split", required=True)
    parser.add_argument("--test-split", required=True)
    parser.add_argument("--photographs", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--backend", choices=("tensorflow", "jax", "torch"), default="tensorflow")
    parser.add_argument("--hardware", default=f"{os.cpu_count()} cores, {platform.machine()}")
    parser.add_argument("--table", default=str(ROOT / "benchmarks/results/imprinting.csv"))
    given = parser.parse_args()
    os.environ["KERAS_BACKEND"] = given.backend

    import keras
    import numpy as np

    import keras_hybrid as kh
    from benchmarks.table import append_row
    from training.report import command, commit

    model = kh.create_model(given.model, include_top=False, pooling="native")
    kh.convert.load_torch_weights(model, given.checkpoint)
    size = model.input_shape[1:3]
    options = {} if given.images is None else {"images": given.images}
    train, test = (
        kh.data.load_arrays(kh.data.open_source(given.data, split=split, **options), size)
        for split in (given.train_split, given.test_split)
    )
    known, unknown = (kh.evaluation.embed(model, loaded.images)[0] for loaded in (train, test))
    inputs = keras.Input(known.shape[1:])
    classes = len(train.class_names)
    classifier = keras.Model(
        inputs, kh.layers.CosineClassifier(classes, name="predictions")(inputs)
    )
    for photographs in given.photographs:
        found = []
        for draw in range(given.draws):
            rows = kh.data.sample_per_class(train, photographs, seed=draw).indices
            kh.transfer.imprint(classifier, known[rows], train.labels[rows])
            cosines = classifier.predict(unknown, verbose=0)
            found.append(np.mean(cosines.argmax(axis=1) == test.labels))
        row = {
            "model": given.model,
            "checkpoint": pathlib.Path(given.checkpoint).name,
            "photographs": photographs,
            "top1": round(float(np.mean(found)), 5),
            "top1_std": round(float(np.std(found)), 5),
            "draws": given.draws,
            "classes": classes,
            "test_images": len(test),
            "data": pathlib.Path(given.data).name,
            "backend": given.backend,
            "hardware": given.hardware,
            "commit": commit(),
            "command": command(),
        }
        append_row(pathlib.Path(given.table), COLUMNS, row)
        print(f"{photographs} photographs: top-1 {np.mean(found):.2%} ± {np.std(found):.2%}")


if __name__ == "__main__":
    main()
