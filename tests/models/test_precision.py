"""fp32 or bf16: the recipe decides, then POTSTILL_PRECISION, then the hardware, the same with torch and without."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
import torch

from potstill.cli import execute
from potstill.errors import InputError
from potstill.models import precision as module
from potstill.models.load import compute_dtype
from potstill.models.precision import VARIABLE, Setting, cpu_multiplies_bf16, precision, resolved, spoken
from potstill.sizing.pace import GPUS

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ("recipes/quickstart.yaml", "recipes/answers.yaml")


def test_the_cpus_flags_say_what_torch_says() -> None:
    assert cpu_multiplies_bf16() == torch.cpu._is_avx512_bf16_supported()


@pytest.mark.parametrize(
    ("flags", "bf16"),
    [("fpu avx2 avx512f avx512_bf16 amx_bf16", True), ("fpu avx2 avx512f avx512_bf16x", False), (None, False)],
)
def test_the_hardware_decides_where_nobody_did(
    flags: str | None, bf16: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: {flags}\nbugs\t\t: avx512_bf16\n" if flags else "")
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(module, "_DRIVERS", ())
    monkeypatch.setattr(module, "Path", lambda _: tmp_path / "cpuinfo")
    cpu_multiplies_bf16.cache_clear()
    try:
        assert resolved("auto") == ("bf16" if bf16 else "fp32")
        assert spoken("auto") == ("bf16 (this CPU multiplies it)" if bf16 else "fp32 (this CPU has no bf16 arithmetic)")
    finally:
        cpu_multiplies_bf16.cache_clear()


def test_a_gpu_is_left_to_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(module, "_DRIVERS", (str(tmp_path),))
    assert spoken("auto") == "bf16 on a GPU that multiplies it, else fp32"
    for answer, found in ((True, "bf16"), (False, "fp32"), (None, "bf16" if cpu_multiplies_bf16() else "fp32")):
        monkeypatch.setattr("potstill.models.gpu.multiplies_bf16", lambda answer=answer: answer)
        assert resolved("auto") == found


def test_the_recipe_comes_before_the_environment_and_that_before_the_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    for named, other in (("fp32", "bf16"), ("bf16", "fp32")):
        monkeypatch.setenv(VARIABLE, named)
        assert resolved("auto") == named and spoken("auto") == f"{named} (POTSTILL_PRECISION)"
        with precision("auto"):
            assert str(compute_dtype()) == {"fp32": "torch.float32", "bf16": "torch.bfloat16"}[named]
        monkeypatch.setenv(VARIABLE, other)
        assert resolved(named) == named and spoken(named) == f"{named} (train.precision)"
    monkeypatch.setenv(VARIABLE, "")
    assert resolved("auto") in ("fp32", "bf16")


def test_each_stage_has_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inner ones end with their block, and two threads do not hear of each other."""
    monkeypatch.setenv(VARIABLE, "fp32")
    with precision("bf16"):
        with precision("fp32"):
            assert compute_dtype() == torch.float32
        with pytest.raises(KeyError), precision("fp32"):
            raise KeyError
        assert compute_dtype() == torch.bfloat16
    assert compute_dtype() == torch.float32
    both_inside = Barrier(2)

    def inside(setting: Setting) -> torch.dtype:
        with precision(setting):
            both_inside.wait(10)
            return compute_dtype()

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(inside, ("fp32", "bf16"))) == [torch.float32, torch.bfloat16]


def test_another_word_in_the_environment_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(VARIABLE, "fp16")
    with pytest.raises(InputError, match=r"POTSTILL_PRECISION is 'fp16'.*set it to fp32 or bf16"):
        resolved("auto")
    assert resolved("fp32") == "fp32"
    assert execute(["check", str(ROOT / "recipes/quickstart.yaml")]) == 2
    assert "POTSTILL_PRECISION is 'fp16'" in capsys.readouterr().err


@pytest.mark.parametrize("recipe", RECIPES)
def test_check_shows_it(recipe: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv(VARIABLE, "bf16")
    assert execute(["check", recipe]) == 0
    assert "precision: bf16 (POTSTILL_PRECISION)\n" in capsys.readouterr().out
    assert execute(["check", recipe, "--json", "--set", "train.precision=fp32"]) == 0
    assert '"precision": "fp32 (train.precision)"' in capsys.readouterr().out


def test_a_gpu_takes_longer_in_fp32() -> None:
    assert all(gpu.flops_per_second(half=2) > 1.9 * gpu.flops_per_second(half=4) for gpu in GPUS)
