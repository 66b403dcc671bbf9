"""The lens against plain hooked forward passes of the whole model, with tools that share nothing with it."""

import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from saebench.errors import NonFiniteError, SaebenchError, UsageError
from saebench.hookpoint import HookPoint
from saebench.lens import Activations, Lens
from saebench.lens.units import _digest
from saebench.streams import generator
from saebench.subject import Subject
from tests.raising import raises
from tests.tiny_models import LAYERS, VOCABULARY, count_hooks, family, logits_with, look, random_ids, tiny

FAMILIES = ("llama", "gpt2", "gpt_neox", "gemma2", "qwen2")
SOURCE = torch.tensor([2, 0, 2, 1, 2, 0, 0])
RESID = HookPoint(1, "resid_post")


@pytest.fixture(scope="module")
def subjects() -> dict[str, Subject]:
    return {name: tiny(name) for name in FAMILIES}


def places(subject: Subject) -> list[HookPoint]:
    return [HookPoint(layer, site) for layer in (0, LAYERS - 1) for site in family(subject)]


def shift(at: Activations) -> Tensor:
    """A copy's own number decides its edit, so that a mix-up of copies shows."""
    return at.x * (1 - 0.1 * at.copy[:, None, None]) + 0.05 * at.position[:, None]


def shifted(x: Tensor, copy: int) -> Tensor:
    return x * (1 - 0.1 * copy) + 0.05 * torch.arange(x.shape[1])[:, None]


def bend(at: Activations) -> Tensor:
    """An edit that is large enough to change the likeliest token."""
    return at.x.roll(1, dims=-1) * (1 + at.copy[:, None, None]) + at.position[:, None]


@pytest.mark.parametrize("name", FAMILIES)
def test_copies_equal_plain_hooked_forward_passes(subjects, name: str):
    subject, ids = subjects[name], random_ids(3, 7)
    for place in places(subject):
        forked = Lens(subject, place).fork(ids, shift, source=SOURCE, at=[0, 3, 6])
        x = look(subject, place.layer, place.site, ids)
        for copy, source in enumerate(SOURCE.tolist()):
            own = slice(source, source + 1)
            alone = logits_with(subject, place.layer, place.site, ids[own], shifted(x[own], copy))[0, [0, 3, 6]]
            clean = subject.model(input_ids=ids[own], use_cache=False).logits.float()[0, [0, 3, 6]]
            kl = (clean.double().softmax(-1) * (clean.double().log_softmax(-1) - alone.double().log_softmax(-1))).sum(
                -1
            )
            tokens = torch.tensor([5, 40, 11])
            assert torch.allclose(forked.logits(tokens)[copy], alone[:, tokens], atol=5e-5), place
            assert torch.allclose(forked.logits(tokens, clean=True)[copy], clean[:, tokens], atol=5e-5), place
            own_logits = forked.log_probabilities(tokens)[copy].float()
            assert torch.allclose(own_logits, alone.log_softmax(-1)[:, tokens], atol=5e-5), place
            assert torch.allclose(forked.kl()[copy], kl, atol=1e-4), place
        first, second = next(iter(forked.pairs()))
        assert torch.equal(second[:, tokens], forked.logits(tokens)[0])
        assert torch.equal(first[:, tokens], forked.logits(tokens, clean=True)[0])


@pytest.mark.parametrize("name", FAMILIES)
def test_padding_and_batch_size_change_nothing(subjects, name: str):
    subject = subjects[name]
    texts = [random_ids(1, n, seed=n)[0].tolist() for n in (7, 3, 5)]
    for place in (RESID, HookPoint(0, "mlp_out")):
        found = [Lens(subject, place, batch_size=n).fork(texts, shift, source=SOURCE).kl() for n in (1, 4, 16)]
        for other in found[1:]:
            assert torch.allclose(other, found[0], rtol=1e-5, atol=1e-7)
        for copy, source in enumerate(SOURCE.tolist()):
            ids = torch.tensor([texts[source]])
            alone = logits_with(
                subject, place.layer, place.site, ids, shifted(look(subject, place.layer, place.site, ids), copy)
            )
            got = Lens(subject, place).fork(texts, shift, source=SOURCE).logits(torch.arange(VOCABULARY))[copy, 0]
            assert torch.allclose(got, alone[0, -1], atol=5e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_an_edit_that_changes_nothing_leaves_every_bit(subjects, name: str):
    subject = subjects[name]
    texts = [random_ids(1, n, seed=n)[0].tolist() for n in (6, 4)]
    for place in places(subject):
        for size in (1, 4, 16):
            lens = Lens(subject, place, batch_size=size)
            forked = lens.fork(texts, lambda at: at.x, source=torch.tensor([0, 1, 1, 0, 1]), at=[1, 3])
            assert torch.equal(forked.hidden, forked.clean), place
            assert torch.count_nonzero(forked.kl()) == 0
            # A copy beside one that changes everything keeps its bits too.
            mixed = lens.fork(
                texts, lambda at: at.x * (1 + 9 * (at.copy[:, None, None] % 2)), source=torch.zeros(4).long()
            )
            assert torch.equal(mixed.hidden[::2], mixed.clean[::2])
            assert not torch.equal(mixed.hidden[1], mixed.clean[1])


def test_a_transcoder_is_given_both_places(subjects):
    subject, ids = subjects["llama"], random_ids(3, 6)
    read, write = HookPoint(0, "ln2_out"), HookPoint(1, "mlp_out")
    x_read, x = (look(subject, p.layer, p.site, ids) for p in (read, write))
    lens = Lens(subject, read, write)
    got = lens.capture(ids)
    assert torch.allclose(got.x_read, x_read, atol=1e-6)
    assert torch.allclose(got.x, x, atol=1e-6)
    forked = lens.fork(ids, lambda at: at.x - 0.5 * at.x_read, at=[5])
    alone = logits_with(subject, 1, "mlp_out", ids, x - 0.5 * x_read)
    assert torch.allclose(forked.logits(torch.arange(VOCABULARY))[:, 0], alone[:, -1], atol=5e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_capture_and_logits_are_the_models_own(subjects, name: str):
    subject = subjects[name]
    texts = [random_ids(1, n, seed=n)[0].tolist() for n in (6, 4)]
    for place in places(subject):
        got = Lens(subject, place, batch_size=1).capture(texts)
        for row, text in enumerate(texts):
            x = look(subject, place.layer, place.site, torch.tensor([text]))[0]
            assert torch.allclose(got.x[row, : len(text)], x, atol=1e-6)
    lens = Lens(subject, RESID)
    for row, text in enumerate(texts):
        own = subject.model(input_ids=torch.tensor([text]), use_cache=False).logits.float()[0]
        assert torch.allclose(lens.logits(texts, at=[0, -1])[row], own[[0, -1]], atol=2e-5)
        assert torch.allclose(lens.logits(texts, tokens=torch.tensor([7, 9]))[row, 0], own[-1, [7, 9]], atol=2e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_gradient_agrees_with_finite_differences(subjects, name: str):
    subject, ids = subjects[name], random_ids(2, 5)
    for place in places(subject):
        lens = Lens(subject, place)
        gradient = lens.gradient(ids, lambda logits: logits[..., 3] - logits[..., 8], at=[4])[:, 2]
        direction = torch.nn.functional.normalize(gradient, dim=-1)
        step = 1e-2

        def moved(at: Activations, sign: float, direction: Tensor = direction, step: float = step) -> Tensor:
            x = at.x.clone()
            x[:, 2] += sign * step * direction[at.copy]
            return x

        up, down = (
            lens.fork(ids, lambda at, s=s: moved(at, s), at=[4]).logits(torch.tensor([3, 8]))[:, 0] for s in (1, -1)
        )
        slope = ((up[:, 0] - up[:, 1]) - (down[:, 0] - down[:, 1])) / (2 * step)
        assert torch.allclose(slope, gradient.norm(dim=-1), rtol=2e-2, atol=2e-3), place


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_generation_with_a_cache_equals_recomputing_the_whole_text(subjects, name: str, temperature: float):
    subject = subjects[name]
    texts = [random_ids(1, n, seed=n)[0].tolist() for n in (6, 3)]
    source, how = torch.tensor([1, 0, 0]), {"tokens": 6, "temperature": temperature, "seed": 3}
    for place in (RESID, HookPoint(0, "mlp_out"), HookPoint(1, "resid_pre")):
        lens = Lens(subject, place)
        found = lens.generate(texts, bend, source=source, **how)
        assert found == Lens(subject, place, batch_size=1).generate(texts, bend, source=source, **how)
        for copy, start in enumerate(source.tolist()):
            whole = torch.tensor([texts[start] + found[copy]])
            # The edit depends on the copy and the position only, so one pass over the finished text sees every step.
            x = look(subject, place.layer, place.site, whole)
            edited = bend(Activations(x, x, torch.tensor([copy]), torch.arange(x.shape[1])))
            logits = logits_with(subject, place.layer, place.site, whole, edited)[0]
            steps = logits[len(texts[start]) - 1 : -1].double().softmax(-1)
            chosen = torch.tensor(found[copy])[:, None]
            if temperature == 0:
                assert torch.allclose(steps.gather(1, chosen)[:, 0], steps.max(-1).values, atol=1e-5)
                continue
            stream = generator(f"lens/generate/{copy}", 3)
            uniform = torch.stack([torch.rand(1, generator=stream, dtype=torch.float64) for _ in steps])
            above = steps.cumsum(1).gather(1, chosen)
            assert torch.all((uniform < above + 1e-5) & (uniform > above - steps.gather(1, chosen) - 1e-5))
        assert found != lens.generate(texts, source=source, **how)
    stopped = lens.generate(texts, bend, source=source, stop=[found[0][1]], **how)
    assert stopped[0] == found[0][: found[0].index(found[0][1]) + 1]


def test_sampling_follows_the_models_probabilities(subjects):
    lens, text = Lens(subjects["llama"], RESID), random_ids(1, 4)
    n = 3000
    drawn = lens.generate(text, source=torch.zeros(n).long(), tokens=1, temperature=1.0)
    counts = torch.bincount(torch.tensor(drawn)[:, 0], minlength=VOCABULARY) / n
    probability = lens.logits(text)[0, 0].softmax(-1)
    assert torch.all((counts - probability).abs() < 4 * (probability * (1 - probability) / n).sqrt() + 1e-3)


def test_memory_that_runs_out_halves_the_batch(subjects, monkeypatch):
    subject, ids = subjects["llama"], random_ids(6, 5)
    whole = Lens(subject, RESID).fork(ids, shift).kl()
    plain, sizes = Subject.fork, []

    def tight(self: Subject, token_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
        sizes.append(len(token_ids))
        if len(token_ids) > 2:
            raise torch.OutOfMemoryError("tight")
        return plain(self, token_ids, *args, **kwargs)

    monkeypatch.setattr(Subject, "fork", tight)
    assert torch.allclose(Lens(subject, RESID).fork(ids, shift).kl(), whole, rtol=1e-5)
    assert sizes == [6, 3, 1, 1, 1, 1, 1, 1]
    monkeypatch.setattr(Subject, "fork", lambda *_, **__: (_ for _ in ()).throw(torch.OutOfMemoryError("none")))
    with raises(SaebenchError, "one copy", 5, "--dtype"):
        Lens(subject, RESID).fork(ids, shift)


def test_a_broken_edit_leaves_no_hook(subjects):
    subject, ids = subjects["llama"], random_ids(2, 5)
    hooks = count_hooks(subject)

    def broken(at: Activations) -> Tensor:
        raise ValueError("from inside")

    for act in (Lens(subject, RESID).fork, partial(Lens(subject, RESID).generate, tokens=3)):
        with raises(ValueError, "from inside"):
            act(ids, broken)
    with raises(ValueError, "from inside"):
        Lens(subject, RESID).gradient(ids, broken)  # type: ignore[arg-type]
    assert count_hooks(subject) == hooks


def test_bad_input_is_one_line(subjects):
    lens = Lens(subjects["llama"], RESID)
    with raises(UsageError, 65, 64):
        lens.logits(random_ids(1, 65))
    with raises(UsageError, 60, 10, 64):
        lens.generate(random_ids(1, 60), tokens=10)
    with raises(UsageError, "context without a token"):
        lens.logits([[3], []])
    with raises(UsageError, "99", VOCABULARY):
        lens.logits([[3, 99]])
    with raises(UsageError, "position 4", 3):
        lens.logits([[3, 4, 5, 6, 7], [3, 4, 5]], at=4)
    with raises(UsageError, "layers 0 to"):
        Lens(subjects["llama"], HookPoint(9, "resid_post"))
    explode = Lens(subjects["llama"], RESID)
    forked = explode.fork(random_ids(2, 4), lambda at: at.x * torch.tensor([1.0, torch.inf])[at.copy][:, None, None])
    assert forked.finite.tolist() == [True, False]
    with raises(NonFiniteError, "copy 1", "smaller strength"):
        explode.generate(
            random_ids(2, 4), lambda at: at.x * torch.tensor([1.0, 3e38])[at.copy][:, None, None], tokens=2
        )


# --- units ------------------------------------------------------------------------------------------------------------


def test_units_come_back_bit_for_bit_and_only_the_missing_are_computed(subjects, tmp_path: Path):
    lens = Lens(subjects["llama"], RESID, work=tmp_path)
    done: list[int] = []

    def compute(item: int) -> dict[str, Any]:
        done.append(item)
        return {"value": 1 / (item + 3), "pair": (item, 0.1 + item)}

    first = lens.units("k", [1, 2, 3], compute)
    assert first == [{"value": 1 / (i + 3), "pair": [i, 0.1 + i]} for i in (1, 2, 3)]
    again = lens.units("k", [3, 4, 1], compute)
    assert done == [1, 2, 3, 4]
    assert again[0] == first[2]
    assert lens.units("another key", [1], compute) == first[:1]
    assert done[-1] == 1
    # A damaged file is computed again; a result that is not finite is refused and not kept.
    damaged = tmp_path / _digest("k") / f"{_digest(2)}.json"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    assert lens.units("k", [2], compute) == first[1:2]
    with raises(NonFiniteError, "k", "7"):
        lens.units("k", [7], lambda item: float("nan"))
    assert Lens(subjects["llama"], RESID).units("k", [5], compute) == [{"value": 0.125, "pair": [5, 5.1]}]


def test_a_folder_that_cannot_be_written_costs_the_resume_only(subjects, tmp_path: Path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert Lens(subjects["llama"], RESID, work=blocked / "below").units("k", [1, 2], lambda item: item) == [1, 2]


_KILLED = """
import json, os, signal, sys
from pathlib import Path
from saebench.lens.units import map_units

def compute(item):
    print(item, flush=True)
    if item == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    return [item / 7, str(item)]

print(json.dumps(map_units(Path(sys.argv[1]), "k", list(range(6)), compute, None)))
"""


def test_a_killed_map_does_the_rest(tmp_path: Path):
    def run(kill_at: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", _KILLED, str(tmp_path), str(kill_at)]
        return subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ))

    assert run(3).returncode == -signal.SIGKILL
    second = run(-1).stdout.split("\n")
    assert second[:-2] == ["3", "4", "5"]
    assert json.loads(second[-2]) == [[i / 7, str(i)] for i in range(6)]
