"""The same images as files, a .zip, RecordIO and shards: images per second of a lazy first pass.

    python benchmarks/input.py --images faces/  # a folder or .zip with a folder per identity

The images are laid out four ways in a temporary folder. Each is then read by ``Batches`` as
training with ``--reading lazy`` reads it: in random order, decoded, resized, batched, without a
training step. Every pass has a process of its own, forked from one that has imported everything,
and the layouts take turns.

- ``pages``: "disk" where the system was asked to drop the files' pages before the pass (directories
  stay in memory), "memory" where a pass had just read them.
- ``shards, one by one`` reads each record by itself; ``shards`` reads a batch's at once, a thread
  for each file, as ``ShardSource`` does.
- ``open_seconds``: finding out what there is; not part of the pass.
- ``cpu_milliseconds``: processor time of an image in the pass, all threads together.
- ``more_megabytes``: resident memory at its highest, beyond what the process began with.

Times are medians of the rounds. What shards are for, disks far away and millions of files, is not
measured by a run on a local disk.
"""

import argparse
import functools
import multiprocessing
import os
import pathlib
import platform
import struct
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)
COLUMNS = (
    "layout",
    "pages",
    "workers",
    "images",
    "image_size",
    "files",
    "megabytes",
    "open_seconds",
    "images_per_second",
    "cpu_milliseconds",
    "more_megabytes",
    "rounds",
    "seed",
    "hardware",
    "commit",
    "command",
)
LAYOUTS = ("files", "zip", "recordio", "shards", "shards, one by one")
BATCH = 64


def lay_out(
    images: str, limit: int | None, folder: pathlib.Path, shards: int
) -> dict[str, pathlib.Path]:
    """Write the images in every layout; returns where each one is."""
    import keras_hybrid as kh

    source = kh.data.open_source(images)
    if limit is not None:
        source = kh.data.Subset(source, np.linspace(0, len(source) - 1, limit).astype(int))
    places = {name: folder / name for name in ("files", "recordio", "shards")}
    places["zip"] = folder / "images.zip"
    places["recordio"].mkdir()
    index = []
    with (
        zipfile.ZipFile(places["zip"], "w") as archive,
        (places["recordio"] / "train.rec").open("wb") as records,
    ):
        for i, (label, path) in enumerate(zip(source.labels, source.paths, strict=True)):
            content = source.encoded(i)
            name = f"{label:05d}/{i:07d}{pathlib.Path(path).suffix}"
            (places["files"] / name).parent.mkdir(parents=True, exist_ok=True)
            (places["files"] / name).write_bytes(content)
            archive.writestr(name, content)
            index.append(f"{i}\t{records.tell()}\n")
            content = struct.pack("<IfQQ", 0, label, i, 0) + content
            records.write(struct.pack("<II", 0xCED7230A, len(content)) + content)
            records.write(bytes(-len(content) % 4))
    (places["recordio"] / "train.idx").write_text("".join(index))
    kh.data.write_shards(kh.data.open_source(places["files"]), places["shards"], shards)
    return {**places, "shards, one by one": places["shards"]}


def files_of(place: pathlib.Path) -> list[pathlib.Path]:
    """All files of a layout."""
    return [path for path in place.rglob("*") if path.is_file()] or [place]


def drop_pages(place: pathlib.Path) -> None:
    """Ask the system to forget what it keeps of the files' content."""
    for path in files_of(place):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def memory(name: str) -> float:
    """Resident megabytes of this process: VmRSS now, VmHWM at its highest."""
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.split(f"{name}:")[1].split()[0]) / 1024


def one_pass(
    layout: str, place: pathlib.Path, pages: str, workers: int, size: int, seed: int
) -> dict:
    """Read every image once; returns what was measured."""
    import keras_hybrid as kh

    before = memory("VmRSS")
    start = time.perf_counter()
    source = kh.data.open_source(place)
    open_seconds = time.perf_counter() - start
    if pages == "disk":  # again: to open RecordIO is to walk through all of it
        drop_pages(place)
    if layout == "shards, one by one":
        source.read_many = functools.partial(kh.data.ImageSource.read_many, source)
    batches = kh.data.Batches(source, batch_size=BATCH, image_size=size, workers=workers, seed=seed)
    start, cpu = time.perf_counter(), time.process_time()
    count = sum(len(labels) for _, labels in batches)
    return {
        "images": count,
        "open_seconds": open_seconds,
        "images_per_second": count / (time.perf_counter() - start),
        "cpu_milliseconds": 1e3 * (time.process_time() - cpu) / count,
        "more_megabytes": memory("VmHWM") - before,
    }


def in_a_process(function: Callable, *arguments) -> Any:
    """Call a function in a forked process."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(function, arguments)


def main() -> None:
    """Lay out, measure, print and add to the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", required=True, help="a folder or .zip of labelled images")
    parser.add_argument("--limit", type=int, help="so many of them, spread evenly (default: all)")
    parser.add_argument("--image-size", type=int, default=64, help="resized to (default: 64)")
    parser.add_argument("--shards", type=int, default=8, help="files of shards (default: 8)")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4], help="threads")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0, help="of the order")
    parser.add_argument("--hardware", default=f"{os.cpu_count()} cores, {platform.machine()}")
    table = ROOT / "benchmarks/results/input.csv"
    parser.add_argument("--table", type=pathlib.Path, default=table)
    given = parser.parse_args()

    import PIL.Image  # noqa: F401
    from array_record.python import array_record_data_source  # noqa: F401

    import keras_hybrid.data  # noqa: F401
    from benchmarks.table import append_row
    from training.report import command, commit

    with tempfile.TemporaryDirectory() as folder:
        places = in_a_process(
            lay_out, given.images, given.limit, pathlib.Path(folder), given.shards
        )
        found: dict[tuple, list[dict]] = {}
        for _ in range(given.rounds):
            for workers in given.workers:
                for layout in LAYOUTS:
                    for pages in ("disk", "memory"):
                        if pages == "disk":
                            drop_pages(places[layout])
                        arguments = (pages, workers, given.image_size, given.seed)
                        result = in_a_process(one_pass, layout, places[layout], *arguments)
                        found.setdefault((layout, pages, workers), []).append(result)
                        print(layout, pages, workers, result, flush=True)
        for (layout, pages, workers), results in found.items():
            files = files_of(places[layout])
            medians = {
                name: round(float(np.median([result[name] for result in results])), digits)
                for name, digits in (
                    ("open_seconds", 2),
                    ("images_per_second", None),
                    ("cpu_milliseconds", 3),
                    ("more_megabytes", None),
                )
            }
            row = {
                "layout": layout,
                "pages": pages,
                "workers": workers,
                "images": results[0]["images"],
                "image_size": given.image_size,
                "files": len(files),
                "megabytes": round(sum(file.stat().st_size for file in files) / 1e6, 1),
                **medians,
                "rounds": given.rounds,
                "seed": given.seed,
                "hardware": given.hardware,
                "commit": commit(),
                "command": command(),
            }
            append_row(given.table, COLUMNS, row)
            print(*(row[column] for column in COLUMNS[:11]), flush=True)


if __name__ == "__main__":
    main()
