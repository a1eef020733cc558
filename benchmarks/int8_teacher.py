"""A teacher in int8 beside itself as it is: how far its distribution moves, its bytes and its speed.

`make bench-int8` runs it. SmolLM2-135M reads the first movie reviews of benchmarks/train.py in the dtype that the
machine computes in, a few documents packed in a pass; the two take turns, after one pass outside the clock.
"""

from __future__ import annotations

import argparse
import copy
import platform
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pages import computed_in, replace_table
from torch import Tensor
from transformers import PreTrainedModel

from potstill.engines.row_logits import row_logits
from potstill.models.documents import Documents
from potstill.models.forward import decoder_layers, hidden_rows
from potstill.models.int8 import to_int8
from potstill.models.load import load
from potstill.models.locate import locate
from train import MODEL, tokenised


@dataclass(frozen=True, slots=True)
class Measured:
    layers: int
    whole: int
    logp_TV: Tensor
    rates: list[float] = field(default_factory=list[float])


def size(modules: Sequence[Any]) -> int:
    """Bytes, each tensor counted once."""
    return sum({p.data_ptr(): p.nbytes for module in modules for p in module.parameters()}.values())


@torch.no_grad()
def logp(model: PreTrainedModel, documents: Documents) -> Tensor:
    hidden_TD = hidden_rows(model, documents, torch.arange(len(documents.ids_T)))
    return row_logits(model, hidden_TD).log_softmax(-1)


@torch.no_grad()
def rate(model: PreTrainedModel, documents: Documents) -> float:
    """Tokens per second, without the head."""
    begin = time.perf_counter()
    hidden_rows(model, documents, torch.tensor([len(documents.ids_T) - 1]))
    return len(documents.ids_T) / (time.perf_counter() - begin)


def table(found: dict[str, Measured]) -> str:
    plain, int8 = found.values()
    nats_T = (plain.logp_TV.exp() * (plain.logp_TV - int8.logp_TV)).sum(-1)
    same = (plain.logp_TV.argmax(-1) == int8.logp_TV.argmax(-1)).float().mean().item()
    moved = {"as it is": "-", "int8": f"{nats_T.mean():.4f} / {nats_T.quantile(0.99):.4f} / {same:.1%}"}
    head = f"| {computed_in()}, {len(nats_T):,} tokens | KL, mean / 99 % / same first token |"
    lines = [f"{head} layers, MB | all, MB | tokens/s |", "|---|---|---|---|---|"]
    for name, each in found.items():
        speed = f"{statistics.median(each.rates):,.0f} ({min(each.rates):,.0f} to {max(each.rates):,.0f})"
        lines.append(f"| {name} | {moved[name]} | {each.layers / 1e6:.1f} | {each.whole / 1e6:.1f} | {speed} |")
    return "\n".join(lines)


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--texts", type=int, default=8)
    asked.add_argument("--rounds", type=int, default=5)
    asked.add_argument("--write", type=Path, help="page of results whose table is replaced")
    options = asked.parse_args()
    loaded = load(locate(MODEL))
    plain = loaded.model.requires_grad_(False)
    models = {"as it is": plain, "int8": to_int8(copy.deepcopy(plain), name=MODEL)}
    texts = [(*prompt, *said) for prompt, said in tokenised(loaded.folder, options.texts)]
    documents = Documents.of(texts, plain.device)
    found = {
        name: Measured(size(decoder_layers(model)), size([model]), logp(model, documents))
        for name, model in models.items()
    }
    for _ in range(options.rounds):
        for name, model in models.items():
            found[name].rates.append(rate(model, documents))
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(made := table(found))
    if options.write:
        replace_table(options.write, "int8 teacher", made)


if __name__ == "__main__":
    main()
