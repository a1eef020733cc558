"""The result pages in `docs/results`: each measured table stands between two marks and is replaced by the next run."""

from __future__ import annotations

from pathlib import Path


def replace_table(page: Path, mark: str, table: str) -> None:
    """What stands between `<!-- mark -->` and the next `<!-- end -->`. Raises ValueError where the page has no such."""
    text = page.read_text(encoding="utf-8")
    begin, end = f"<!-- {mark} -->", "<!-- end -->"
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"{page} has no place for a table: it needs a line '{begin}' and a line '{end}' after it")
    page.write_text(f"{before}{begin}\n{table}\n{end}{after}", encoding="utf-8")


def computed_in() -> str:
    """`float32` or `bfloat16`: what this machine computes in. Results of the two stand side by side on a page."""
    from potstill.models.load import compute_dtype

    return str(compute_dtype()).removeprefix("torch.")
