"""What is said of a wrong recipe: where, what, and the way out; never the word that was typed as the right one."""

from __future__ import annotations

from pathlib import Path

import pytest

from potstill.errors import InputError
from potstill.recipe import load_recipe

RECIPE = """\
name: wrong
prompts: {source: p.jsonl, licence: mit, columns: {text: q}}
teacher:
  model: m
  licence: mit
  engine: {kind: canned, answers: a.jsonl}
verify:
  checks:
    - kind: exact
    - kind: length
      least: 1
student:
  start: s
  licence: mit
evaluate:
  prompts: {source: t.jsonl, licence: mit, columns: {text: q}}
"""

SAID = {
    "verify.checks=[{kind: lenght}]": "unknown kind 'lenght' in 'verify.checks.0'; did you mean 'length'?",
    "verify.checks=[{most: 3}]": "'verify.checks.0.kind' is missing; add one of exact, ",
    "verify.checks=[{kind: length, mst: 3}]": "unknown key 'mst' in 'verify.checks.0'; did you mean 'most'?",
    "verify.checks=[{kind: exact, wht: 3}]": "known keys in 'verify.checks.0': extract, kind, normalise",
    "verify.checks=[{kind: exact, most: 3}]": "'most' belongs to length, and this is exact",
    "verify.checks=[{kind: regex, pattern: '('}]": "verify.checks.0.pattern: '(' is no regular expression: ",
    "train.method={kind: sft, beta: 0.5}": "'train.method'; 'beta' belongs to logit_kd, and this is sft",
    "train.method=sft": "'train.method' is 'sft'; it should be a mapping",
    "train.signal={kind: topk}": "unknown kind 'topk' in 'train.signal'; did you mean 'top_k'?",
    "student.layers={ranke: 4}": "unknown key 'ranke' in 'student.layers'; did you mean 'ranked'?",
    "student.layers={ranked: 2, spaced: 2}": "'spaced' in 'student.layers'; 'student.layers' takes one of",
    "student={kind: encoder, layers: 3}": "'layers' belongs to causal_lm, and this is encoder",
    "teacher.engine={kind: servr}": "unknown kind 'servr' in 'teacher.engine'; did you mean 'server'?",
    "teacher.engine={kind: server}": "'teacher.engine.url' is missing; add 'teacher.engine.url'",
    "task={kind: choices}": "unknown kind 'choices' in 'task'; did you mean 'choice'?",
    "seed={a: 1}": "'seed' is a mapping; it should be a valid integer",
    "controls=[bse]": "'controls.0' is 'bse'; it should be 'base', ",
}  # fmt: skip


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "wrong.yaml"
    path.write_text(RECIPE)
    return path


@pytest.mark.parametrize("override", list(SAID))
def test_a_wrong_value_is_named_with_the_way_out(override: str, recipe: Path) -> None:
    with pytest.raises(InputError) as said:
        load_recipe(recipe, [override])
    assert SAID[override] in str(said.value)
    assert str(said.value).startswith(f"--set {override.partition('=')[0]}: ")


@pytest.mark.parametrize(
    ("right", "wrong", "said"),
    [
        ("kind: length", "kind: lenght", "line 10: unknown kind 'lenght' in 'verify.checks.1'; did you mean 'length'?"),
        ("least: 1", "leest: 1", "line 11: unknown key 'leest' in 'verify.checks.1'; did you mean 'least'?"),
        ("kind: exact", "kind: regex", "line 9: 'verify.checks.0.pattern' is missing"),
        ("kind: canned", "kind: caned", "line 6: unknown kind 'caned' in 'teacher.engine'; did you mean 'canned'?"),
        ("start: s", "strt: s", "line 13: unknown key 'strt' in 'student'; did you mean 'start'?"),
    ],
)
def test_its_line_is_named(right: str, wrong: str, said: str, recipe: Path) -> None:
    recipe.write_text(RECIPE.replace(right, wrong))
    with pytest.raises(InputError) as error:
        load_recipe(recipe)
    assert str(error.value).startswith(f"{recipe}, {said}")


@pytest.mark.parametrize(
    "key", ["teacher.engine={kind: server, url: 5}", "teacher.engine={kind: server, url: u, key_env: 7}"]
)
def test_what_may_hold_a_secret_is_not_shown(key: str, recipe: Path) -> None:
    with pytest.raises(InputError, match="the value is not shown") as error:
        load_recipe(recipe, [key])
    assert " 5" not in str(error.value) and " 7" not in str(error.value)
