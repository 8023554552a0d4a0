"""The most similar of a million: exact search beside an approximate index, on drawn embeddings.

    pip install "usearch>=2.26"
    OMP_NUM_THREADS=1 python benchmarks/gallery.py --sizes 10000 100000 1000000 --widths 128

A gallery holds one photograph of each person. Half of the queries are second photographs of people
in it, the others show strangers; recall@1 is the share of them for which a search answers as a
product of float32 matrices does. ``usearch``'s HNSW index is searched wider and wider until both
recalls are at least 0.99; each width of the search is a row of the CSV file.

The embeddings are drawn, since nobody has photographs of a million people to give away: Gaussian
people and, around each, Gaussian photographs, whose spectra and cosines are those of a real model
(``REAL``). ``--fit embeddings.npz`` with ``embeddings`` (n, width) and ``labels`` (n,) finds these
numbers for another model.
"""

import argparse
import itertools
import os
import pathlib
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

COLUMNS = (
    "search",
    "people",
    "width",
    "storage",
    "connectivity",
    "expansion_add",
    "expansion_search",
    "candidates",
    "recall_enrolled",
    "recall_strangers",
    "named",
    "milliseconds",
    "milliseconds_p95",
    "milliseconds_in_batch",
    "batch_size",
    "queries",
    "build_seconds",
    "memory_megabytes",
    "file_megabytes",
    "threads",
    "clock",
    "seed",
    "hardware",
    "commit",
    "command",
)
EXPANSIONS = (16, 32, 64, 128, 256, 512, 1024, 2048)
TARGET = 0.99
BATCH = 100
CHUNK = 20_000


class Law(NamedTuple):
    """How embeddings lie, before they are scaled to length 1.

    Attributes:
        people_decay: The people's variances along their principal axes fall by this power of e
            from the first to the last.
        photograph_decay: The same for a person's photographs, along axes of their own.
        noise: Variance of a person's photographs over that of the people, both over all axes.
        noise_spread: Photographs are not equally good: standard deviation of the logarithm of the
            factor by which one lies further off its person than another.
    """

    people_decay: float
    photograph_decay: float
    noise: float
    noise_spread: float


# Fitted to 128-dimensional embeddings by a published MobileFaceNet (99.2 % on LFW) of 988 CelebA
# people, 4 photographs each, aligned and one crop.
REAL = Law(people_decay=5.25, photograph_decay=1.67, noise=0.85, noise_spread=0.4)


class Faces:
    """Draws people and photographs of them.

    Args:
        width: Of an embedding.
        seed: Of all that is drawn.
        law: How embeddings lie. Spectra are stretched to the width, so that the share of its
            dimensions that is in use stays the same.
    """

    def __init__(self, width: int, seed: int, law: Law = REAL):
        self._rng = np.random.default_rng(seed)
        self._width, self._spread = width, law.noise_spread
        self._people = self._axes(law.people_decay)
        self._offsets = self._axes(law.photograph_decay) * np.float32(np.sqrt(law.noise))

    def _axes(self, decay: float) -> np.ndarray:
        variances = np.exp(-decay * np.arange(self._width) / self._width)
        rotation, _ = np.linalg.qr(self._rng.standard_normal((self._width, self._width)))
        return (np.sqrt(variances / variances.sum())[:, None] * rotation).astype("float32")

    def _normal(self, count: int, width: int) -> np.ndarray:
        return self._rng.standard_normal((count, width), dtype="float32")

    def people(self, count: int) -> np.ndarray:
        """Draw people, float32 (count, width): where their photographs lie around."""
        return self._normal(count, self._width) @ self._people

    def offsets(self, count: int) -> np.ndarray:
        """Draw by how much photographs of middling quality lie off, float32 (count, width)."""
        return self._normal(count, self._width) @ self._offsets

    def photographs(self, people: np.ndarray) -> np.ndarray:
        """Draw a photograph of each of these people: float32 (n, width), each of length 1."""
        quality = np.exp(self._spread * self._normal(len(people), 1) - self._spread**2)
        found = people + quality * self.offsets(len(people))
        return found / np.linalg.norm(found, axis=1, keepdims=True)


def draw(size: int, width: int, queries: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw a gallery and queries.

    Args:
        size: People in the gallery.
        width: Of an embedding.
        queries: An even number; the first half of them are second photographs of people in the
            gallery, that of row 0 first; the others show strangers.
        seed: Of all that is drawn.

    Returns:
        float32 (size, width) and (queries, width), each row of length 1.
    """
    faces = Faces(width, seed)
    known = faces.people(queries // 2)
    asked = np.concatenate([known, faces.people(queries // 2)])
    gallery = np.empty((size, width), "float32")
    gallery[: len(known)] = faces.photographs(known)
    for start in range(len(known), size, CHUNK):
        rows = gallery[start : start + CHUNK]
        rows[:] = faces.photographs(faces.people(len(rows)))
    return gallery, faces.photographs(asked)


def fit(embeddings: np.ndarray, labels: np.ndarray) -> Law:
    """Find the law of a model's embeddings, of at least two photographs of each person.

    Args:
        embeddings: Floats (n, width).
        labels: Integers (n,): whom each photograph shows.
    """
    embeddings = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    _, labels, counts = np.unique(labels, return_inverse=True, return_counts=True)
    means = np.zeros((len(counts), embeddings.shape[1]))
    np.add.at(means, labels, embeddings)
    means /= counts[:, None]
    within = embeddings - means[labels]
    within = within.T @ within / (len(labels) - len(counts))
    # The mean of n photographs still has an n-th of their variance.
    between = np.cov(means.T) - within * np.mean(1 / counts)
    decays = [_decay(between, len(counts)), _decay(within, len(labels) - len(counts))]

    # One draw of people and of two photographs each serves all laws that are tried.
    faces = Faces(embeddings.shape[1], 0, Law(*decays, 1, 0))
    people = faces.people(5000)
    offsets = [faces.offsets(5000), faces.offsets(5000)]
    grades = np.random.default_rng(0).standard_normal((2, 5000))
    levels = np.linspace(0.05, 0.95, 19)
    wanted = np.quantile(cosines(embeddings, labels)[0], levels)
    between = np.sum(people**2, axis=1)
    to_offset = [np.sum(people * offset, axis=1) for offset in offsets]
    lengths = [np.sum(offset**2, axis=1) for offset in offsets]
    of_offsets = np.sum(offsets[0] * offsets[1], axis=1)

    def misfit(law: tuple[float, float]) -> float:
        noise, spread = law
        a, b = np.sqrt(noise) * np.exp(spread * grades - spread**2)
        product = between + a * to_offset[0] + b * to_offset[1] + a * b * of_offsets
        first = between + 2 * a * to_offset[0] + a**2 * lengths[0]
        second = between + 2 * b * to_offset[1] + b**2 * lengths[1]
        found = product / np.sqrt(first * second)
        return float(np.abs(np.quantile(found, levels) - wanted).mean())

    tried = itertools.product(np.arange(0.05, 3, 0.05), np.arange(0, 1, 0.05))
    noise, spread = (round(float(number), 2) for number in min(tried, key=misfit))

    # What a search meets are the most similar strangers; people are no Gaussian cloud, so that a
    # spectrum that is somewhat steeper than theirs draws as many of them.
    tail = np.quantile(cosines(embeddings, labels)[1], 0.999)

    def misfit_of_tail(decay: float) -> float:
        faces = Faces(embeddings.shape[1], 0, Law(decay, decays[1], noise, spread))
        drawn = faces.photographs(faces.people(1500))
        return abs(float(np.quantile(cosines(drawn, np.arange(1500))[1], 0.999) - tail))

    decay = min(np.arange(0.25, 10, 0.25), key=misfit_of_tail)
    return Law(float(decay), round(decays[1], 2), noise, spread)


def _decay(covariance: np.ndarray, samples: int) -> float:
    """Return the decay of a spectrum from how many of its dimensions are in use.

    That is trace² / |covariance|², of which a sample sees too little; for variances that fall
    exponentially, it is 2 / decay · tanh(decay / 2) of the width.
    """
    trace, square = np.trace(covariance), np.sum(covariance**2)
    used = 1 / (square / trace**2 - 1 / samples) / len(covariance)
    decays = np.linspace(1e-3, 20, 20_000)
    return float(decays[np.argmin(np.abs(2 / decays * np.tanh(decays / 2) - used))])


def cosines(embeddings: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the cosines of all pairs of one person, and of all pairs of two."""
    first, second = np.triu_indices(len(labels), 1)
    same = labels[first] == labels[second]
    found = (embeddings @ embeddings.T)[first, second]
    return found[same], found[~same]


def recalls(found: np.ndarray, exact: np.ndarray) -> tuple[float, float]:
    """Return the shares of equal answers among the first half, the enrolled, and the second."""
    enrolled, strangers = np.split(found == exact, 2)
    return float(enrolled.mean()), float(strangers.mean())


def measure(
    nearest: Callable[[np.ndarray], np.ndarray], queries: np.ndarray, singles: int, clock: Callable
) -> tuple[np.ndarray, dict]:
    """Ask a search one by one, and in batches.

    Args:
        nearest: From (n, width) to the rows of the most similar, (n,).
        queries: float32 (n, width).
        singles: How many of them to ask one by one.
        clock: Seconds.

    Returns:
        The answers, (n,), and the columns on time.
    """
    times = []
    for row in np.linspace(0, len(queries) - 1, singles).astype(int):
        start = clock()
        nearest(queries[row : row + 1])
        times.append(1e3 * (clock() - start))
    start = clock()
    found = [nearest(queries[row : row + BATCH]) for row in range(0, len(queries), BATCH)]
    in_batch = 1e3 * (clock() - start) / len(queries)
    return np.concatenate(found), {
        "milliseconds": round(float(np.median(times)), 4),
        "milliseconds_p95": round(float(np.quantile(times, 0.95)), 4),
        "milliseconds_in_batch": round(in_batch, 4),
    }


def main() -> None:
    """Draw, build, search and add to the table; or fit."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--widths", type=int, nargs="+", default=[128, 256, 512])
    storages = ("f32", "f16", "bf16", "i8")
    parser.add_argument("--storages", nargs="*", choices=storages, default=["f32", "f16", "i8"])
    parser.add_argument("--connectivities", type=int, nargs="+", default=[16])
    parser.add_argument("--expansions-add", type=int, nargs="+", default=[128])
    parser.add_argument("--expansions", type=int, nargs="+", default=EXPANSIONS, help="of a search")
    parser.add_argument(
        "--candidates",
        type=int,
        default=1,
        help="how many the index gives, of which the best by float32 cosine is the answer",
    )
    parser.add_argument("--exact", action="store_true", help="time the exact searches, too")
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=1, help="0: all; OMP_NUM_THREADS, too")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--hardware", default=f"{os.cpu_count()} cores, {platform.machine()}")
    table = ROOT / "benchmarks/results/gallery.csv"
    parser.add_argument("--table", type=pathlib.Path, default=table)
    parser.add_argument("--fit", metavar="FILE", help="print the law of real embeddings and stop")
    given = parser.parse_args()
    if given.fit:
        return print_fit(np.load(given.fit))
    if given.threads and os.environ.get("OMP_NUM_THREADS") != str(given.threads):
        parser.error(f"--threads {given.threads} needs OMP_NUM_THREADS={given.threads}, for NumPy.")
    if given.queries % (2 * BATCH) or given.queries // 2 > min(given.sizes):
        parser.error(f"--queries: a multiple of {2 * BATCH}, at most twice the smallest gallery.")
    for size in given.sizes:
        for width in given.widths:
            run(given, size, width)


def print_fit(file: np.lib.npyio.NpzFile) -> None:
    """Print the law of real embeddings, and their cosines beside those that it draws."""
    embeddings, labels = file["embeddings"], file["labels"]
    law = fit(embeddings, labels)
    print(law)
    embeddings = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    faces = Faces(embeddings.shape[1], 1, law)
    _, labels = np.unique(labels, return_inverse=True)
    drawn = faces.photographs(faces.people(labels.max() + 1)[labels])
    levels = {"one person": (0.05, 0.25, 0.5, 0.75, 0.95), "two": (0.01, 0.5, 0.99, 0.999, 0.9999)}
    for source, vectors in (("real", embeddings), ("drawn", drawn)):
        for (pairs, quantiles), found in zip(levels.items(), cosines(vectors, labels), strict=True):
            values = np.quantile(found, quantiles).round(3).tolist()
            print(f"{source}, pairs of {pairs}: {dict(zip(quantiles, values, strict=True))}")


def run(given: argparse.Namespace, size: int, width: int) -> None:
    """Measure all searches of one gallery."""
    from usearch.index import Index, MetricKind, search

    from benchmarks.table import append_row
    from training.report import command, commit

    # Processor time, since other work on the machine must not count; of all threads it is the sum.
    clock = time.process_time if given.threads == 1 else time.perf_counter
    gallery, queries = draw(size, width, given.queries, given.seed)
    asked = {"people": size, "width": width, "batch_size": BATCH, "threads": given.threads or "all"}
    asked |= {"clock": clock.__name__, "seed": given.seed, "hardware": given.hardware}
    asked |= {"queries": given.queries, "commit": commit(), "command": command()}

    def write(found: np.ndarray, **columns) -> tuple[float, float]:
        enrolled, strangers = recalls(found, exact)
        named = np.mean(found[: len(found) // 2] == np.arange(len(found) // 2))
        row = {"recall_enrolled": enrolled, "recall_strangers": strangers, "named": named}
        row = asked | row | columns
        append_row(given.table, COLUMNS, row)
        print(*(f"{name} {row[name]}" for name in COLUMNS[:17] if name in row), flush=True)
        return enrolled, strangers

    def by_product(asked: np.ndarray) -> np.ndarray:
        return np.argmax(asked @ gallery.T, axis=1)

    def by_scan(asked: np.ndarray) -> np.ndarray:
        found = search(gallery, asked, 1, MetricKind.IP, exact=True, threads=given.threads)
        return np.ravel(found.keys).astype(int)

    exact, times = measure(by_product, queries, 20, clock)
    if given.exact:
        memory = {"storage": "f32", "memory_megabytes": round(gallery.nbytes / 1e6, 1)}
        write(exact, search="NumPy product", **memory, **times)
        found, times = measure(by_scan, queries, 20, clock)
        write(found, search="usearch exact", **memory, **times)

    for storage in given.storages:
        for connectivity in given.connectivities:
            for expansion_add in given.expansions_add:
                index = Index(
                    ndim=width,
                    metric=MetricKind.IP,
                    dtype=storage,
                    connectivity=connectivity,
                    expansion_add=expansion_add,
                )
                start = clock()
                index.add(np.arange(size), gallery, threads=given.threads)
                built = clock() - start
                with tempfile.TemporaryDirectory() as folder:
                    path = pathlib.Path(folder) / "gallery.usearch"
                    index.save(path)
                    bytes_on_disk = path.stat().st_size
                columns = {
                    "search": "usearch HNSW",
                    "storage": storage,
                    "connectivity": connectivity,
                    "expansion_add": expansion_add,
                    "candidates": given.candidates,
                    "build_seconds": round(built, 1),
                    "memory_megabytes": round(index.memory_usage / 1e6, 1),
                    "file_megabytes": round(bytes_on_disk / 1e6, 1),
                }

                def by_index(asked: np.ndarray, index: Index = index) -> np.ndarray:
                    found = index.search(asked, given.candidates, threads=given.threads)
                    rows = np.reshape(found.keys, (len(asked), -1)).astype(int)
                    if given.candidates == 1:
                        return rows[:, 0]
                    best = np.einsum("qd,qcd->qc", asked, gallery[rows]).argmax(axis=1)
                    return rows[np.arange(len(rows)), best]

                for index.expansion_search in given.expansions:
                    found, times = measure(by_index, queries, len(queries), clock)
                    width_of_search = {"expansion_search": index.expansion_search}
                    if min(write(found, **columns, **width_of_search, **times)) >= TARGET:
                        break


if __name__ == "__main__":
    main()
