"""Find a learning rate for a recipe: ``python training/find_learning_rate.py RECIPE …``.

One short run raises the rate from ``--low`` to ``--high``, each step by the same factor, and notes
the loss (Smith 2017, "Cyclical Learning Rates for Training Neural Networks", section 3.3). Where
the smoothed loss falls fastest is a good peak for a schedule with warm-up. Every option of
``train.py`` that changes the recipe works here too.
"""

import argparse
import csv
import dataclasses
import pathlib
import sys

if __package__ in (None, ""):  # run as a file: find the package beside this folder
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

from training import train
from training.model import begin_with_trained, build_model
from training.recipe import Recipe, add_overrides, load_recipe, recipe_names, with_overrides

SMOOTHING = 0.9  # of the exponential average of the loss
LAG = round(1 / (1 - SMOOTHING))  # steps that the average is behind


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Losses at rising learning rates.

    Attributes:
        rates: Of each step, as the recipe's ``learning_rate`` counts them (with "muon" the
            matrices' rate stays in proportion).
        losses: Of each step's batch, before the step.
        smoothed: Their exponential average, without its start's bias.
    """

    rates: list[float]
    losses: list[float]
    smoothed: list[float]

    @property
    def suggestion(self) -> float:
        """The rate at which the smoothed loss falls fastest over the logarithm of the rate.

        Raises:
            ValueError: If the loss never falls.
        """
        import numpy as np

        # The first values of the average say little.
        start = min(LAG, len(self.smoothed) - 2)
        slopes = np.gradient(np.array(self.smoothed))[start:]
        if not slopes.min() < 0:
            raise ValueError(
                f"The loss does not fall between {self.rates[0]:.2g} and {self.rates[-1]:.2g}: try "
                "a smaller --low, more --steps, or look at the data."
            )
        return self.rates[start + int(slopes.argmin())]


def sweep(recipe: Recipe, low: float, high: float, steps: int) -> Sweep:
    """Train for ``steps`` steps at rising rates; stops when the loss has left its best far behind.

    Args:
        recipe: What to train; its schedule and epochs do not matter.
        low: First learning rate.
        high: Last one.
        steps: Number of steps.

    Raises:
        ValueError: If the range is empty, the recipe or its data do not fit, or the loss is lost
            before it can be seen to fall.
    """
    if not 0 < low < high < float("inf") or steps < 20:
        raise ValueError(
            "Expected 0 < --low < --high < inf and at least 20 --steps, got "
            f"{low}, {high}, {steps}."
        )
    recipe = dataclasses.replace(recipe, schedule="constant", export="none", steps_per_execution=1)
    with train.distribution(recipe):
        return _sweep(recipe, low, high, steps)


def _sweep(recipe: Recipe, low: float, high: float, steps: int) -> Sweep:
    import keras

    keras.config.set_dtype_policy(recipe.precision)
    train.check(recipe)
    images, _ = train.load_data(recipe)
    keras.utils.set_random_seed(recipe.seed)
    model = build_model(recipe, len(images.class_names), steps)
    begin_with_trained(recipe, model, images)
    factor = high / low
    # Muon's own rate is the matrices': the other one follows in proportion.
    share = recipe.matrix_learning_rate / recipe.learning_rate if recipe.optimizer == "muon" else 1
    model.optimizer.learning_rate = keras.optimizers.schedules.ExponentialDecay(
        low * share, steps - 1, factor
    )
    batches = train.build_batches(recipe, images)
    found = Sweep([], [], [])
    average = 0.0
    while len(found.rates) < steps:
        for x, y in batches:
            step = len(found.rates)
            loss = float(model.train_on_batch(x, y, return_dict=True)["loss"])
            model.reset_metrics()  # otherwise the next loss is a running mean
            if loss != loss or loss > 1e30:
                if step < LAG + 2:  # no slope of the average is seen yet
                    raise ValueError(
                        f"The loss is {loss} after {step} of {steps} steps, which began at --low "
                        f"{low:.2g}: try a smaller one, or more --steps."
                    )
                return found
            average = SMOOTHING * average + (1 - SMOOTHING) * loss
            found.rates.append(low * factor ** (step / (steps - 1)))
            found.losses.append(loss)
            found.smoothed.append(average / (1 - SMOOTHING ** (step + 1)))
            if found.smoothed[-1] > 4 * min(found.smoothed) or step + 1 == steps:
                return found
        batches.on_epoch_end()
    return found


def write(found: Sweep, out: pathlib.Path) -> None:
    """Write ``learning_rates.csv`` and, with matplotlib, ``learning_rates.png``."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / "learning_rates.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["learning_rate", "loss", "smoothed"])
        writer.writerows(zip(found.rates, found.losses, found.smoothed, strict=True))
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("learning_rates.png needs matplotlib: pip install 'keras-hybrid[plot]'")
        return
    figure = Figure(figsize=(5, 3.4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(found.rates, found.losses, color="0.75", linewidth=1, label="each batch")
    axes.plot(found.rates, found.smoothed, label="average")
    axes.axvline(found.suggestion, color="black", linestyle="--", linewidth=1, label="suggestion")
    axes.set(xscale="log", xlabel="learning rate", ylabel="loss")
    axes.legend()
    figure.savefig(out / "learning_rates.png", dpi=150)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="find_learning_rate.py", description="Find a learning rate for a recipe."
    )
    parser.add_argument("recipe", help=f"one of: {', '.join(recipe_names())}")
    parser.add_argument("--low", type=float, default=1e-6)
    parser.add_argument("--high", type=float, default=1.0)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--out", help="folder (default: runs/RECIPE)")
    parser.add_argument("--backend", choices=("tensorflow", "jax", "torch"))
    add_overrides(parser)
    given = parser.parse_args(arguments)

    def find() -> None:
        recipe = with_overrides(load_recipe(given.recipe), given)
        found = sweep(recipe, given.low, given.high, given.steps)
        out = pathlib.Path(given.out or f"runs/{given.recipe}")
        write(found, out)
        rate = f"--learning-rate {found.suggestion:.2g}"
        if recipe.optimizer == "muon":  # the sweep has kept the proportion of the two rates
            share = found.suggestion / recipe.learning_rate
            rate += f" --matrix-learning-rate {recipe.matrix_learning_rate * share:.2g}"
        print(f"Suggested peak: {rate} ({out / 'learning_rates.csv'})")

    return train.run_command(given.backend, find)


if __name__ == "__main__":
    sys.exit(main())
