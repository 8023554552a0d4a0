"""How facts and tables are printed."""

from collections.abc import Mapping, Sequence


def format_size(shape: Sequence[int]) -> str:
    """Return a shape as in "112x112x3"."""
    return "x".join(str(n) for n in shape)


def format_macs(count: int) -> str:
    """Return a count of multiply-accumulates in millions or thousands of millions."""
    return f"{count / 1e9:.2f} G" if count >= 1e9 else f"{count / 1e6:.1f} M"


def indented(text: object) -> str:
    """Return a text two spaces to the right."""
    return "\n".join(f"  {line}" for line in str(text).splitlines())


def print_facts(facts: Mapping[str, object]) -> None:
    """Print names and values in two columns."""
    width = max(len(name) for name in facts)
    for name, value in facts.items():
        if isinstance(value, bool):
            value = "yes" if value else "no"
        elif isinstance(value, int):
            value = f"{value:,}"
        print(f"{name.replace('_', ' '):<{width}}  {value}")


def print_table(
    head: Sequence[str], rows: Sequence[Sequence[str]], right: set[int], indent: str = ""
) -> None:
    """Print columns as wide as their widest cell, those in ``right`` aligned to the right."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    for row in [head, *rows]:
        cells = [
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print(f"{indent}{'  '.join(cells)}".rstrip())
