"""Writes the tables of ``README.md`` and of pages under ``docs`` that show results.

``python docs/generate_tables.py`` puts each table, made of the files in ``benchmarks/results``,
between the comments ``<!-- table: NAME -->`` and ``<!-- end of table -->`` of its page.
"""

import csv
import pathlib
import re
import statistics
from collections.abc import Callable, Sequence

ROOT = pathlib.Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGES = tuple(ROOT / page for page in ("README.md", "docs/data.md", "docs/training.md"))
BLOCK = re.compile(
    r"(?P<begin>^<!-- table: (?P<name>\w+) -->\n\n).*?(?P<end>\n<!-- end of table -->)", re.M | re.S
)

LOSSES = {
    "CosFace m 0.35 s 30": "CosFace m 0.35, s 30 (default)",
    "ArcFace m 0.5 s 30": "ArcFace m 0.5, s 30",
    "CosFace m 0.35 s 64": "CosFace m 0.35, s 64",
    "ArcFace m 0.5 s 64": "ArcFace m 0.5, s 64",
    "no margin s 30": "no margin, s 30",
}
FACE_MODELS = {
    "facerec_small": "FaceRec-small",
    "facerec_small_without_convolutional_attention": "the same without convolutional attention",
    "cct": "CCT",
    "kprpe": "KP-RPE (patches, learnt landmarks, all tokens joined in the embedding)",
    "kprpe_given_landmarks": "the same with the landmarks of the data",
    "facerec": "FaceRec (patches, convolutional attention, sequence pooling)",
    "vit": "ViT (patches, class token)",
}


def rows_of(name: str) -> list[dict[str, str]]:
    """Return the rows of a file of results."""
    with (RESULTS / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a table in Markdown."""
    first, *others = (f"| {' | '.join(str(cell) for cell in line)} |\n" for line in (head, *rows))
    return "".join([first, "|---" * len(head) + "|\n", *others])


def percent(values: Sequence[str], decimals: int = 1) -> str:
    """Return the mean in percent, of several with the standard deviation."""
    numbers = [100 * float(value) for value in values]
    spread = f" ± {statistics.stdev(numbers):.{decimals}f}" if len(numbers) > 1 else ""
    return f"{statistics.mean(numbers):.{decimals}f}{spread} %"


def margins() -> str:
    """Losses with a margin under the quickstart's recipe."""
    rows = rows_of("margins")
    found = {(row["loss_function"], row["epoch"]): row for row in rows}
    if len(found) < len(rows):
        raise ValueError("margins.csv has several runs of a loss, which the table cannot show.")
    body = []
    for loss, label in LOSSES.items():
        last = found[loss, "20"]
        cells = [percent([found[loss, epoch]["val_accuracy"]]) for epoch in ("10", "20")]
        body.append([label, *cells, last["seed"], f"{last['hardware']}; {last['backend']}"])
    return table(["loss", "validation accuracy, epoch 10", "epoch 20", "seed", "on"], body)


def facerec_306() -> str:
    """The encoders on 306 identities."""
    rows = rows_of("facerec_306")
    body = []
    for model, label in FACE_MODELS.items():
        runs = sorted((row for row in rows if row["model"] == model), key=lambda row: row["seed"])
        if len({(run["epochs"], run["image_size"], run["precision"]) for run in runs}) > 1:
            raise ValueError(f"facerec_306.csv has runs of {model} that are not one line.")
        hardware = " and ".join(dict.fromkeys(run["hardware"] for run in runs))
        cells = [percent([run[figure] for run in runs]) for figure in ("top1", "top1_flip")]
        seeds = ", ".join(run["seed"] for run in runs)
        parameters = f"{int(runs[0]['parameters']) / 1e6:.2f} M"
        body.append([label, *cells, runs[0]["epochs"], seeds, parameters, hardware])
    head = ["model", "top-1", "with the mirror image averaged", "epochs", "seeds", "parameters"]
    return table([*head, "on"], body)


def quantization() -> str:
    """LFW after quantization, of the models trained from scratch and of the published one."""
    models = {
        "facerec_small 64x64, 988 identities, 32 epochs": "FaceRec-small, 64×64, 32 epochs",
        "facerec_small 64x64, 988 identities, 16 epochs": "FaceRec-small, 64×64, 16 epochs",
        "facerec_mobile 64x64, 988 identities, 16 epochs": "facerec_mobile, 64×64, 16 epochs",
        "mobilefacenet 64x64, 988 identities, 16 epochs": "MobileFaceNet, 64×64, 16 epochs",
        "efficientvit_face_small 64x64, 988 identities, 16 epochs": (
            "EfficientNet + ViT small, 64×64, 16 epochs"
        ),
        "mobilefacenet_relu6, published": "MobileFaceNet, published, 112×112",
    }
    rows = {(row["model"], row["kind"]): row for row in rows_of("quantized_lfw")}
    body = []
    for model, label in models.items():
        for kind in ("float32", "float16", "dynamic", "int8", "int8_cpu"):
            if (model, kind) not in rows:
                continue
            row = rows[model, kind]
            accuracy = f"{100 * float(row['accuracy']):.2f}"
            spread = f"{100 * float(row['accuracy_std']):.2f}"
            size = f"{int(row['size_bytes']) / 1e6:.2f} MB"
            body.append([label, kind, f"{accuracy} ± {spread} %", size, row["smallest_cosine"]])
    return table(["model", "LiteRT file", "LFW View 2", "size", "smallest cosine"], body)


def imprinting() -> str:
    """Identities told apart by the mean embeddings of a few photographs."""
    rows = rows_of("imprinting")
    figures = [
        f"{100 * float(row['top1']):.2f} ± {100 * float(row['top1_std']):.2f}" for row in rows
    ]
    head = ["photographs of each person", *(row["photographs"] for row in rows)]
    return table(head, [["top-1, %", *figures]])


def reading() -> str:
    """Ways to keep images, read by two threads."""
    labels = {
        "files": "files",
        "zip": ".zip",
        "recordio": "RecordIO",
        "shards": "shards",
        "shards, one by one": "shards, record by record",
    }
    rows = {(row["layout"], row["pages"], row["workers"]): row for row in rows_of("input")}
    body = []
    for layout, label in labels.items():
        disk, memory = (rows[layout, pages, "2"] for pages in ("disk", "memory"))
        figures = [
            run[figure]
            for figure in ("cpu_milliseconds", "images_per_second")
            for run in (disk, memory)
        ]
        body.append([label, f"{int(disk['files']):,}", disk["megabytes"], *figures])
        body[-1].append(disk["more_megabytes"])
    head = ["layout", "files", "MB", "processor ms an image, from disk", "from the page cache"]
    head += ["images a second, from disk", "from the page cache", "MB of memory"]
    return table(head, body)


MAKERS: dict[str, Callable[[], str]] = {
    maker.__name__: maker for maker in (margins, facerec_306, quantization, imprinting, reading)
}


def page(path: pathlib.Path) -> str:
    """Return a page's text with its tables as the results have them.

    Raises:
        KeyError: If the page asks for a table that there is not.
    """
    return BLOCK.sub(
        lambda block: f"{block['begin']}{MAKERS[block['name']]()}{block['end']}", path.read_text()
    )


if __name__ == "__main__":
    for path in PAGES:
        path.write_text(page(path))
        print(path)
