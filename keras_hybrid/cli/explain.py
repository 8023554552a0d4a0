"""``keras-hybrid explain``: what in a photograph a model looked at."""

import argparse
import difflib
import sys

from keras_hybrid.cli.printing import print_facts
from keras_hybrid.cli.reading import check_file, class_names, image_size, load_model, note_resizing
from keras_hybrid.data.files import to_range


def run_explain(given: argparse.Namespace) -> None:
    """Draw what in a photograph decided."""
    from keras_hybrid.applications.registry import list_models

    if str(given.model) in list_models():
        raise ValueError(
            f"{given.model} is a model without trained weights, which have nothing to explain; "
            "--model takes the .keras file of a trained one."
        )
    for path in (given.image, given.model):
        check_file(path)
    from keras_hybrid.data.files import decode_image, resize_image

    photograph = decode_image(given.image.read_bytes(), str(given.image))
    model = load_model(given.model)
    size = image_size(model, given.model)
    note_resizing(given.image, photograph, size)
    names = class_names(given.names, model, given.model)
    from keras_hybrid.explain import explain_image

    image = to_range(resize_image(photograph, size), given.input_range)
    result = explain_image(
        model,
        image,
        given.out,
        method=given.method,
        layer=given.layer,
        class_index=_class_number(given.class_, names),
        class_names=names,
        input_range=tuple(given.input_range or (0, 255)),
    )

    def named(number: int) -> str:
        only = "the only output" if model.outputs[0].shape[-1] == 1 else f"class {number}"
        return only + (f" ({names[number]})" if names else "")

    facts: dict[str, object] = {}
    if result.predicted is not None:
        facts["predicted"] = f"{named(result.predicted)}, {result.score_kind} {result.score:.4f}"
    if result.explained is not None:
        facts["explained"] = named(result.explained)
    for method, layers in result.layers.items():
        facts[method] = f"layer {', '.join(layers)}" if layers else "drawn"
    print_facts({**facts, "written": result.path})
    for note in result.notes:
        print(f"note: no {note}", file=sys.stderr)


def _class_number(wanted: str | None, names: list[str] | None) -> int | None:
    if wanted is None:
        return None
    if names and wanted in names:
        return names.index(wanted)
    if wanted.isdecimal():
        return int(wanted)
    close = difflib.get_close_matches(wanted, names or [], n=3)
    hint = f" Did you mean {', '.join(close)}?" if close else ""
    raise ValueError(f"No class is named {wanted!r}.{hint}")
