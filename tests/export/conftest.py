"""One small hybrid network for all export tests, and each export made once per session."""

from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_hybrid import export
from tests.export.export_cases import NEEDS, hybrid_network, randomize, skip_without


@pytest.fixture(scope="session")
def model() -> keras.Model:
    keras.utils.set_random_seed(0)
    return randomize(hybrid_network())


@pytest.fixture(scope="session")
def photographs() -> np.ndarray:
    generator = np.random.default_rng(2)
    coarse = generator.uniform(0, 255, (32, 4, 5, 3))
    return np.kron(coarse, np.ones((1, 4, 4, 1))).astype("uint8")


@pytest.fixture(scope="session")
def exported(
    model: keras.Model, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., export.ExportReport]:
    """Return a function that exports the session's model, each variant once."""
    folder: Path = tmp_path_factory.mktemp("exported")
    reports: dict[str, export.ExportReport] = {}

    def make(name: str, function: str, **options) -> export.ExportReport:
        skip_without(*NEEDS[function])
        if name not in reports:
            reports[name] = getattr(export, function)(model, folder / name, **options)
        return reports[name]

    return make
