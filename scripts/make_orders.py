# ruff: noqa: E501
"""Write order e-mails and the JSON object that each asks for: `make_orders.py data` writes orders.jsonl to learn from
and orders_test.jsonl to be examined on; no e-mail is in both.

Procedural, the same for the same seed, no two alike. Small models half-know how to read them, so that checking and
choosing among several answers has something to do.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path

NAMES = "Ana Ruiz,Tom Becker,Lena Novak,Omar Haddad,Grace Lim,Ivan Petrov,Marie Dubois,Kofi Mensah,Sara Lindt,Jack Moore,Nora Quinn,Paulo Reis,Yuki Tanaka,Eva Horvat,Samuel Okoye,Clara Weiss"
ITEMS = "desk lamps,office chairs,coffee mugs,garden hoses,bath towels,wall clocks,phone cases,steel bolts,picture frames,rain jackets,soup bowls,bike helmets,paint brushes,door handles,light bulbs,note books"
CITIES = "Lisbon,Hamburg,Prague,Cairo,Singapore,Sofia,Lyon,Accra,Zurich,Leeds,Dublin,Porto,Osaka,Zagreb,Lagos,Vienna"
FORMS = (
    "Hello, my name is {name}. I would like to order {quantity} {item}. Please ship them to {city}. I will pay {total} dollars in all.",
    "Hi there! {name} here, writing from {city}. We need {quantity} {item} this week; the price of {total} dollars is fine.",
    "Dear team, please send {quantity} {item} to our shop in {city}. The total of {total} dollars was agreed by phone. Best wishes, {name}",
    "Could you deliver {quantity} {item}? Your quote was {total} dollars. The address is in {city}, ask for {name}.",
    "Order from {name}: {quantity} {item}, delivery to {city}, amount due {total} dollars. Thank you!",
    "Good morning, this is {name} again. Last time you sent {item} to {city}; I want {quantity} more of them for {total} dollars.",
)


def orders(count: int, seed: int) -> Iterator[dict[str, str]]:
    draw = random.Random(seed)
    seen: set[str] = set()
    while len(seen) < count:
        order = {
            "name": draw.choice(NAMES.split(",")),
            "item": draw.choice(ITEMS.split(",")),
            "quantity": draw.randint(2, 60),
            "city": draw.choice(CITIES.split(",")),
            "total": draw.randint(10, 900),
        }
        text = draw.choice(FORMS).format(**order)
        if text not in seen:
            seen.add(text)
            yield {"text": text, "gold": json.dumps(order)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=320)
    parser.add_argument("--test", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    made = list(orders(asked.count + asked.test, asked.seed))
    for name, some in {"orders": made[: asked.count], "orders_test": made[asked.count :]}.items():
        text = "".join(json.dumps(order) + "\n" for order in some)
        (asked.folder / f"{name}.jsonl").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
