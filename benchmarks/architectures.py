"""Every causal architecture of the installed transformers, as the self-test sees it: which paths are exact, which are
left out, which models are refused. The table is docs/results/architectures.md (`make architectures`).

Each configuration is the architecture's default with nothing neutral: multipliers are 0.5, soft caps 5, so that a term
that is not known shows.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import time
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from statistics import median

import torch
from transformers import AutoConfig, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging

from potstill.engines.selftest import Abilities, Need, abilities_of

NEEDS: frozenset[Need] = frozenset({"scores", "learns", "checkpoints", "cuts"})
LEARNS: frozenset[Need] = frozenset({"scores", "learns"})
NOT_MADE = "no tiny model of it can be made"
_MULTIPLIER = re.compile(r"\w*_multiplier|logits?_scal(e|ing)")
_MISSING = {"num_experts_per_tok": 2, "n_routed_experts": 8, "n_group": 1, "topk_group": 1, "n_shared_experts": 1}
_OPEN = {
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128},
    "nemotron": {"num_key_value_heads": 8},
    "lfm2_moe": {"layer_types": ["conv", "conv", "full_attention"] * 10 + ["conv", "conv"]},
}
"""What some default configurations leave open."""
_CAP = re.compile(r"\w*soft_?cap(ping)?")


def configs(only: list[str]) -> Iterator[tuple[str, PretrainedConfig | str]]:
    """Of each architecture, or why there is none."""
    for kind in sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        if only and kind not in only:
            continue
        try:
            config = AutoConfig.for_model(kind, **_OPEN.get(kind, {}))
        except Exception as error:
            yield kind, str(error).splitlines()[0]
            continue
        for part in (config, *(getattr(config, name, None) for name in config.sub_configs)):
            if isinstance(part, PretrainedConfig):
                _leave_nothing_neutral(part)
        yield kind, config


def _leave_nothing_neutral(config: PretrainedConfig) -> None:
    for name, value in list(vars(config).items()):
        if value is None and name in _MISSING:
            setattr(config, name, _MISSING[name])
        elif isinstance(value, float) and _MULTIPLIER.fullmatch(name):
            setattr(config, name, 0.5)
        elif isinstance(value, float) and _CAP.fullmatch(name):
            setattr(config, name, 5.0)


def row(kind: str, found: Abilities) -> tuple[str, str]:
    """The kind of outcome, and a line of the table."""
    cells = ["yes" if fault is None else "no" for fault in asdict(found).values()]
    refused = found.refusal(NEEDS)
    faults = "; ".join(f"{name.replace('_', ' ')}: {fault}" for name, fault in asdict(found).items() if fault)
    if found.logits is not None and NOT_MADE in found.logits:
        return "not made", f"| {kind} | {_clean(found.logits)} |"
    verdict = "used" if refused is None else f"refused where a recipe needs it: {refused[0]}"
    outcome = "refused" if found.refusal(LEARNS) is not None else "used"
    return outcome, f"| {kind} | {' | '.join(cells)} | {_clean(verdict if refused else faults)} |"


def _clean(text: str) -> str:
    return " ".join(text.replace("|", "/").split())[:160]


def page(rows: dict[str, list[str]], command: str, seconds: list[float]) -> str:
    names = [name.replace("_", " ") for name in Abilities.__slots__]
    table = [f"| architecture | {' | '.join(names)} | why not |", "|---" * (len(names) + 2) + "|"]
    used, refused, unmade = rows["used"], rows["refused"], rows["not made"]
    lines = [
        "# Architectures",
        "",
        f"Written by `{command}` in {sum(seconds) / 60:.1f} minutes of one thread: Potstill {version('potstill')}, "
        f"torch {version('torch')}, transformers {version('transformers')}. All paths of an architecture took "
        f"{median(seconds):.1f} s of processor time in the median, {sum(one > 2 for one in seconds)} of {len(seconds)} "
        f"more than 2 s, at most {max(seconds):.0f} s: once per configuration, and a run tests the paths that it "
        "takes.",
        "",
        f"{len(used)} architectures are computed exactly (within 1e-4 of plain transformers, fp32): on the fast path "
        f"where it says yes, on a plainer one where it says no. {len(refused)} are refused by name before anything is "
        f"paid for. Of {len(unmade)} others no model can be made from the default configuration: they are refused too.",
        "",
        "packed rows: documents without padding. padded rows: where packed ones are not exact. kept prefix: what "
        "prompts begin with is computed once. slots: answers side by side, else row by row with the model's own cache, "
        "else without a cache. gradients, checkpointing: of every weight. cut layers: a shorter model, cut and saved.",
        "",
        "## Used",
        "",
        *table,
        *used,
        "",
        "## Refused",
        "",
        *table,
        *refused,
        "",
        "## No model of the default configuration",
        "",
        "| architecture | why |",
        "|---|---|",
        *unmade,
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--write", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    rows: dict[str, list[str]] = {"used": [], "refused": [], "not made": []}
    seconds = list[float]()
    for kind, config in configs(given.only):
        began = time.process_time()
        with contextlib.redirect_stderr(io.StringIO()):
            if isinstance(config, str):
                outcome, line = "not made", f"| {kind} | {_clean(config)} |"
            else:
                outcome, line = row(kind, abilities_of(config))
        rows[outcome].append(line)
        seconds.append(time.process_time() - began)
        print(f"{seconds[-1]:5.1f} s  {outcome:8}  {line}", flush=True)
    if given.write is not None:
        text = page(rows, "make architectures", seconds)
        given.write.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
