"""``keras-hybrid list``, ``info`` and ``convert``: models by their names."""

import argparse
import dataclasses

from keras_hybrid.cli.errors import UsageError
from keras_hybrid.cli.printing import format_macs, format_size, print_facts, print_table


def run_list(given: argparse.Namespace) -> None:
    """List the models that match a pattern."""
    from keras_hybrid.applications.registry import list_models, model_info

    infos = [model_info(name) for name in list_models(given.pattern)]
    if not infos:
        raise ValueError(f"No model matches {given.pattern!r}.")
    rows = [
        [
            info.name,
            info.family,
            format_size(info.input_shape),
            f"{info.parameters:,}",
            format_macs(info.macs),
            info.paper,
        ]
        for info in infos
    ]
    print_table(["name", "family", "input", "parameters", "MACs", "paper"], rows, right={3, 4})


def run_info(given: argparse.Namespace) -> None:
    """Say what is known of a model."""
    from keras_hybrid.applications.registry import create_model, model_info

    info = model_info(given.name)
    facts = {field.name: getattr(info, field.name) for field in dataclasses.fields(info)}
    facts["input_shape"] = format_size(info.input_shape)
    facts["macs"] = f"{info.macs:,} ({format_macs(info.macs)})"
    facts["limitations"] = "; ".join(f"{k}: {v}" for k, v in info.limitations.items()) or "none"
    print_facts(facts)
    if given.layers:
        print()
        create_model(given.name).summary()


def run_convert(given: argparse.Namespace) -> None:
    """Write a model with the weights of a PyTorch checkpoint."""
    from keras_hybrid.applications.registry import create_model, model_info
    from keras_hybrid.convert import load_torch_weights, read_torch_weights

    if given.out.suffix != ".keras":
        raise UsageError(f"OUT must end in .keras, got {given.out}.")
    info = model_info(given.model)
    weights = read_torch_weights(given.checkpoint)
    top = {"include_top": False, "pooling": "native"} if given.without_top else {}
    model = create_model(given.model, classes=given.classes or info.classes, **top)
    load_torch_weights(model, weights, family=info.family)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    model.save(given.out)
    print_facts({"written": given.out, "parameters": f"{model.count_params():,}"})
