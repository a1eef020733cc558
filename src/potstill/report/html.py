"""What every page is made with: one way to escape, one style sheet, one policy. A page loads nothing."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from potstill.report.data import clean

NAVIGATE = """
(() => {
  const links = new Map([...document.querySelectorAll("nav a")].map(a => [a.hash.slice(1), a]));
  const sections = [...document.querySelectorAll("main section")].filter(section => links.has(section.id));
  const mark = () => {
    const read = sections.findLast(section => section.getBoundingClientRect().top < innerHeight * 0.3) ?? sections[0];
    links.forEach((link, id) => link.classList.toggle("here", id === read?.id));
  };
  addEventListener("scroll", mark, {passive: true});
  mark();
  addEventListener("beforeprint", () => document.querySelectorAll("details").forEach(box => { box.open = true; }));
})();
"""


@dataclass(frozen=True, slots=True)
class Tile:
    """A big number for whoever has a minute."""

    question: str
    answer: str
    meaning: str
    detail: str


def render(template: str, facts: Mapping[str, object], *, scripts: Sequence[str]) -> str:
    """A whole page. All text goes through `clean` and autoescape; `scripts` and the style sheet do not."""
    environment = Environment(
        loader=PackageLoader("potstill", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_cleaned,
    )
    style = files("potstill.report").joinpath("page.css").read_text(encoding="utf-8")
    frame = {"policy": content_security_policy(scripts), "css": Markup(style), "scripts": list(map(Markup, scripts))}
    return environment.get_template(template).render({**facts, **frame})


def content_security_policy(scripts: Sequence[str]) -> str:
    """Nothing from the network, no script but these."""
    digests = (hashlib.sha256(script.encode()).digest() for script in scripts)
    hashes = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _cleaned(value: object) -> object:
    return clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value
