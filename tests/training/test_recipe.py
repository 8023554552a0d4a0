import argparse
import contextlib
import csv
import dataclasses
import re
import statistics

import pytest

from training.recipe import (
    Recipe,
    add_overrides,
    check_use,
    load_recipe,
    recipe_names,
    with_overrides,
)
from training.run_table import RESULTS
from training.tables import TABLES

pytestmark = pytest.mark.any_backend

GIVEN = ("--model-arguments", "landmarks=given")


def override(*arguments):
    parser = argparse.ArgumentParser()
    add_overrides(parser)
    base = Recipe(model="facerec_small", data="faces/", model_arguments={"dim": 96})
    return with_overrides(base, parser.parse_args(arguments))


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_loads_and_says_how_to_run_it(name):
    assert isinstance(load_recipe(name), Recipe)
    module = __import__(f"training.recipes.{name}", fromlist=["recipe"])
    assert f"training/train.py {name}" in module.__doc__
    parts = ["Command", "Hardware", "Time", "Expected", "Measured"]
    assert re.findall(rf"^({'|'.join(parts)}): ", module.__doc__, re.MULTILINE) == parts


# Recipes of ours name what another one reaches on the same images.
COMPARED = {
    "modern_atc": "atc_cifar100",
    "modern_facerec": "facerec_small",
    "modern_resnet_fct": "resnet_fct_cifar10",
    "modern_san": "san_cifar10",
}


def committed_figures(recipes: set[str | None]) -> set[str]:
    """Each accuracy of recipes' rows, of one run and over the seeds of a row, as in a text."""
    figures = set()
    for name, table in TABLES.items():
        with (RESULTS / f"{name}.csv").open(newline="") as file:
            rows = [
                row
                for row in csv.DictReader(file)
                if row["model"] in table.rows and table.rows[row["model"]].recipe in recipes
            ]
        groups = {}
        for row in rows:
            groups.setdefault((row["model"], row["epochs"]), []).append(row)
        for column in ("top1", "top1_flip", "top5", "lfw", "lfw_flip"):
            for group in [*([row] for row in rows), *groups.values()]:
                values = [100 * float(row[column]) for row in group if row[column]]
                if not values:
                    continue
                spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
                mean = statistics.mean(values)
                figures |= {f"{mean:.1f}{spread} %", f"{mean:.2f}{spread} %"}
    return figures


@pytest.mark.parametrize("name", sorted({*recipe_names()} - {"quickstart"}))
def test_what_a_recipe_says_that_was_measured_is_in_the_results(name):
    module = __import__(f"training.recipes.{name}", fromlist=["recipe"])
    measured = re.search(r"^Measured: (.*?)(?:\n\n|\Z)", module.__doc__, re.S | re.M)[1]
    said = re.findall(r"\d+\.\d+(?: ± \d+\.\d+)? %", " ".join(measured.split()))
    assert said and set(said) <= committed_figures({name, COMPARED.get(name)})


def test_the_papers_hyperparameters_are_those_of_its_figure_3():
    first, second = load_recipe("facerec_attempt1"), load_recipe("facerec_attempt2")
    assert (first.epochs, second.epochs) == (12, 15)
    assert (first.restart_steps, second.restart_steps) == (1000, 500)
    assert (first.margin, second.margin) == (0.5, 0.35)
    assert (first.weight_decay, second.weight_decay) == (0.0, 0.1)
    for recipe in (first, second):
        assert (recipe.batch_size, recipe.learning_rate, recipe.scale) == (128, 1e-3, 64.0)
        assert (recipe.image_size, recipe.loss, recipe.restart_factor) == (256, "arcface", 1.0)


# What the papers, or their authors' code, say of a run.
PAPERS = {
    "cct_7_3x1_cifar10": {
        "optimizer": "adamw",
        "learning_rate": 5.5e-4,
        "weight_decay": 6e-2,
        "batch_size": 128,
        "epochs": 300,
        "warmup_epochs": 10.0,
        "schedule": "cosine",
        "label_smoothing": 0.1,
        "augmentation": {
            "resized_crop": 0.8,
            "rand_augment": 9.0,
            "mixup": 0.8,
            "cutmix": 1.0,
            "mixing_epochs": 175,
        },
    },
    "resnet_fct_cifar10": {
        "optimizer": "adam",
        "learning_rate": 1e-2,
        "schedule": "one_cycle",
        "weight_decay": 1e-4,
        "clip_norm": 1.0,
        "batch_size": 128,
        "epochs": 200,
        "augmentation": {"crop_padding": 4, "flip_vertical": True},
    },
    "san_cifar10": {
        "optimizer": "sgd",
        "learning_rate": 0.03,
        "momentum": 0.9,
        "schedule": "constant",
        "batch_size": 512,
        "epochs": 250,
        "weight_decay": 1e-3,
    },
    "face_transformer": {
        "optimizer": "adamw",
        "learning_rate": 3e-4,
        "weight_decay": 0.05,
        "loss": "cosface",
        "margin": 0.35,
        "scale": 64.0,
        "batch_size": 480,
    },
    "efficientvit_face": {
        "optimizer": "adamw",
        "learning_rate": 3e-5,
        "schedule": "constant",
        "weight_decay": 0.05,
        "loss": "cosface",
        "batch_size": 256,
        "epochs": 16,
    },
}


@pytest.mark.parametrize("name", PAPERS)
def test_the_other_papers_hyperparameters_are_theirs(name):
    recipe = load_recipe(name)
    assert {field: getattr(recipe, field) for field in PAPERS[name]} == PAPERS[name]


def test_values_are_converted_to_the_type_of_their_field():
    recipe = override("--epochs", "3", "--learning-rate", "2e-4", "--augment", "none")
    assert (recipe.epochs, recipe.learning_rate, recipe.augment) == (3, 2e-4, "none")
    assert override("--margin", "none").margin is None
    assert override("--clip-norm", "none").clip_norm is None
    assert (override("--margin", "0").margin, override("--workers", "0").workers) == (0, 0)
    assert override("--ema-momentum", "0.99").ema_momentum == 0.99
    assert override("--patience", "3").patience == 3
    assert override("--remat", "true").remat is True and override("--remat", "False").remat is False


def test_verification_sets_may_be_written_as_in_papers():
    sets = override("--verification-sets", "CFP-FP=a.bin", "lfw=b.txt,c.zip").verification_sets
    assert sets == {"CFP-FP": "a.bin", "lfw": "b.txt,c.zip"}


def test_keywords_are_added_key_by_key():
    recipe = override("--model-arguments", "depth=2", "stem_channels=(16,32)", "pooling=avg")
    assert recipe.model_arguments == {
        "dim": 96,
        "depth": 2,
        "stem_channels": (16, 32),
        "pooling": "avg",
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--epochs", "three"), "--epochs must be int"),
        (("--epochs", "0"), "epochs must be a positive integer"),
        (("--augment", "maybe"), "augment must be one of faces, images, none"),
        (("--ema-momentum", "1"), "ema_momentum must be in"),
        (("--pairs-every", "1"), "pairs_every must be 0"),
        (("--mesh", "model=2"), "mesh must be like 'data=4,model=2'"),
        (("--mesh", "data=3", "--batch-size", "16"), "batch_size must be a multiple"),
        (("--sampling-rate", "0"), r"sampling_rate must be in \(0, 1\]; got 0"),
        (("--sampling-rate", "0.5", "--loss", "cross_entropy"), "needs a loss on cosines"),
        (("--patience", "0"), "patience must be positive"),
        (("--remat", "yes"), "--remat must be true or false; got 'yes'"),
        (("--gradient-accumulation-steps", "0"), "gradient_accumulation_steps must be a positive"),
        (("--images-per-class", "0"), "images_per_class must be positive or none; got 0"),
        (("--label-smoothing", "0.1"), "need loss='cross_entropy'"),
        (("--augment", "images", "--augmentation", "mixup=0.2"), "need loss='cross_entropy'"),
        (("--loss", "triplet"), "loss must be one of arcface"),
        (("--model-arguments", "depth"), "KEY=VALUE"),
        (("--train-split", "train"), "train_split and test_split belong together"),
        (("--pairs", "pairs.txt"), "pairs_images"),
        (("--pairs", "lfw.bin", "--pairs-images", "lfw.zip"), "pairs_images"),
        (("--pairs-images", "lfw.zip", "--pairs", "synthetic:4x4"), "pairs_images"),
        (("--export", "coreml"), "export must be of"),
        ((*GIVEN, "--augment", "images"), "augment must be 'faces' or 'none'"),
        ((*GIVEN, "--export", "litert"), "export must be 'none'"),
        ((*GIVEN, "--pairs", "lfw.bin"), "pairs need pairs_landmarks"),
        (("--pairs", "lfw.bin", "--pairs-landmarks", "lfw.csv"), "pairs_landmarks belongs to"),
        (("--learning-rate", "-1"), r"learning_rate must be in \(0, inf\); got -1"),
        (("--scale", "inf"), r"scale must be in \(0, inf\); got inf"),
        (("--warmup-epochs", "-1"), r"warmup_epochs must be in \[0, inf\); got -1"),
        (("--warmup-epochs", "nan"), r"warmup_epochs must be in \[0, inf\); got nan"),
        (("--restart-factor", "0"), r"restart_factor must be in \[1, inf\); got 0"),
        (("--weight-decay", "-1"), r"weight_decay must be in \[0, inf\); got -1"),
        (("--matrix-weight-decay", "nan"), r"matrix_weight_decay must be in \[0, inf\)"),
        (("--beta-2", "2"), r"beta_2 must be in \[0, 1\); got 2"),
        (("--momentum", "-3"), r"momentum must be in \[0, 1\); got -3"),
        (("--clip-norm", "0"), r"clip_norm must be in \(0, inf\) or none; got 0"),
        (("--clip-norm", "-1"), r"clip_norm must be in \(0, inf\) or none; got -1"),
        (("--test-fraction", "1"), r"test_fraction must be in \(0, 1\); got 1"),
        (("--seed", "-1"), r"seed must be in \[0, 4294967295\]; got -1"),
        (("--workers", "-1"), r"workers must be in \[0, inf\); got -1"),
        (("--margin", "-0.1"), r"margin must be in \[0, inf\) or none for loss='cosface'; got -0"),
        (("--margin", "4", "--loss", "arcface"), "or none for loss='arcface'; got 4"),
        (("--margin", "0", "--loss", "sphereface"), r"margin must be in \(0, inf\)"),
        (("--data-options", "split=test"), "data_options has split: give train_split and test"),
        (("--loss", "softmax", "--margin", "0.4"), "margin is for a loss with one"),
        (("--loss", "cross_entropy", "--margin", "0.4"), "margin is for a loss with one"),
        (("--export", "none+litert"), "export must be of litert"),
    ],
)
def test_a_wrong_value_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        override(*arguments)


def test_a_bin_of_pairs_holds_its_images():
    assert override("--pairs", "lfw.bin").pairs_images is None


def test_an_unknown_recipe_lists_those_there_are():
    with pytest.raises(ValueError, match="quickstart"):
        load_recipe("quickstrat")


def test_every_field_is_documented_and_help_says_what_it_is():
    parser = argparse.ArgumentParser()
    add_overrides(parser)
    said = {action.dest: action.help for action in parser._actions}
    for field in dataclasses.fields(Recipe):
        assert f"        {field.name}: " in Recipe.__doc__
        assert len(said[field.name]) > 5 and said[field.name].endswith(".")
    assert "in 30 % of the steps" in " ".join(parser.format_help().split())


def test_another_kind_of_augmentation_begins_without_the_recipes_keywords():
    recipe = load_recipe("atc_cifar100")
    assert recipe.augment == "images" and recipe.augmentation
    parser = argparse.ArgumentParser()
    add_overrides(parser)
    given = parser.parse_args(["--augment", "faces", "--augmentation", "grey=0.5"])
    assert with_overrides(recipe, given).augmentation == {"grey": 0.5}
    given = parser.parse_args(["--augment", "none"])
    assert with_overrides(recipe, given).augmentation == {}
    given = parser.parse_args(["--augment", "images", "--augmentation", "erasing=0"])
    assert with_overrides(recipe, given).augmentation == {"crop_padding": 4, "erasing": 0}


def test_words_of_a_command_line_are_pythons_in_every_option():
    made = override(
        "--model-arguments", "convolutional_attention=false", "drop_path=none", "name=False_friend"
    )
    assert made.model_arguments["convolutional_attention"] is False
    assert made.model_arguments["drop_path"] is None
    assert made.model_arguments["name"] == "False_friend"


def test_another_loss_begins_with_its_own_margin():
    parser = argparse.ArgumentParser()
    add_overrides(parser)
    base = Recipe(model="facerec_small", data="faces/", loss="cosface", margin=0.3)

    def loss_and_margin(*arguments):
        made = with_overrides(base, parser.parse_args(arguments))
        return made.loss, made.margin

    assert loss_and_margin("--loss", "sphereface") == ("sphereface", None)
    assert loss_and_margin("--loss", "cosface") == ("cosface", 0.3)
    assert loss_and_margin("--loss", "arcface", "--margin", "0.4") == ("arcface", 0.4)


def test_a_folder_of_pairs_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="pairs='other_peple/' does not exist"):
        Recipe(model="facerec_small", data="faces/", pairs="other_peple/")


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [
        (
            {"train_split": "a", "test_split": "b"},
            ["--test-fraction", "0.4"],
            "--test-fraction has no use with test_split='b'",
        ),
        ({"loss": "cross_entropy"}, ["--scale", "16"], "--scale .* loss='cross_entropy'"),
        ({}, ["--matrix-learning-rate", "0.01"], "--matrix-learning-rate .* optimizer='adamw'"),
        ({}, ["--momentum", "0.5"], "--momentum has no use with optimizer='adamw'"),
        ({}, ["--optimizer", "sgd", "--beta-2", "0.9"], "--beta-2 has no use with optimizer='sgd'"),
        ({}, ["--optimizer", "sgd", "--momentum", "0.5"], None),
        ({}, ["--restart-steps", "10"], "--restart-steps .* schedule='cosine'"),
        ({}, ["--schedule", "constant", "--warmup-epochs", "1"], "--warmup-epochs .*='constant'"),
        ({}, ["--optimizer", "muon", "--matrix-weight-decay", "0"], None),
        ({"schedule": "constant"}, ["--schedule", "cosine", "--warmup-epochs", "1"], None),
    ],
)
def test_a_value_without_a_use_is_refused(changes, arguments, message):
    parser = argparse.ArgumentParser()
    add_overrides(parser)
    given = parser.parse_args(arguments)
    recipe = with_overrides(Recipe(model="facerec_small", data="faces/", **changes), given)
    with contextlib.nullcontext() if message is None else pytest.raises(ValueError, match=message):
        check_use(recipe, given)
