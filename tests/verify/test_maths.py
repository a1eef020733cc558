# ruff: noqa: E501
"""Mathematics read whole: pairs and a corpus with a known truth, and expressions that never end."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path

import pytest

from potstill.recipe.checks import Maths
from potstill.records import Prompt, Sample
from potstill.verify.check import look
from potstill.verify.workers import checked

# gold, answers that equal it, answers that do not
TABLE: list[tuple[str, list[str], list[str]]] = [
    ("$\\frac{1}{2}$", ["0.5", "$\\frac{2}{4}$", "\\boxed{1/2}", "The answer is $\\dfrac12$."], ["0.25", "$\\frac{2}{1}$", "2"]),
    ("$\\frac{3}{4}$", ["0.75", "$\\frac{6}{8}$", "3/4", "75\\%"], ["0.7", "$\\frac{4}{3}$"]),
    ("$-\\frac{5}{3}$", ["$\\frac{-5}{3}$", "$\\frac{5}{-3}$", "-5/3"], ["$\\frac{5}{3}$", "-1.6"]),
    ("42", ["42", "\\boxed{42}", "$42$", "42.0", "It is 42."], ["43", "-42", "4.2"]),
    ("1000", ["1,000", "$1000$", "$10^3$", "1000.0"], ["100", "10000"]),
    ("0", ["0", "$0$", "0.0"], ["1", "-1"]),
    ("-7", ["-7", "$-7$", "\\boxed{-7}"], ["7", "-8"]),
    ("3.14", ["3.14", "$\\frac{157}{50}$"], ["3.15", "$\\pi$", "314"]),
    ("$\\pi$", ["$\\pi$", "\\boxed{\\pi}", "$2\\cdot\\frac{\\pi}{2}$"], ["3", "$2\\pi$"]),
    ("$2\\sqrt{3}$", ["$\\sqrt{12}$", "$2\\sqrt3$", "\\boxed{2\\sqrt{3}}"], ["$3\\sqrt{2}$", "$\\sqrt{3}$"]),
    ("$\\frac{\\sqrt{2}}{2}$", ["$\\frac{1}{\\sqrt{2}}$", "$\\sqrt{\\frac{1}{2}}$"], ["$\\sqrt{2}$", "$\\frac{2}{\\sqrt{2}}$"]),
    ("$x^2+2x+1$", ["$(x+1)^2$", "$1+2x+x^2$", "$x(x+2)+1$"], ["$x^2+1$", "$(x-1)^2$"]),
    ("$\\{1,2,3\\}$", ["$\\{3,2,1\\}$", "$\\{1, 2, 3\\}$", "\\boxed{\\{2,1,3\\}}"], ["$\\{1,2\\}$", "$\\{1,2,4\\}$"]),
    ("$\\{-1, 1\\}$", ["$\\{1,-1\\}$", "\\boxed{\\{-1,1\\}}"], ["$\\{1\\}$", "$\\{0,1\\}$"]),
    ("$[0,1]$", ["$[0,1]$", "$[0, 1]$", "\\boxed{[0,1]}"], ["$(0,1)$", "$[0,1)$", "$[0,2]$"]),
    ("$(0,1)$", ["$(0, 1)$", "\\boxed{(0,1)}"], ["$(0,2)$", "$(1,0)$"]),
    ("$(-\\infty, 3]$", ["$(-\\infty,3]$", "\\boxed{(-\\infty, 3]}"], ["$(-\\infty,3)$", "$[3,\\infty)$"]),
    ("$(2,5)\\cup(7,9)$", ["$(2,5) \\cup (7,9)$"], ["$(2,5)$", "$(2,9)$"]),
    ("$10\\text{ cm}$", ["$10$", "$10\\text{ cm}$", "$10\\mathrm{cm}$"], ["$11\\text{ cm}$", "$100$"]),
    ("$\\$12.50$", ["$12.50", "$\\$12.5$", "12.5"], ["12", "$\\$125$"]),
    ("$30^\\circ$", ["$30^{\\circ}$", "30", "$30$"], ["$60^\\circ$", "$3$"]),
    ("25\\%", ["25%", "$25\\%$", "0.25"], ["52%", "$2.5\\%$"]),
    ("$x=5$", ["$x = 5$", "$5$", "\\boxed{x=5}"], ["$x=6$", "$x=-5$"]),
    ("$\\frac{7}{8}$", ["0.875", "7/8", "$\\frac{14}{16}$"], ["0.88", "$\\frac{8}{7}$"]),
    ("$2^{10}$", ["1024", "$1024$", "$4^5$"], ["1000", "$2^{11}$", "20"]),
    ("$\\log_2 8$", ["3", "$3$"], ["8", "2"]),
    ("$e^2$", ["$e^{2}$", "$e\\cdot e$"], ["$2e$", "$e$"]),
    ("$5!$", ["120", "$120$"], ["24", "5"]),
    ("$\\binom{5}{2}$", ["10", "$10$"], ["20", "5"]),
    ("$3+4i$", ["$4i+3$", "\\boxed{3+4i}"], ["$3-4i$", "$4+3i$"]),
    ("$\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}$", ["$\\begin{pmatrix} 1 & 2 \\\\ 3 & 4 \\end{pmatrix}$", "$\\begin{bmatrix}1&2\\\\3&4\\end{bmatrix}$"], ["$\\begin{pmatrix}1&2\\\\4&3\\end{pmatrix}$", "$\\begin{pmatrix}1&3\\\\2&4\\end{pmatrix}$"]),
    ("$\\sin^2 x + \\cos^2 x$", ["$1$", "1"], ["0", "2"]),
    ("$\\frac{a}{b}+\\frac{c}{d}$", ["$\\frac{ad+bc}{bd}$"], ["$\\frac{a+c}{b+d}$"]),
    ("1234567", ["1,234,567", "$1{,}234{,}567$", "$1234567$"], ["123456", "1234568"]),
    ("$1.5\\times 10^{3}$", ["1500", "$1500$", "$15 \\cdot 100$"], ["150", "15000"]),
    ("$\\sqrt[3]{27}$", ["3", "$3$"], ["9", "27"]),
    ("$|-5|$", ["5", "$5$"], ["-5", "0"]),
    ("$\\frac{22}{7}$", ["$3\\frac{1}{7}$", "22/7"], ["$\\pi$", "$\\frac{7}{22}$"]),
    ("$y = 2x + 3$", ["$y=3+2x$", "\\boxed{y=2x+3}"], ["$y=3x+2$", "$y=2x-3$"]),
    ("$\\frac{1}{3}$", ["1/3", "$\\frac{3}{9}$"], ["0.3", "3"]),
    ("$\\frac{5}{6}$", ["5/6", "$\\frac{10}{12}$", "$\\frac{1}{2}+\\frac{1}{3}$"], ["0.8", "$\\frac{6}{5}$", "$\\frac{5}{7}$"]),
    ("$7\\pi$", ["$7\\pi$", "$\\pi \\cdot 7$"], ["7", "$7+\\pi$"]),
    ("$\\{a, b\\}$", ["$\\{b, a\\}$"], ["$\\{a\\}$", "$\\{a, c\\}$"]),
]  # fmt: skip

PAIRS = [
    (gold, answer, same)
    for gold, right, wrong in TABLE
    for same, some in ((True, right), (False, wrong))
    for answer in some
]

ENDLESS = [
    "$9^{9^{9^{9}}}$", "$10^{10^{10}}$", "$2^{2^{2^{2^{2^{2}}}}}$", "$(10^9)!$", "$((9!)!)!$", "$\\binom{10^{12}}{10^{11}}$",
    "$\\frac{1}{9^{9^{9}}}$", "$(x+1)^{100000}$", "$(a+b+c+d+e+f+g)^{200}$", "$\\sqrt{\\sqrt{\\sqrt{2^{3^{4^{5}}}}}}$",
    "$\\int_0^1 e^{e^{e^{x^{x}}}} dx$", "$\\sum_{n=1}^{10^{12}} \\frac{1}{n^{n}}$", "$\\prod_{n=1}^{10^{9}} n$", "$\\sin(10^{10^{8}})$",
    "$\\log(9^{9^{9}})$", "$" + "(" * 300 + "1" + ")" * 300 + "$", "$" + "+".join(f"x_{{{i}}}" for i in range(400)) + "$",
    "$" + "\\frac{1}{1+" * 80 + "x" + "}" * 80 + "$", "$" + "^{2".join(["x"] * 60) + "}" * 59 + "$", "\\boxed{" * 200 + "1" + "}" * 200,
]  # fmt: skip


def rows(pairs: list[tuple[str, str]]) -> list[tuple[Prompt, Sample]]:
    return [
        (Prompt(id=str(i), split="train", messages=(), reference=gold), Sample(prompt_id=str(i), text=answer))
        for i, (gold, answer) in enumerate(pairs)
    ]


def test_two_hundred_pairs() -> None:
    assert len(PAIRS) >= 200
    found = [f[0] for _, _, f in checked(rows([p[:2] for p in PAIRS]), [Maths(kind="maths")], processes=2)]
    wanted = ["passed" if same else "failed" for _, _, same in PAIRS]
    told = list(zip(PAIRS, found, strict=True))
    wrong = [(p, f) for (p, f), w in zip(told, wanted, strict=True) if f.opinion not in (w, "undecided")]
    assert wrong == []
    assert len([f for f in found if f.opinion == "undecided"]) <= 2


# A line per reference: how MATH, GSM8K, NuminaMath and OpenR1 write it, and a right, a wrong and a nearly right answer.
# The last hundred were written last: at their first run none was wrong and 1 of 300 undecided. Two earlier lots of 98,
# now among the others, had 3 and 4 wrong verdicts and 7 and 3 undecided at theirs, and showed what was to be fixed.
CORPUS = [json.loads(line) for line in Path(__file__).with_name("maths_corpus.jsonl").read_text().splitlines()]


def judged(references: list[list[str]]) -> tuple[list[tuple[str, str, str]], Counter[str]]:
    """The wrong verdicts, and how many verdicts there are of each kind."""
    wrong: list[tuple[str, str, str]] = []
    opinions = Counter[str]()
    for reference, *answers in references:
        prompt = Prompt(id="p", split="train", messages=(), reference=reference)
        for answer, wanted in zip(answers, ("passed", "failed", "failed"), strict=True):
            said = look(Maths(kind="maths"), prompt, Sample(prompt_id="p", text=answer)).opinion
            opinions[said] += 1
            if said not in (wanted, "undecided"):
                wrong.append((reference, answer, said))
    return wrong, opinions


@pytest.mark.parametrize(
    "references", [CORPUS[::6], pytest.param(CORPUS, marks=pytest.mark.soak)], ids=["sample", "all"]
)
def test_references_as_they_are_published(references: list[list[str]]) -> None:
    wrong, opinions = judged(references)
    assert wrong == []
    assert opinions["undecided"] <= 0.02 * opinions.total()


@pytest.mark.parametrize(
    ("reference", "answer", "wanted"),
    [
        ("7", "first \\boxed{6} would do, but no: the answer is \\boxed{7}", "passed"),
        ("6", "first \\boxed{6}, the answer is \\boxed{7}", "failed"),  # a comma does not join two thoughts
        ("7", "the answer is \\boxed{7} or so, \\boxed{8", "failed"),  # a box that was cut off
        ("x^2 + 5", "So we have found x^2 + 5 in the end.", "undecided"),  # 5 is a part of something
        ("x^2 + 5 \\text{ if } x > 0", "\\boxed{5}", "undecided"),
        ("10 cm", "\\boxed{10 \\text{ m}}", "failed"),
        ("2 \\text{ hours}", "\\boxed{120 \\text{ minutes}}", "passed"),
        ("2^{2019} - 1", "\\boxed{2^{2019}}", "failed"),
        ("6", "\\boxed{2(3)}", "passed"),
        ("1 2", "\\boxed{12}", "undecided"),
        ("|a| + |b|", "\\boxed{|a+b|}", "failed"),
        ("0.0000001", "\\boxed{0.0000002}", "failed"),
        ("x=1, y=2", "\\boxed{x=2, y=1}", "failed"),
    ],
)
def test_a_part_is_never_taken_for_the_whole(reference: str, answer: str, wanted: str) -> None:
    prompt = Prompt(id="p", split="train", messages=(), reference=reference)
    assert look(Maths(kind="maths"), prompt, Sample(prompt_id="p", text=answer)).opinion == wanted


def test_what_extract_finds_is_read_whole() -> None:
    check = Maths(kind="maths", extract=r"Answer: (.*)")
    prompt = Prompt(id="p", split="train", messages=(), reference="(1, 2)")
    said = [
        look(check, prompt, Sample(prompt_id="p", text=f"Answer: {a}")).opinion for a in ("(1, 2)", "2", "roughly 2")
    ]
    assert said == ["passed", "failed", "undecided"]


def test_what_never_ends_is_undecided_in_time() -> None:
    """Some end by the symbolic system's own alarm, some only with their process."""
    assert len(ENDLESS) == 20
    start = time.monotonic()
    asked = rows([("$7$", expression) for expression in ENDLESS])
    found = [findings[0] for _, _, findings in checked(asked, [Maths(kind="maths", seconds=1)], processes=2)]
    opinions = [(e, f) for e, f in zip(ENDLESS, found, strict=True) if f.opinion not in ("undecided", "failed")]
    assert opinions == []
    assert time.monotonic() - start < 300  # a second each and a worker's start after a kill, on a machine of any speed


@pytest.mark.parametrize("reference", [None, "", "certainly not mathematics"])
def test_an_unreadable_reference_is_undecided(reference: str | None) -> None:
    asked = Prompt(id="p", split="train", messages=(), reference=reference)
    found = look(Maths(kind="maths"), asked, Sample(prompt_id="p", text="$3$"))
    assert found.opinion == "undecided"
