"""The section about what a student wrote itself: the numbers of rollouts.json, hostile tokens stay text."""

from __future__ import annotations

import json
import math
import random
import re
from pathlib import Path
from typing import Any

import pytest
from browser import open_page, screenshot
from orders_run import made_run, recipe_in, write_lines
from parsed import Page
from test_hostile_text import FORBIDDEN, HOSTILE, browser

from potstill.records import unwatched
from potstill.report.stage import write_report
from potstill.report.training import Token
from potstill.store.metrics import Metrics
from potstill.store.run import RunFolder

WRITTEN = '{"name": "Ann Moss", "item": "oak doors", "quantity": 7, "city": "Madrid",\n "total": 310}'
"""What the made student writes; of "Madrid" it is far surer than its teacher."""


def told(*, hostile: str = "") -> dict[str, Any]:
    """As `train.own_text` writes it."""
    draw = random.Random(2)
    words = [word + " " for word in WRITTEN.split(" ")]
    words[words.index('"Madrid",\n ')] = '"Madrid",\n' + hostile

    def tokens() -> list[tuple[str, float, float]]:
        found: list[tuple[str, float, float]] = []
        for word in words:
            student = math.log(draw.uniform(0.5, 0.99))
            gap = 6.0 if "Madrid" in word else draw.choice((0.0, 0.02, 0.1, 0.7, 1.4, 2.9))
            found.append((word, round(student, 4), round(student - gap, 4)))
        return found

    prompt = "<|im_start|>user\nOrder from Ann Moss: 7 oak doors, delivery to Oslo." + hostile
    samples = [{"prompt": prompt, "finish": "stop", "length": 16, "tokens": tokens()} for _ in range(3)]
    samples.append({"prompt": prompt, "finish": "length", "length": 80, "tokens": []})
    return {
        "prompts": 32,
        "answers": 64,
        "max_tokens": 80,
        "reverse_kl": {"value": 3.214, "n": 32, "ci95": [2.871, 3.602]},
        "reverse_kl_per_token": 0.0824,
        "ended": 61,
        "mean_length": 39.4,
        "by_position": [{"kl": 0.3 / (1 + i / 5) + draw.random() / 20, "n": 64 - i} for i in range(40)],
        "samples": samples,
    }


def on_policy_run(folder: Path, *, hostile: str = "") -> RunFolder:
    run = made_run(folder, recipe_in(folder, prompts=6, tests=6, hostile=hostile), tests=False)
    (run.arm("student") / "rollouts.json").write_text(json.dumps(told(hostile=hostile)))
    rows = Metrics(run.metrics).rows()
    for i, row in enumerate(rows[24:120]):
        row |= {"rollout_length": 70 - 30 * min(1, i / 40), "eos_rate": min(0.97, 0.4 + i / 60), "repetition": 0.01}
        row |= {"student_entropy": 0.9 - i / 200, "teacher_entropy": 0.8, "support_overlap": 0.98}
    write_lines(run.metrics, rows)
    return run


def written(run: RunFolder) -> Path:
    return write_report(run, watch=unwatched)


def test_the_page_says_what_was_measured(tmp_path: Path) -> None:
    text = written(on_policy_run(tmp_path)).read_text(encoding="utf-8")
    page = Page(text)
    said = page.said("own-answers")
    assert "3.21 nats per answer, 95 % interval 2.87 to 3.60, and 0.082 nats per token" in said
    assert "64 answers that the student drew to 32 prompts held back" in said
    assert "61 of them ended by themselves within 80 tokens" in said
    assert page.drawn["own-answers"] == 4  # KL by position, length, share that ends, entropy
    assert page.row("own-answers", "Mean length of its own answers")[0:2] == ["70.000", "40.000"]
    assert len(re.findall('class="h4" title="student [^"]+: 6.0 nats"', text)) == 3
    assert said.count('Most disputed: “"Madrid",” (student ') == 3
    assert "80 tokens, was cut off" in said and "(an empty answer)" in said
    assert '<a href="#own-answers">' in text


def test_warmth_goes_by_what_the_student_finds_likelier() -> None:
    gaps = (-3.0, 0.0, 0.49, 0.51, 1.01, 2.5, 4.01)
    tokens = [Token("x", -0.1, -0.1 - gap) for gap in gaps]
    assert [token.heat for token in tokens] == [0, 0, 0, 1, 2, 3, 4]
    assert tokens[-1].odds == "student 90.5\u00a0%, teacher 1.6\u00a0%"


def test_a_student_that_wrote_nothing_has_no_such_part(tmp_path: Path) -> None:
    run = made_run(tmp_path, recipe_in(tmp_path, prompts=6, tests=6), tests=False)
    assert "own-answers" not in written(run).read_text(encoding="utf-8")


def test_hostile_tokens_stay_text(tmp_path: Path) -> None:
    text = written(on_policy_run(tmp_path, hostile=HOSTILE)).read_text(encoding="utf-8")
    page = Page(text)
    assert len(text) < 2_000_000 and page.elements["img"] == page.elements["script"] == 0
    assert not [name for _, names in page.attributes for name in names if name.startswith("on")]
    assert not FORBIDDEN.search(text) and "<script>document" in page.sections["own-answers"]


@browser
@pytest.mark.parametrize("width", [1200, 390])
def test_a_browser_shows_it_and_requests_nothing(tmp_path: Path, width: int) -> None:
    page = written(on_policy_run(tmp_path, hostile=HOSTILE))
    if width == 1200:
        opened = open_page(page)
        assert opened.requests == [] and opened.console == [] and "pwned" not in opened.dom.partition("</title>")[0]
    screenshot(page, tmp_path / "page.png", width, 1400)
    assert (tmp_path / "page.png").stat().st_size > 20_000
