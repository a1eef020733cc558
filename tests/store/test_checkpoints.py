"""A checkpoint that was damaged is told from a whole one, whatever happened to it, and the one before it is used."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from potstill.store.checkpoints import Checkpoints, tensors_in, write_tensors

KILLED_WHILE_SAVING = """
import sys
from pathlib import Path
import torch
from potstill.store.checkpoints import Checkpoints, write_tensors
checkpoints, step = Checkpoints(Path(sys.argv[1])), int(sys.argv[2])
while True:
    step += 1
    with checkpoints.draft(step, {"tokens": step}) as draft:
        write_tensors(draft, {"w": torch.full((200_000,), float(step))})
    print(step, flush=True)
"""


def save(checkpoints: Checkpoints, step: int, tensors: dict[str, torch.Tensor], score: float | None = None) -> None:
    with checkpoints.draft(step, {"tokens": step}, score=score) as draft:
        write_tensors(draft, tensors)


def filled(folder: Path, *steps: int) -> Checkpoints:
    checkpoints = Checkpoints(folder)
    for step in steps:
        save(checkpoints, step, {"w": torch.full((300,), float(step)), "rng": torch.get_rng_state()})
    return checkpoints


def damage(place: Path, draw: random.Random) -> None:
    """A flipped bit, a lost end, a lost file, a strange end, or the manifest of another checkpoint."""
    path = draw.choice(sorted(place.iterdir()))
    data = bytearray(path.read_bytes())
    match draw.choice(["bit", "bit", "bit", "cut", "lost", "longer", "foreign"]):
        case "bit":
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        case "cut":
            del data[draw.randrange(len(data)) :]
        case "longer":
            data += b" "
        case "lost":
            path.unlink()
            return
        case _:
            shutil.copy(place.parent / "step-000010" / "manifest.json", place / "manifest.json")
            return
    path.write_bytes(data)


@pytest.mark.parametrize("seed", range(40))
def test_a_damaged_newest_is_told_and_the_one_before_it_used(tmp_path: Path, seed: int) -> None:
    checkpoints = filled(tmp_path, 10, 20)
    damage(tmp_path / "step-000020", random.Random(seed))
    found = checkpoints.newest_unread()
    assert found is not None and found[1] == {"tokens": 10, "step": 10}
    assert torch.equal(tensors_in(found[0])["w"], torch.full((300,), 10.0))
    assert len(checkpoints.damage) == 1 and "step-000020' is damaged: " in checkpoints.damage[0]


def test_no_bit_of_a_manifest_may_differ(tmp_path: Path) -> None:
    filled(tmp_path, 1)
    path = tmp_path / "step-000001" / "manifest.json"
    whole = path.read_bytes()
    for at in range(8 * len(whole)):
        data = bytearray(whole)
        data[at // 8] ^= 1 << at % 8
        path.write_bytes(data)
        assert Checkpoints(tmp_path).newest_unread() is None, f"bit {at}"


def test_where_all_are_damaged_there_is_none(tmp_path: Path) -> None:
    checkpoints = filled(tmp_path, 1, 2)
    for path in tmp_path.glob("step-*/state.json"):
        path.write_text(json.dumps({"step": 5}))
    assert checkpoints.newest_unread() is None and len(checkpoints.damage) == 2


def test_tensors_exchanged_for_other_whole_ones_are_damage(tmp_path: Path) -> None:
    checkpoints = filled(tmp_path, 1, 2)
    save_file({"w": torch.zeros(300)}, tmp_path / "step-000002" / "tensors.safetensors")
    found = checkpoints.newest_unread()
    assert found is not None and found[1]["step"] == 1


def test_training_that_goes_on_from_an_earlier_one_replaces_what_was_damaged(tmp_path: Path) -> None:
    checkpoints = filled(tmp_path, 10, 20)
    (tmp_path / "step-000020" / "state.json").unlink()
    save(checkpoints, 15, {"w": torch.ones(1)})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000010", "step-000015"]
    save(checkpoints, 15, {"w": torch.zeros(1)})
    found = checkpoints.newest_unread()
    assert found is not None and not tensors_in(found[0])["w"].any()


@pytest.mark.parametrize(("better", "best"), [("smaller", 2), ("larger", 3)])
def test_the_best_is_kept_beside_the_last(tmp_path: Path, better: str, best: int) -> None:
    checkpoints = Checkpoints(tmp_path, better=better)  # type: ignore[arg-type]
    for step, score in enumerate([0.5, 0.2, 0.9, 0.4, None], start=1):
        save(checkpoints, step, {"w": torch.zeros(1)}, score)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted({f"step-{best:06d}", "step-000004", "step-000005"})
    found = checkpoints.best_unread()
    assert found is not None and found[1]["step"] == best
    (tmp_path / f"step-{best:06d}" / "state.json").unlink()
    found = checkpoints.best_unread()
    assert found is not None and found[1]["step"] == 4 and len(checkpoints.damage) == 1


def test_kept_are_the_last_two_in_order_of_steps_not_of_names(tmp_path: Path) -> None:
    filled(tmp_path, 999_998, 999_999, 1_000_000)
    assert {p.name for p in tmp_path.iterdir()} == {"step-999999", "step-1000000"}


def test_a_process_killed_while_it_saves_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    step = 0
    for round_ in range(3):
        command = [sys.executable, "-c", KILLED_WHILE_SAVING, str(tmp_path), str(step)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(0.05 + 0.013 * round_)
            process.send_signal(signal.SIGKILL)
            said = [int(line) for line in process.stdout.read().split("\n")[:-1]]
        checkpoints = Checkpoints(tmp_path)
        found = checkpoints.newest_unread()
        assert found is not None and not checkpoints.damage
        assert found[1]["step"] >= max(said, default=step + 1)
        assert torch.equal(tensors_in(found[0])["w"], torch.full((200_000,), float(found[1]["step"])))
        step = found[1]["step"]
