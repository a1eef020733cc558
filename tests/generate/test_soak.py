"""A million prompts: memory flat, resume in seconds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from data_runs import exported, query

MILLION = """
import json, resource, sys, time
from pathlib import Path
from potstill.recipe import load_recipe
from potstill.engines import choose
from potstill.engines.canned import CannedSampler
from potstill.pipeline import Run
import potstill.generate.ask as h
h.sampler_for = lambda recipe: CannedSampler(lambda prompt, seed: f"an answer to {prompt}")
memory, scan = [], []
collect = h.collect
def timed(*arguments):
    start = time.perf_counter()
    collect(*arguments)
    scan.append(time.perf_counter() - start)
h.collect = timed
def watch(progress):
    if progress.what != "teacher answers":
        return
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    memory.append((progress.done, pages * 4096 / 2**20))
start = time.perf_counter()
found = Run(load_recipe(Path(sys.argv[1])), Path(sys.argv[2]), watch).generate()
took = time.perf_counter() - start
middle = [mb for done, mb in memory if 0.3 < done / found.prompts < 0.4]
late = [mb for done, mb in memory if 0.9 < done / found.prompts <= 1]
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
flat = {"middle": max(middle or [0]), "late": max(late or [0])}
print(json.dumps({"exported": found.exported, "seconds": took, "collect": scan[0], "peak": peak, **flat}))
"""


@pytest.mark.soak
@pytest.mark.timeout(3000)
def test_a_million_prompts_in_flat_memory_and_a_quick_resume(tmp_path: Path) -> None:
    count = 1_000_000
    (tmp_path / "answers.jsonl").write_text("")
    with (tmp_path / "prompts.jsonl").open("w") as file:
        file.writelines(json.dumps({"text": f"what do you think of film number {i}?"}) + "\n" for i in range(count))
    recipe = {
        "name": "million",
        "prompts": {"source": str(tmp_path / "prompts.jsonl"), "licence": "mit", "columns": {"text": "text"}},
        "teacher": {
            "model": "canned",
            "licence": "mit",
            "engine": {"kind": "canned", "answers": str(tmp_path / "answers.jsonl")},
        },
        "generate": {"n": 1},
    }
    path, run = tmp_path / "recipe.yaml", tmp_path / "run"
    path.write_text(json.dumps(recipe))

    def go() -> dict[str, float]:
        done = subprocess.run([sys.executable, "-c", MILLION, path, run], capture_output=True, text=True, check=True)
        return json.loads(done.stdout.splitlines()[-1])

    first = go()
    size = sum(f.stat().st_size for f in run.glob("ledger.sqlite*"))
    query(run, "UPDATE asks SET settled = NULL")  # the hardest resume: every prompt must be looked at again
    again = go()
    print(f"{count:,} prompts: {first}; {size / count:.0f} bytes per row in the ledger, "
          f"{len(exported(run)) / count:.0f} in the Parquet; again {again}")  # fmt: skip
    assert first["exported"] == again["exported"] == count
    assert first["peak"] < 600 and first["late"] < 1.1 * first["middle"]
    assert again["collect"] < 10 and again["peak"] < 600
