"""The end of a run: test, verify, export, and the report that shows it."""

import importlib.util
import json
import os
import pathlib
import shlex
import subprocess
import sys

import numpy as np

from training.recipe import EXPORTS, Recipe

__all__ = ["check_export", "failed_exports", "finish", "raise_failed_exports"]

MAX_CLASS_NAMES = 10_000  # of more classes ``results.json`` has no names


def check_export(recipe: Recipe) -> None:
    """Say before training what would be missing after it.

    Raises:
        ImportError: If a format of ``recipe.export`` needs what is not installed.
    """
    if recipe.export == "none":
        return
    from keras_hybrid.export.process import require

    for kind in recipe.export.split("+"):
        require(*EXPORTS[kind], purpose=f"export={kind!r}")


def failed_exports(results: dict) -> list[str]:
    """Return format and reason of each export that failed."""
    rows = results.get("export", ())
    return [f"{row['format']}: {row['error']}" for row in rows if "error" in row]


def raise_failed_exports(results: dict, out: pathlib.Path) -> None:
    """Raise ``keras_hybrid.export.ExportError`` if a row of the results says that one failed."""
    failed = failed_exports(results)
    if not failed:
        return
    from keras_hybrid.export import ExportError

    reasons = "\n".join(failed)
    raise ExportError(
        f"The run is done, with its results in {out / 'results.json'}, but not its export: give "
        f"the same command to try again, or with another --export.\n{reasons}"
    )


def finish(
    recipe: Recipe,
    model,
    train,
    test,
    pairs,
    verification_sets: dict,
    history: list[dict],
    seconds: float,
    settings: dict,
    out: pathlib.Path,
) -> dict:
    """Test and verify the trained model, export it, and write ``results.json`` and a report.

    Args:
        recipe: What was run.
        model: The trained model.
        train: Training images or their source, for calibration.
        test: Test images of the same identities.
        pairs: ``PairList`` of people it was not trained on, or ``None``.
        verification_sets: Further ones, by the name of their set.
        history: Logs of each epoch.
        seconds: Training time, validation included.
        settings: The recipe's values and the backend.
        out: Folder to write to.

    Returns:
        The results.
    """
    from keras_hybrid import evaluation

    tables = {}
    verified = None
    kind = "Classes" if recipe.loss == "cross_entropy" else "Identities"
    given = {
        "class_names": test.class_names,
        "landmarks": test.landmarks if recipe.takes_landmarks else None,
    }
    plain = evaluation.evaluate_classifier(model, test.images, test.labels, **given)
    flipped = evaluation.evaluate_classifier(model, test.images, test.labels, flip=True, **given)
    last = history[-1] if history else {}
    results = {
        "model": recipe.model,
        "parameters": model.count_params(),
        "classes": len(test.class_names),
        "images": len(train.labels),
        "test_images": len(test.labels),
        "test_fraction": None if recipe.test_split else recipe.test_fraction,
        "test_images_per_class": recipe.test_images_per_class,
        "data_options": recipe.data_options,
        "top1": plain.top1,
        "top5": plain.top_k.get(5),
        "top1_flip": flipped.top1,
        "top5_flip": flipped.top_k.get(5),
        "precision_macro": plain.precision_macro,
        "recall_macro": plain.recall_macro,
        "f1_macro": plain.f1_macro,
        "epochs": len(history),
        "seconds": seconds,
        "images_per_second": last.get("images_per_second"),
        "loss": last.get("loss"),
        "seed": recipe.seed,
        "commit": commit(),
        "command": command(),
    }
    if len(test.class_names) <= MAX_CLASS_NAMES:
        results["class_names"] = [str(name) for name in test.class_names]
    summary = {
        "Top-1": f"{plain.top1:.1%}",
        "Top-1, flip averaged": f"{flipped.top1:.1%}",
        kind: len(test.class_names),
        "Parameters": model.count_params(),
        "Training time": f"{seconds / 60:.1f} min",
    }
    tables["Classification of the test images"] = {
        name: {
            "top-1": f"{r.top1:.2%}",
            "top-5": f"{r.top_k[5]:.2%}" if 5 in r.top_k else "–",
            "precision": f"{r.precision_macro:.2%}",
            "recall": f"{r.recall_macro:.2%}",
            "F1": f"{r.f1_macro:.2%}",
        }
        for name, r in (("single crop", plain), ("crop and mirror image", flipped))
    }
    tables["Most confused"] = [
        {"is": c.true, "taken for": c.predicted, "times": c.count} for c in plain.most_confused(8)
    ]
    _write_results(results, out)  # before what may fail in any way, as figures and exports below
    if pairs is not None:
        verified, verified_flip = (
            evaluation.evaluate_pairs(model, pairs, flip=flip) for flip in (False, True)
        )
        # The single crop's threshold is the one that ``keras-hybrid verify`` reads.
        results["verification"] = {**verified.to_dict(), "flip": False}
        results["verification_flip"] = {**verified_flip.to_dict(), "flip": True}
        summary["Verification"] = f"{verified.accuracy:.1%} ± {verified.accuracy_std:.1%}"
        tables[f"Verification, {len(pairs):,} pairs"] = {
            name: {
                "accuracy": _accuracy(r),
                "threshold (cosine)": f"{r.threshold:.3f}",
                "area under ROC": f"{r.auc:.4f}",
                "equal error rate": f"{r.eer:.2%}",
            }
            for name, r in (("single crop", verified), ("crop and mirror image", verified_flip))
        }
    if verification_sets:
        results["verification_sets"], tables["Verification sets"] = {}, {}
        for name, set_pairs in verification_sets.items():
            found = {
                "single crop": evaluation.evaluate_pairs(model, set_pairs),
                "crop and mirror image": evaluation.evaluate_pairs(model, set_pairs, flip=True),
            }
            results["verification_sets"][name] = {k: r.to_dict() for k, r in found.items()}
            tables["Verification sets"][name] = {k: _accuracy(r) for k, r in found.items()}
    _write_results(results, out)
    figures = {}
    if importlib.util.find_spec("matplotlib") is None:
        print("No figures: matplotlib is not installed.", flush=True)
    else:
        if len(test.class_names) <= 20:
            figures["Confusion of the test images"] = evaluation.plot_confusion(
                plain, out / "confusion.png"
            )
        if verified is not None:
            figures |= _draw_verification(verified, verified_flip, out)
    if recipe.export != "none":
        results["export"] = _export(recipe, model, train, out)
        tables["Exported files"] = [_exported_row(row) for row in results["export"]]
        _write_results(results, out)
    report = evaluation.write_report(
        out / "report.html",
        title=f"{recipe.model} on {recipe.data}",
        summary=summary,
        history=out / "history.csv" if history else None,
        tables=tables,
        figures=figures,
        configuration=settings,
        environment={**evaluation.environment(), "command": command()},
    )
    _print_table(tables, report)
    return results


def _draw_verification(verified, verified_flip, out: pathlib.Path) -> dict[str, pathlib.Path]:
    """Draw what a verification found, and return each figure's file by its caption."""
    from keras_hybrid import evaluation
    from training.checkpoint import verified_stages

    figures = {
        "ROC of the verification": evaluation.plot_roc(
            {"single crop": verified, "crop and mirror image": verified_flip}, out / "roc.png"
        )
    }
    stages = verified_stages(out)
    if stages:
        figures["ROC over training, single crop"] = evaluation.plot_roc_over_training(
            stages, out / "roc_over_training.png"
        )
    figures["Scores of the pairs"] = evaluation.plot_scores(verified, out / "scores.png")
    return figures


def _accuracy(result) -> str:
    return f"{result.accuracy:.2%} ± {result.accuracy_std:.2%}"


def _write_results(results: dict, out: pathlib.Path) -> None:
    # In one step: a disk that an export has filled leaves the file that is there.
    temporary = out / ".results.json.partial"
    temporary.write_text(json.dumps(results, indent=1, default=str))
    os.replace(temporary, out / "results.json")


def _export(recipe: Recipe, model, train, out: pathlib.Path) -> list[dict]:
    """Write every format; the row of one that fails has its name and the reason."""
    from keras_hybrid.export import ExportError

    rows = []
    for kind in recipe.export.split("+"):
        print(f"Exporting {kind} …", flush=True)
        try:
            rows.append(_export_one(kind, recipe, model, train, out).to_dict())
        except (ExportError, ImportError, OSError, ValueError) as error:
            rows.append({"format": kind, "error": str(error)})
    return rows


def _export_one(kind: str, recipe: Recipe, model, train, out: pathlib.Path):
    """Write one format; returns its ``ExportReport``."""
    from keras_hybrid import export

    output = "predictions" if recipe.loss == "cross_entropy" else "embedding"
    if kind == "saved_model":
        return export.to_saved_model(model, out / "saved_model", output=output)
    if kind == "onnx":
        return export.to_onnx(model, out / "model.onnx", output=output)
    return export.to_litert(
        model,
        out / ("model.tflite" if kind == "litert" else f"model_{kind}.tflite"),
        output=output,
        quantization=None if kind == "litert" else kind,
        representative_data=_some_images(recipe, train, 128).astype("float32"),
    )


def _exported_row(row: dict) -> dict:
    """Return what the report shows of an export."""
    if "error" in row:
        return {"file": f"{row['format']}: failed", "reason": row["error"]}
    return {
        "file": row["path"],
        "kB": round(row["size_bytes"] / 1024),
        "largest difference": f"{row['max_abs_difference']:.2g}",
    }


def _some_images(recipe: Recipe, train, count: int):
    """Return ``count`` training images, or all, evenly spread over the classes' order."""
    from keras_hybrid import data

    images = len(train.labels)
    rows = np.linspace(0, images - 1, min(images, count)).round().astype(int)
    if recipe.reading == "memory":
        return train.images[rows]
    read = train.read_many(rows)  # a broken file, which training has reported, is left out
    images = [image for image in read if not isinstance(image, data.UnreadableImageError)]
    size = (recipe.image_size, recipe.image_size)
    return np.stack([data.files.resize_image(image, size) for image in images])


def _print_table(tables: dict, report: pathlib.Path) -> None:
    for caption, table in tables.items():
        if caption == "Most confused":
            continue
        print(f"\n{caption}")
        rows = table if isinstance(table, list) else [table]
        if isinstance(table, dict) and all(isinstance(v, dict) for v in table.values()):
            rows = [{"": name, **row} for name, row in table.items()]
        for row in rows:
            print("  " + "   ".join(f"{key} {value}".strip() for key, value in row.items()))
    print(f"\nReport: {report.resolve()}", flush=True)


def command() -> str:
    """Return the command line that this process was started with."""
    return shlex.join(["python", *sys.argv])


def commit() -> str | None:
    """Return what git calls the state of this checkout, or None outside one or without git."""
    try:
        answer = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=pathlib.Path(__file__).parent,
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:
        return None
    return answer.stdout.strip() or None
