"""The subject against plain runs of the same model: what is read, what a fork gives, what is refused."""

import pytest
import torch
from torch import Tensor

from saebench.errors import SaebenchError, UsageError
from saebench.hookpoint import HookPoint
from saebench.subject import Copy, Subject
from tests.tiny_models import LAYERS, VOCABULARY, count_hooks, family, logits_with, look, random_ids, subject_of, tiny

FAMILIES = ("llama", "gpt2", "gpt_neox", "gemma2", "gemma3_text", "mistral", "qwen2")
INSIDE = ("resid_mid", "attn_out", "mlp_out", "z", "mlp_post", "ln1_out", "ln2_out")


@pytest.fixture(scope="module")
def subjects() -> dict[str, Subject]:
    return {name: tiny(name) for name in FAMILIES}


def places(subject: Subject) -> list[HookPoint]:
    return [HookPoint(layer, site) for layer in (0, LAYERS - 1) for site in family(subject)]


def changes(x_read: Tensor, x: Tensor) -> list[Copy]:
    every = torch.arange(len(x))
    return [Copy(x, every), Copy(x * 0.5 + x_read.mean(), every), Copy(torch.zeros_like(x), every)]


@pytest.mark.parametrize("name", FAMILIES)
def test_capture_equals_an_independent_hook(subjects, name: str):
    subject, ids = subjects[name], random_ids(3, 7)
    assert {p.site for p in places(subject)} == {"resid_pre", "resid_post", *subject._sites}
    for place in places(subject):
        subject.require(place)
        x, again = subject.capture(ids, place)
        assert torch.equal(x, again)
        assert torch.allclose(x, look(subject, place.layer, place.site, ids), atol=1e-6), place


@pytest.mark.parametrize("name", FAMILIES)
def test_capture_equals_the_models_own_hidden_states(subjects, name: str):
    subject, ids = subjects[name], random_ids(2, 6)
    states = subject.model(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states
    for layer in range(LAYERS):
        assert torch.equal(subject.capture(ids, HookPoint(layer, "resid_pre"))[0], states[layer])
    # The last of hidden_states is after the final norm: resid_post of the last layer is not.
    assert torch.equal(subject.capture(ids, HookPoint(0, "resid_post"))[0], states[1])
    assert not torch.allclose(subject.capture(ids, HookPoint(LAYERS - 1, "resid_post"))[0], states[-1], atol=1e-3)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("shape", [(1, 6), (6, 6), (4, 1)])
def test_a_fork_equals_plain_runs_with_each_copy_in_place(subjects, name: str, shape: tuple[int, int]):
    subject, ids = subjects[name], random_ids(*shape)
    for place in places(subject):
        clean, copies = subject.fork(ids, place, place, changes, copies=3)
        assert subject.forks
        reference = subject.model(input_ids=ids, use_cache=False).logits
        assert torch.allclose(subject.logits(clean), reference, atol=2e-5), place
        x = look(subject, place.layer, place.site, ids)
        for copy, hidden in zip(changes(x, x), copies, strict=True):
            alone = logits_with(subject, place.layer, place.site, ids, copy.rows)
            assert torch.allclose(subject.logits(hidden), alone, atol=5e-5), place


@pytest.mark.parametrize("name", FAMILIES)
def test_a_fork_equals_separate_passes(subjects, name: str):
    subject, ids = subjects[name], random_ids(3, 9)
    for place in places(subject):
        together = subject.fork(ids, place, place, changes, copies=3)
        apart = subject._separately(ids, place, place, changes)
        for a, b in zip((together[0], *together[1]), (apart[0], *apart[1]), strict=True):
            assert torch.allclose(a, b, atol=3e-6), place


def test_on_the_residual_stream_a_copy_may_hold_any_contexts(subjects):
    for name in ("llama", "gemma2"):
        subject, ids = subjects[name], random_ids(5, 6)
        for site in ("resid_pre", "resid_post"):
            some = torch.tensor([3, 1, 1])

            def splice(_: Tensor, x: Tensor, some: Tensor = some) -> list[Copy]:
                return [Copy(2 * x[some], some), Copy(x, torch.arange(len(x)))]

            _, (few, all_) = subject.fork(ids, HookPoint(1, site), HookPoint(1, site), splice, copies=2)
            x = look(subject, 1, site, ids)
            assert few.shape == (3, 6, subject.d_model)
            expected = logits_with(subject, 1, site, ids[some], 2 * x[some])
            assert torch.allclose(subject.logits(few), expected, atol=5e-5)
            assert torch.allclose(subject.logits(all_), logits_with(subject, 1, site, ids, x), atol=5e-5)


READ_WRITE = [("ln2_out", "mlp_out"), ("resid_mid", "mlp_out"), ("resid_pre", "resid_mid"), ("ln1_out", "resid_post")]


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize(("read", "write"), READ_WRITE)
def test_a_transcoder_reads_one_place_and_writes_another(subjects, name: str, read: str, write: str):
    subject, ids = subjects[name], random_ids(3, 6)
    seen: list[tuple[Tensor, Tensor]] = []

    def splice(x_read: Tensor, x: Tensor) -> list[Copy]:
        seen.append((x_read.clone(), x.clone()))
        return [Copy(x_read * 0.3 - x, torch.arange(len(x)))]

    for layers in ((1, 1), (0, 2)):
        here, there = HookPoint(layers[0], read), HookPoint(layers[1], write)
        x_read, x = (look(subject, p.layer, p.site, ids) for p in (here, there))
        for got, expected in zip(subject.capture(ids, here, there), (x_read, x), strict=True):
            assert torch.allclose(got, expected, atol=1e-6)
        seen.clear()
        _, (hidden,) = subject.fork(ids, here, there, splice, copies=1)
        assert len(seen) == 1
        assert torch.allclose(seen[0][0], x_read, atol=1e-6)
        assert torch.allclose(seen[0][1], x, atol=1e-6)
        alone = logits_with(subject, there.layer, there.site, ids, x_read * 0.3 - x)
        assert torch.allclose(subject.logits(hidden), alone, atol=5e-5)


@pytest.mark.parametrize(
    ("read", "write"),
    [((2, "resid_post"), (1, "resid_post")), ((1, "mlp_out"), (1, "ln2_out")), ((1, "resid_post"), (1, "mlp_out"))],
)
def test_reading_after_writing_is_refused(subjects, read: tuple[int, str], write: tuple[int, str]):
    subject, ids = subjects["llama"], random_ids(2, 6)
    here, there, before = HookPoint(*read), HookPoint(*write), count_hooks(subject)
    with pytest.raises(SaebenchError, match="comes after"):
        subject.capture(ids, here, there)
    with pytest.raises(SaebenchError, match="comes after"):
        subject.fork(ids, here, there, changes, copies=3)
    assert count_hooks(subject) == before


@pytest.mark.parametrize("site", ["resid_pre", "resid_post", *INSIDE])
def test_hooks_are_gone_afterwards_whatever_happens(subjects, site: str):
    subject, ids, place = subjects["llama"], random_ids(2, 6), HookPoint(1, site)
    before = subject.model(input_ids=ids, use_cache=False).logits
    hooks = count_hooks(subject)  # transformers keeps some of its own

    def broken(x_read: Tensor, x: Tensor) -> list[Copy]:
        raise ValueError("from inside")

    subject.capture(ids, place)
    assert count_hooks(subject) == hooks
    subject.fork(ids, place, place, changes, copies=3)
    assert count_hooks(subject) == hooks
    with pytest.raises(ValueError, match="from inside"):
        subject.fork(ids, place, place, broken, copies=3)
    assert count_hooks(subject) == hooks
    subject.check(place)
    assert count_hooks(subject) == hooks
    assert torch.equal(subject.model(input_ids=ids, use_cache=False).logits, before)


def test_splice_is_called_once_with_the_models_own_rows_only(subjects):
    for name in FAMILIES:
        subject, ids = subjects[name], random_ids(2, 5)
        for place in places(subject):
            shapes = []

            def splice(x_read: Tensor, x: Tensor, shapes: list = shapes) -> list[Copy]:
                shapes.append((len(x_read), len(x)))
                return changes(x_read, x)

            subject.fork(ids, place, place, splice, copies=3)
            assert shapes == [(2, 2)]


def test_a_model_that_breaks_under_a_fork_gets_separate_passes():
    subject, ids, place = tiny("llama"), random_ids(3, 6), HookPoint(1, "resid_post")
    whole = subject.fork(ids, place, place, changes, copies=3)
    # A layer that insists on the batch it was called with, as a model with state of its own would.
    layer, forward = subject.blocks[2], subject.blocks[2].forward
    size = []
    subject.model.model.register_forward_pre_hook(
        lambda m, args, kwargs: size.append(len(kwargs["input_ids"])), with_kwargs=True
    )

    def stubborn(hidden_states: Tensor, **kwargs: object) -> Tensor:
        if len(hidden_states) != size[-1]:
            raise RuntimeError("the batch changed on its way")
        return forward(hidden_states, **kwargs)

    layer.forward = stubborn
    subject.check(place)
    assert not subject.forks
    apart = subject.fork(ids, place, place, changes, copies=3)
    for a, b in zip((whole[0], *whole[1]), (apart[0], *apart[1]), strict=True):
        assert torch.allclose(a, b, atol=3e-6)


def test_a_model_that_mixes_rows_is_caught_by_its_numbers():
    subject, place = tiny("llama"), HookPoint(1, "resid_post")
    subject.blocks[2].register_forward_hook(lambda m, a, out: out + out.mean(0, keepdim=True) * (len(out) > 2))
    subject.check(place)
    assert not subject.forks


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_are_the_models_own(subjects, name: str):
    subject, ids = subjects[name], random_ids(2, 6)
    subject.check(HookPoint(1, "resid_post"))
    assert subject.forks
    own = subject.model(input_ids=ids, use_cache=False).logits
    assert torch.allclose(subject.logits(subject.hidden(ids)), own, atol=1e-6)
    if name == "gemma2":
        assert own.abs().max() < 3.0  # softcapped
        assert own.abs().max() > 1.0  # and it matters


@pytest.mark.parametrize("name", ["granite", "cohere"])
def test_unknown_logit_scaling_is_refused(name: str):
    subject = tiny(name)
    with pytest.raises(SaebenchError, match="changes its logits"):
        subject.check(HookPoint(1, "resid_post"))


def test_a_small_logit_scaling_is_refused_too():
    subject = tiny("granite", logits_scaling=1.01)
    with pytest.raises(SaebenchError, match="changes its logits"):
        subject.check(HookPoint(1, "resid_post"))


@pytest.mark.parametrize("layer", [-1, LAYERS, 10**6])
def test_a_layer_that_does_not_exist_is_refused(subjects, layer: int):
    with pytest.raises(UsageError, match=f"layers 0 to {LAYERS - 1}") as caught:
        subjects["llama"].require(HookPoint(layer, "resid_post"))
    assert "\n" not in str(caught.value)


def test_sites_of_unknown_families_are_the_residual_ones():
    subject = tiny("granite")
    subject.require(HookPoint(0, "resid_pre"))
    for site in INSIDE:
        with pytest.raises(UsageError, match="model type 'granite'"):
            subject.require(HookPoint(0, site))


def test_parallel_blocks_have_no_resid_mid(subjects):
    with pytest.raises(UsageError, match="gpt_neox"):
        subjects["gpt_neox"].require(HookPoint(0, "resid_mid"))


def test_a_model_without_a_list_of_layers_is_refused():
    subject = tiny("llama")
    subject.model.config.num_hidden_layers = 77
    with pytest.raises(SaebenchError, match="no list of 77 layers"):
        subject_of(subject.model)


def test_bfloat16_keeps_activations_in_the_models_dtype():
    subject, ids, place = tiny("llama"), random_ids(2, 5), HookPoint(1, "resid_post")
    subject.model.to(torch.bfloat16)
    assert subject.dtype == "bfloat16"
    x, _ = subject.capture(ids, place)
    assert x.dtype == torch.bfloat16
    clean, copies = subject.fork(ids, place, place, lambda r, w: [Copy(w.float(), torch.arange(2))], copies=1)
    assert torch.equal(clean, copies[0])
    assert subject.logits(clean).dtype == torch.float32
    assert subject.logits(clean).shape == (2, 5, VOCABULARY)


@pytest.mark.parametrize(
    "name", ["mlp", "mlp.input", "self_attn", "post_attention_layernorm", "post_attention_layernorm.input"]
)
def test_on_gemma_a_modules_name_is_not_llamas_place(subjects, name: str):
    place = HookPoint.parse(f"model.layers.1.{name}")
    subjects["llama"].require(place)
    for family_name in ("gemma2", "gemma3_text"):
        with pytest.raises(UsageError, match="another place"):
            subjects[family_name].require(place)
        subjects[family_name].require(HookPoint.parse("blocks.1.hook_mlp_out"))
        subjects[family_name].require(HookPoint.parse("model.layers.1"))
        subjects[family_name].require(HookPoint.parse("model.layers.1.input_layernorm"))
