"""What a teacher said comes back from the cache, in the bytes it was promised for, and what was damaged does not."""

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill.errors import DiskError, InputError
from potstill.losses import linear_divergence
from potstill.signals import Hidden, Sampled, TopK
from potstill.store.draws import draw
from potstill.store.forms import Form, HiddenForm, SampledForm, TopKForm, ascending_bytes, bytes_per_token
from potstill.store.packing import Packable, pack_ascending, pack_bits, unpack_ascending, unpack_bits
from potstill.store.sealed import Damaged, check_seal, open_sealed, write_sealed
from potstill.store.signals import Identity, SignalsCache, key_of

V = 49_152
WHO = Identity(teacher="t", revision="1", tokenizer="k", template="c", vocabulary=V, dtype="bfloat16")

seeds = st.integers(0, 2**31)


def logits(count: int, vocabulary: int = V, *, seed: int = 0) -> torch.Tensor:
    """Peaked like a language model's: a Zipf of random order, each row with a sharpness of its own."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand((count, vocabulary), generator=generator)
    rank = noise.argsort(-1).argsort(-1).add(1).log()
    return -rank * (1 + 2 * torch.rand((count, 1), generator=generator))


def top_k(logits_NV: torch.Tensor, k: int) -> TopK:
    lse_N = logits_NV.logsumexp(-1)
    top = logits_NV.topk(k, dim=-1)
    return TopK(top.indices, top.values - lse_N[:, None], lse_N)


def hidden(count: int, width: int = 64, *, seed: int = 0, vocabulary: int = 300) -> Hidden:
    """A random walk over positions, channels of unlike means and spreads and now and then a wild number, then a norm,
    as before every head; the head spreads logits by about 3 nats, as SmolLM2's does."""
    generator = torch.Generator().manual_seed(seed)
    walk = torch.randn((count, width), generator=generator)
    for row in range(1, count):
        walk[row] = 0.8 * walk[row - 1] + 0.6 * walk[row]
    walk[torch.rand((count, width), generator=generator) < 0.002] *= 4
    walk += torch.randn(width, generator=generator)
    spread = torch.randn(width, generator=generator).exp()
    hidden_ND = walk / walk.square().mean(-1, keepdim=True).sqrt() * spread
    head_VD = torch.randn((vocabulary, width), generator=generator) / spread / width**0.5 * 3
    return Hidden(hidden_ND, head_VD)


def keys(count: int) -> list[bytes]:
    return [key_of([i], [1, 2]) for i in range(count)]


def as_dense(found: Sampled, vocabulary: int) -> torch.Tensor:
    return torch.zeros(len(found.ids_NK), vocabulary, dtype=torch.long).scatter_add_(
        -1, found.ids_NK.long(), found.counts_NK.long()
    )


def top(found: Packable) -> TopK:
    assert isinstance(found, TopK)
    return found


def drawn(found: Packable) -> Sampled:
    assert isinstance(found, Sampled)
    return found


# laws of the packing


@given(seed=seeds, bits=st.integers(0, 32), count=st.integers(1, 5), k=st.integers(0, 40))
def test_bits_come_back(seed: int, bits: int, count: int, k: int) -> None:
    values = np.random.default_rng(seed).integers(0, 1 << bits, (count, k))
    packed = pack_bits(values, bits)
    assert packed.shape == (count, -(-k * bits // 8))
    assert (unpack_bits(packed, bits, k) == values).all()


@given(seed=seeds, vocabulary=st.integers(1, 300_000), share=st.floats(0, 1))
def test_ascending_ids_come_back(seed: int, vocabulary: int, share: float) -> None:
    k = max(1, min(vocabulary, round(share**3 * min(vocabulary, 500))))
    rng = np.random.default_rng(seed)
    ids = np.stack([np.sort(rng.choice(vocabulary, k, replace=False)) for _ in range(3)])
    low, high = pack_ascending(ids, vocabulary)
    assert low.shape[1] + high.shape[1] == ascending_bytes(k, vocabulary)
    assert (unpack_ascending(low, high, k, vocabulary) == ids).all()


@given(seed=seeds, vocabulary=st.sampled_from([7, 500, 70_000]), k=st.integers(1, 70), temper=st.floats(0.01, 30))
@settings(max_examples=15)
def test_a_top_k_comes_back_within_its_bound(
    tmp_path_factory: pytest.TempPathFactory, seed: int, vocabulary: int, k: int, temper: float
) -> None:
    k = min(k, vocabulary)
    given_ = top_k(logits(5, vocabulary, seed=seed) * temper, k)
    who, form = replace(WHO, vocabulary=vocabulary), TopKForm(k)
    with SignalsCache.open(tmp_path_factory.mktemp("c"), who, form) as cache:
        cache.append_all([(b"k" * 16, given_)])
        cache.flush()
        found = top(cache.read([b"k" * 16]))
    order = given_.ids_NK.argsort(-1)
    logp = given_.logp_NK.gather(-1, order)
    assert torch.equal(found.ids_NK, given_.ids_NK.gather(-1, order))
    assert found.lse_N is not None and torch.equal(found.lse_N, given_.lse_N)  # type: ignore[arg-type]
    reach = logp.max(-1, keepdim=True).values - logp.min(-1, keepdim=True).values
    assert ((found.logp_NK - logp).abs() <= reach / 4080 + 1e-5).all()
    tail = 1 - logp.double().exp().sum(-1)
    torch.testing.assert_close(1 - found.logp_NK.double().exp().sum(-1), tail.clamp_min(0), atol=5e-7, rtol=0)


def test_a_probability_of_zero_stays_zero(tmp_path: Path) -> None:
    logp = torch.tensor([[0.5, 0.25, 0.0, 0.125]]).log()
    with SignalsCache.open(tmp_path, WHO, TopKForm(4)) as cache:
        cache.append_all([(keys(1)[0], TopK(torch.tensor([[3, 9, 4, 1]]), logp))])
        cache.flush()
        found = top(cache.read(keys(1)))
    assert found.ids_NK.tolist() == [[1, 3, 4, 9]] and found.lse_N is None
    torch.testing.assert_close(found.logp_NK.exp(), torch.tensor([[0.125, 0.5, 0.0, 0.25]]), atol=1e-4, rtol=0)


@given(seed=seeds, vocabulary=st.sampled_from([3, 65_536, 65_537, 262_208]), draws=st.integers(1, 70))
@settings(max_examples=15)
def test_draws_come_back_exactly_in_any_order(
    tmp_path_factory: pytest.TempPathFactory, seed: int, vocabulary: int, draws: int
) -> None:
    who = replace(WHO, vocabulary=vocabulary)
    given_ = [draw(logits(n, vocabulary, seed=seed + n), draws=draws, temperature=1, key=keys(n)[-1]) for n in (1, 4)]
    with SignalsCache.open(tmp_path_factory.mktemp("c"), who, SampledForm(draws)) as cache:
        for key, one in zip(keys(2), given_, strict=True):
            cache.append_all([(key, one)])
        cache.flush()
        found = drawn(cache.read(keys(2)[::-1]))
    expected = torch.cat([as_dense(one, vocabulary) for one in given_[::-1]])
    assert torch.equal(as_dense(found, vocabulary), expected)


@given(seed=seeds)
@settings(max_examples=5)
def test_draws_are_unbiased_and_depend_on_the_key_alone(seed: int) -> None:
    z = torch.randn(1, 8, generator=torch.Generator().manual_seed(seed)) * 2
    total = sum(as_dense(draw(z, draws=20, temperature=2, key=key), 8) for key in keys(200))
    assert isinstance(total, torch.Tensor)
    # A stratified count is within 2 of S p, so the mean of 200 of them is off by 0.5 once in millions.
    torch.testing.assert_close(total / 200, 20 * torch.softmax(z.float() / 2, -1), atol=0.5, rtol=0)
    one, two = (draw(z, draws=20, temperature=2, key=b"x" * 16) for _ in range(2))
    assert torch.equal(one.ids_NK, two.ids_NK) and torch.equal(one.counts_NK, two.counts_NK)


@given(seed=seeds)
@settings(max_examples=5)
def test_int8_hidden_states_say_the_same(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    live = hidden(1_000, seed=seed)
    with SignalsCache.open(tmp_path_factory.mktemp("c"), replace(WHO, vocabulary=300), HiddenForm("int8")) as cache:
        cache.append_all([(b"k" * 16, live)])
        cache.flush()
        found = cache.read([b"k" * 16])
    assert isinstance(found, Hidden) and torch.equal(found.head_VD, live.head_VD)
    nats = linear_divergence(found.hidden_ND, found.head_VD, teacher=live)
    assert nats.mean() <= 1e-3


def test_bf16_hidden_states_and_everything_about_the_head_come_back_exactly(tmp_path: Path) -> None:
    made = hidden(50)
    live = Hidden(made.hidden_ND.bfloat16(), made.head_VD.bfloat16(), torch.randn(300), 0.5, 30.0)
    with SignalsCache.open(tmp_path, WHO, HiddenForm("bf16"), shard_tokens=20) as cache:
        for i, key in enumerate(keys(5)):
            cache.append_all([(key, replace(live, hidden_ND=live.hidden_ND[10 * i : 10 * i + 10]))])
    with SignalsCache.open(tmp_path, WHO, HiddenForm("bf16")) as cache:
        found = cache.read(keys(5))
    assert isinstance(found, Hidden) and (found.logit_scale, found.softcap) == (0.5, 30.0)
    assert torch.equal(found.hidden_ND, live.hidden_ND) and torch.equal(found.head_VD, live.head_VD)
    assert found.bias_V is not None and torch.equal(found.bias_V, live.bias_V)  # type: ignore[arg-type]


# sizes


def test_sizes_are_promised_and_kept(tmp_path: Path) -> None:
    z = logits(400)
    cases: list[tuple[Form, Callable[[torch.Tensor, bytes], Packable], float]] = [
        (TopKForm(64), lambda z, _: top_k(z, 64), 200),
        (SampledForm(32), lambda z, key: draw(z, draws=32, temperature=1, key=key), 40),
        (HiddenForm("int8"), lambda z, _: hidden(len(z), 576), 576 + 8),
        (HiddenForm("bf16"), lambda z, _: hidden(len(z), 576), 2 * 576),
    ]
    for n, (form, make, most) in enumerate(cases):
        with SignalsCache.open(tmp_path / str(n), WHO, form) as cache:
            distinct = None
            for i, key in enumerate(keys(40)):
                signal_ = make(z[i % 4 * 100 : i % 4 * 100 + 100], key)
                cache.append_all([(key, signal_)])
                if isinstance(signal_, Sampled):
                    distinct = (distinct or 0) + float((signal_.counts_NK > 0).sum()) / 4_000
            cache.flush()
        shards = sorted((tmp_path / str(n)).glob("shard-*"))
        each = np.concatenate([open_sealed(path)[1]["rows"] for path in shards])
        examples, rows, size = len(each), int(each.sum()), sum(path.stat().st_size for path in shards)
        promised = bytes_per_token(form, V, 576, distinct=distinct, tokens_per_example=100)
        assert (examples, rows) == (40, 4_000)
        assert size / rows == pytest.approx(promised, rel=0.05), form
        assert promised <= most + 0.2, form
        print(f"{form}: {size / rows:.1f} B per token, {promised:.1f} promised")


# resume


def filled(folder: Path, count: int = 12, *, shard_tokens: int = 25) -> list[bytes]:
    with SignalsCache.open(folder, WHO, SampledForm(8), shard_tokens=shard_tokens) as cache:
        for i, key in enumerate(keys(count)):
            cache.append_all([(key, draw(logits(10, 100, seed=i), draws=8, temperature=1, key=key))])
    return keys(count)


def check_whole(cache: SignalsCache, some: list[bytes]) -> None:
    for key in some:
        expected = draw(logits(10, 100, seed=keys(100).index(key)), draws=8, temperature=1, key=key)
        assert torch.equal(as_dense(drawn(cache.read([key])), 100), as_dense(expected, 100))


def test_what_is_missing_is_asked_for_once_and_in_order(tmp_path: Path) -> None:
    filled(tmp_path, 5)
    with SignalsCache.open(tmp_path, WHO, SampledForm(8)) as cache:
        asked = [*keys(8), *keys(8)]
        assert cache.missing(asked) == keys(8)[5:]
        cache.append_all([(keys(8)[5], draw(logits(2, 100), draws=8, temperature=1, key=b""))])
        assert cache.missing(asked) == keys(8)[6:]
        with pytest.raises(InputError, match="has no signals of 2 of 7 examples"):
            cache.read(keys(7))


def test_a_reader_sees_what_a_writer_wrote_since(tmp_path: Path) -> None:
    reader = SignalsCache.open(tmp_path, WHO, SampledForm(8))
    filled(tmp_path, 3)
    check_whole(reader, keys(3))


def test_there_is_one_writer(tmp_path: Path) -> None:
    one = draw(logits(1, 100), draws=8, temperature=1, key=b"")
    with SignalsCache.open(tmp_path, WHO, SampledForm(8)) as first:
        first.append_all([(keys(1)[0], one)])
        second = SignalsCache.open(tmp_path, WHO, SampledForm(8))
        with pytest.raises(InputError, match=r"another potstill process is writing .*; wait for it"):
            second.append_all([(keys(2)[1], one)])
    second.append_all([(keys(2)[1], one)])
    second.flush()
    assert second.missing(keys(2)) == []


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_signals_cache import *
with SignalsCache.open(Path(sys.argv[1]), WHO, SampledForm(8), shard_tokens=20) as cache:
    for key in cache.missing(keys(60)):
        cache.append_all([(key, draw(logits(10, 100, seed=keys(100).index(key)), draws=8, temperature=1, key=key))])
        print(keys(100).index(key), flush=True)
"""


def test_a_killed_writer_loses_the_unwritten_and_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    for wait in (3, 30):
        command = [sys.executable, "-c", KILLED, str(tmp_path / "a"), str(Path(__file__).parent)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            said = [int(process.stdout.readline()) for _ in range(wait)][-1]
            process.send_signal(signal.SIGKILL)
            said = max([said, *map(int, process.stdout.read().split()[:-1])])
        with SignalsCache.open(tmp_path / "a", WHO, SampledForm(8)) as cache:
            missing = cache.missing(keys(60))
            assert not cache.damage and len(keys(60)) - len(missing) >= said - 2
            check_whole(cache, [key for key in keys(60) if key not in missing])
    with SignalsCache.open(tmp_path / "a", WHO, SampledForm(8), shard_tokens=20) as cache:
        for key in cache.missing(keys(60)):
            cache.append_all([(key, draw(logits(10, 100, seed=keys(100).index(key)), draws=8, temperature=1, key=key))])
    filled(tmp_path / "b", 60, shard_tokens=20)
    broken, unbroken = ({p.name: p.read_bytes() for p in (tmp_path / n).glob("*.safetensors")} for n in ("a", "b"))
    assert broken == unbroken


# identity


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("teacher", "u"),
        ("revision", "2"),
        ("tokenizer", "x"),
        ("template", "y"),
        ("vocabulary", 50_000),
        ("dtype", "float32"),
        ("temperature", 2.0),
    ],
)
def test_another_identity_is_refused_by_the_field(tmp_path: Path, field: str, value: object) -> None:
    filled(tmp_path, 1)
    was = getattr(WHO, field)
    with pytest.raises(InputError) as refused:
        SignalsCache.open(tmp_path, replace(WHO, **{field: value}), SampledForm(8))
    assert f"{field} is {was!r} there, but {value!r} here; give these signals another folder" in str(refused.value)


@pytest.mark.parametrize(
    ("form", "said"),
    [
        (SampledForm(9), "draws is 8 there, but 9 here"),
        (TopKForm(8), "form is 'SampledForm' there, but 'TopKForm' here"),
        (HiddenForm("int8"), "form is 'SampledForm' there"),
    ],
)
def test_another_form_is_refused(tmp_path: Path, form: Form, said: str) -> None:
    filled(tmp_path, 1)
    with pytest.raises(InputError, match=said):
        SignalsCache.open(tmp_path, WHO, form)


@pytest.mark.parametrize(
    ("form", "signal_", "said"),
    [
        (TopKForm(2), TopK(torch.tensor([[1, 1]]), torch.tensor([[-1.0, -1.0]])), "names a token twice"),
        (TopKForm(2), TopK(torch.tensor([[1]]), torch.tensor([[-1.0]])), "has 1 candidates per token, the cache 2"),
        (TopKForm(1), TopK(torch.tensor([[V]]), torch.tensor([[-1.0]])), "of a vocabulary of 49152"),
        (TopKForm(1), TopK(torch.tensor([[1]]), torch.tensor([[float("nan")]])), "is NaN or above 0"),
        (TopKForm(1), TopK(torch.tensor([[1]]), torch.tensor([[-1.0]]), None, 2.0), "taken at temperature 2.0"),
        (SampledForm(3), Sampled(torch.tensor([[1, 2]]), torch.tensor([[1, 1]])), "counts are not 3 draws"),
        (HiddenForm("bf16"), Hidden(torch.full((1, 2), torch.inf), torch.zeros(3, 2)), "are not finite"),
        (HiddenForm("bf16"), Sampled(torch.tensor([[1]]), torch.tensor([[1]])), "is a Sampled"),
    ],
)
def test_a_signal_that_does_not_fit_is_refused(tmp_path: Path, form: Form, signal_: Packable, said: str) -> None:
    with SignalsCache.open(tmp_path, WHO, form) as cache, pytest.raises(InputError, match=said):
        cache.append_all([(keys(1)[0], signal_)])


# damage


@pytest.mark.parametrize("seed", range(40))
def test_a_damaged_shard_is_never_used_and_its_examples_are_missing(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    filled(tmp_path)
    path = chance.choice(sorted(tmp_path.glob("shard-*")))
    lost = open_sealed(path)[1]["key"]
    lost_keys = [bytes(key) for key in np.array(lost)]
    data = bytearray(path.read_bytes())
    if chance.random() < 0.7:
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    else:
        del data[chance.randrange(len(data)) :]
    path.write_bytes(data)
    with SignalsCache.open(tmp_path, WHO, SampledForm(8), shard_tokens=25) as cache:
        with pytest.raises((DiskError, InputError)):
            cache.read(keys(12))
        assert cache.missing(keys(12)) == sorted(lost_keys, key=keys(12).index)
        assert len(cache.damage) == 1 and f"'{path}' are damaged: " in cache.damage[0]
        for key in cache.missing(keys(12)):
            cache.append_all([(key, draw(logits(10, 100, seed=keys(100).index(key)), draws=8, temperature=1, key=key))])
        cache.flush()
        check_whole(cache, keys(12))
    assert not path.exists()


def test_a_damaged_head_is_brought_back_by_one_example(tmp_path: Path) -> None:
    live = hidden(10)
    with SignalsCache.open(tmp_path, WHO, HiddenForm("int8")) as cache:
        cache.append_all([(keys(1)[0], live)])
    path = tmp_path / "head.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with SignalsCache.open(tmp_path, WHO, HiddenForm("int8")) as cache:
        with pytest.raises(DiskError, match="one example brings it back"):
            cache.read(keys(1))
        assert cache.missing(keys(1)) == keys(1)
        cache.append_all([(keys(1)[0], live)])
        cache.flush()
        found = cache.read(keys(1))
    assert isinstance(found, Hidden) and torch.equal(found.head_VD, live.head_VD)


def test_no_bit_of_a_sealed_file_may_differ(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_sealed(path, {"a": torch.arange(4)}, {"x": 1})
    whole = path.read_bytes()
    check_seal(path)
    for at in range(8 * len(whole)):
        data = bytearray(whole)
        data[at // 8] ^= 1 << at % 8
        path.write_bytes(data)
        with pytest.raises(Damaged):
            check_seal(path)
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        with pytest.raises(Damaged):
            check_seal(path)


@pytest.mark.bench
def test_sampled_signals_are_read_at_a_million_tokens_per_second(tmp_path: Path) -> None:
    z, count = logits(200), 1_000
    with SignalsCache.open(tmp_path, WHO, SampledForm(32)) as cache:
        one = draw(z, draws=32, temperature=1, key=b"x" * 16)
        for key in keys(count):
            cache.append_all([(key, one)])
    with SignalsCache.open(tmp_path, WHO, SampledForm(32)) as cache:
        start = time.perf_counter()
        assert cache.missing(keys(count)) == []
        order = random.Random(0).sample(keys(count), count)
        rows = sum(len(drawn(cache.read(order[i : i + 16])).ids_NK) for i in range(0, count, 16))
        speed = rows / (time.perf_counter() - start)
    size = sum(path.stat().st_size for path in tmp_path.glob("shard-*"))
    print(f"\n{speed / 1e6:.2f} M tokens/s, {size / rows:.1f} B per token")
    assert speed >= 1e6
