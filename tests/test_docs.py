"""The generated pages say what is now true."""

import importlib.util
import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[1]


def test_the_page_of_models_is_that_of_the_registry():
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs/generate_models.py")
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    assert generate.PAGE.read_text() == generate.page(), "run python docs/generate_models.py"
