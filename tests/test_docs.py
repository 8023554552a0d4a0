"""The pages under docs say what is now true: their figures, their examples, their links."""

import ast
import functools
import importlib.util
import pathlib
import re

import keras
import pytest

import keras_hybrid as kh
from tests.cases import fast_compilation

ROOT = pathlib.Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
README = ROOT / "README.md"
FAMILIES = {kh.model_info(name).family for name in kh.list_models()}

# A fence of Python, with the comment before it that says why it cannot run here, if there is one.
BLOCK = re.compile(r"^(?:<!-- (not executed): .+ -->\n+)?```python\n(.*?)^```$", re.M | re.S)
FENCE = re.compile(r"^```.*?^```$", re.M | re.S)
PRINT = re.compile(r"^print\(.*\)  # (.+)$", re.M)
HEADINGS = (
    "The architecture",
    "What is the paper's, what is ours",
    "Memory and operations of the attention",
    "Example",
    "Checkpoints",
)


def path_of(page: pathlib.Path) -> str:
    return str(page.relative_to(ROOT))


every_page = pytest.mark.parametrize("page", [README, *PAGES], ids=path_of)


@functools.cache
def blocks(page: pathlib.Path, executed: bool = False) -> list[str]:
    """Return a page's Python, or what of it is executed, each block at its lines on the page."""
    text = page.read_text()
    return [
        "\n" * text.count("\n", 0, block.start(2)) + block[2]
        for block in BLOCK.finditer(text)
        if not (executed and block[1])
    ]


@pytest.mark.parametrize(
    "script", ["generate_models.py", "generate_results.py", "generate_export.py"]
)
def test_generated_pages_are_what_their_scripts_write(script):
    spec = importlib.util.spec_from_file_location("generate", DOCS / script)
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    assert generate.PAGE.read_text() == generate.page(), f"run python docs/{script}"


def test_tables_of_results_within_pages_are_what_their_script_writes():
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate_tables.py")
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    texts = {path: path.read_text() for path in generate.PAGES}
    for path, text in texts.items():
        assert text == generate.page(path), "run python docs/generate_tables.py"
    shown = [block["name"] for text in texts.values() for block in generate.BLOCK.finditer(text)]
    assert sorted(shown) == sorted(generate.MAKERS)


def test_the_tables_of_scale_are_those_of_the_benchmark():
    from benchmarks import scale_plan

    text = (DOCS / "scale.md").read_text()
    tables = [scale_plan.plan("facerec_small"), scale_plan.plan("iresnet50")]
    tables += [scale_plan.published(), scale_plan.measured("memory"), scale_plan.measured("time")]
    for table in tables:
        assert f"\n\n{table}\n\n" in text


def test_every_family_has_a_page_and_every_page_a_family():
    assert {page.stem for page in (DOCS / "families").glob("*.md")} == FAMILIES


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_pages_of_families_have_one_shape(family):
    text = (DOCS / "families" / f"{family}.md").read_text()
    headings = re.findall(r"^## (.+)$", FENCE.sub("", text), re.M)
    optional = HEADINGS[2]
    assert headings == [h for h in HEADINGS if h != optional or optional in headings]
    assert f"../models.md#{family}" in text


def test_the_table_of_verification_sets_is_that_of_the_code():
    rows = {
        row.split(" | ")[0].removeprefix("| "): row
        for row in (DOCS / "data.md").read_text().splitlines()
    }
    for name in kh.data.list_verification_sets():
        known = kh.data.verification_set_info(name)
        assert f"| {known.same:,} + {known.different:,} | {known.folds} |" in rows[name]
        assert f"]({known.url})" in rows[name]
        files = ["`.bin`", *([f"`{known.pair_list}`"] if known.pair_list else [])]
        assert rows[name].endswith(f"| {', '.join(files)} |")


@pytest.mark.skipif(
    keras.backend.backend() == "jax",
    reason="minutes: JAX compiles every operation of eager code; two backends are enough",
)
@pytest.mark.parametrize(
    "page",
    [
        # The pages of the families do the same with another model each.
        pytest.param(p, marks=[pytest.mark.any_backend] if p.parent.name == "families" else [])
        for p in PAGES
        if blocks(p, executed=True)
    ],
    ids=path_of,
)
def test_examples_run_and_print_what_they_say(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    keras.utils.set_random_seed(0)
    namespace: dict = {}
    with fast_compilation():
        for code in blocks(page, executed=True):
            exec(compile(code, path_of(page), "exec"), namespace)
    promised = [said for code in blocks(page, executed=True) for said in PRINT.findall(code)]
    assert capsys.readouterr().out.splitlines() == promised
    namespace.clear()
    keras.utils.clear_session()


@every_page
def test_what_examples_call_exists(page):
    """Also in blocks that nobody executes, such as README's, which want photographs."""
    for code in blocks(page):
        for node in ast.walk(ast.parse(code)):
            name = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
            if re.fullmatch(r"kh(\.\w+)+", name):
                functools.reduce(getattr, name.split(".")[1:], kh)


@every_page
def test_relative_links_lead_somewhere(page):
    text = FENCE.sub("", page.read_text())
    for target, anchor in re.findall(r"\]\((?!\w+:)([^)#\s]*)(?:#([^)\s]+))?\)", text):
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), f"{target} is not there"
        if anchor:
            assert anchor in anchors(path), f"{path_of(path)} has no heading #{anchor}"


def anchors(page: pathlib.Path) -> set[str]:
    """Return the fragments that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.M)
    texts = (re.sub(r"\[(.+?)\]\(.+?\)", r"\1", heading) for heading in headings)
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in texts}
