"""For authors of plugins, and for us: tiny models and SAEs, and `check_metric`, which proves a metric keeps its contract."""

import json
import math
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saebench.errors import SaebenchError
from saebench.format import CheckpointError, Format, LoadOptions
from saebench.forward.fork import check_edits
from saebench.hookpoint import HookPoint
from saebench.judge import STATES, Capabilities, Judge, Kind, Reply, Request, Usage, read_reply
from saebench.judging.session import JudgeSession
from saebench.lens import Lens
from saebench.loading.checkpoint import read_as
from saebench.metric import Batch, Edit, Edited, Env, Metric, TokenLosses, get_state, set_state
from saebench.models import load_model
from saebench.sae import SAE, JumpReLU, Metadata, ReLU, TopK
from saebench.stats import ratio_interval
from saebench.subject import Subject

Values = dict[tuple[str, float | None], float]
MakeEnv = Callable[[SAE], Env]


def tiny_llama(folder: Path, *, layers: int = 4, width: int = 32, vocabulary: int = 97, seed: int = 0) -> Path:
    """Save a random Llama (no tokenizer: use token ids) that runs in milliseconds; returns its folder."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128, tie_word_embeddings=False,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    for (
        parameter
    ) in model.parameters():  # the default initialisation is so small that every layer is nearly the identity
        parameter.data.normal_(std=0.3 if parameter.ndim > 1 else 0.1).add_(0.0 if parameter.ndim > 1 else 1.0)
    model.save_pretrained(folder)
    return folder


def random_sae(d_in: int = 32, d_sae: int = 64, *, k: int | None = 8, seed: int = 0, **metadata: Any) -> SAE:
    """A random TopK SAE (a ReLU one for k None) with tied unit-norm weights and no parameter at a neutral value."""
    generator = torch.Generator().manual_seed(seed)
    W_dec = torch.nn.functional.normalize(torch.randn(d_sae, d_in, generator=generator), dim=1)
    W_enc = W_dec.T.clone() + 0.01 * torch.randn(d_in, d_sae, generator=generator)
    b_enc, b_dec = (0.1 * torch.randn(n, generator=generator) for n in (d_sae, d_in))
    activation = ReLU() if k is None else TopK(k)
    return SAE(W_enc, W_dec, b_enc, b_dec, activation, True, metadata=Metadata(declared_l0=k, **metadata))


def identity_sae(d: int, **metadata: Any) -> SAE:
    """An SAE of 2d latents whose reconstruction is its input, bit for bit."""
    eye = torch.eye(d)
    W_enc = torch.cat([eye, -eye], 1)
    return SAE(
        W_enc, W_enc.T.contiguous(), torch.zeros(2 * d), torch.zeros(d), ReLU(), False, metadata=Metadata(**metadata)
    )


def constant_sae(value: Tensor, **metadata: Any) -> SAE:
    """An SAE without a firing latent, whose reconstruction is always `value` [d]."""
    d = len(value)
    silent = JumpReLU(torch.tensor(math.inf).clamp(max=3e38))
    zeros = torch.zeros(d, d)
    return SAE(zeros, zeros.clone(), torch.zeros(d), value, silent, False, metadata=Metadata(**metadata))


class SyntheticText:
    """Made-up contexts with activations and losses, for metrics: BOS first, a few outliers that are not scored.

    Attributes:
        x: [contexts, length, d] activations.
        scored, special: [contexts, length] bool.
    """

    def __init__(self, d: int = 16, contexts: int = 12, length: int = 9, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.generator = generator
        self.x = torch.randn(contexts, length, d, generator=generator) + 0.5
        self.special = torch.zeros(contexts, length, dtype=torch.bool)
        self.special[:, 0] = True
        outlier = torch.rand(contexts, length, generator=generator) < 0.05
        self.scored = ~self.special & ~outlier
        self.x[outlier & ~self.special] *= 30
        self.token_ids = torch.randint(3, 50, (contexts, length), generator=generator)
        self.losses = 1 + torch.rand(5, contexts, length, generator=generator)
        self.mean = self.x[self.scored].mean(0) + 0.1
        self.poison: Tensor | None = None
        self.extra = 0

    def batch(self, sae: SAE, rows: Collection[int]) -> Batch:
        """The batch of these contexts, with everything a metric may need."""
        at = torch.tensor(sorted(rows))
        x, scored = self.x[at].clone(), self.scored[at]
        losses = self.losses[:, at].clone()
        if self.poison is not None:
            x[self.poison[at]] = 1e4
            losses[:, ~scored] = 1e4
        special, token_ids, last = self.special[at], self.token_ids[at], x.shape[1] - 1
        if self.extra:  # unscored positions behind the context: half of them special, none to be counted
            pad = torch.nn.functional.pad
            x, losses = pad(x, (0, 0, 0, self.extra), value=1e4), pad(losses, (0, self.extra), value=1e4)
            scored, token_ids = pad(scored, (0, self.extra)), pad(token_ids, (0, self.extra), value=3)
            special = pad(pad(special, (0, self.extra // 2), value=True), (0, self.extra - self.extra // 2))
        latents = sae.encode(x)
        predicted = scored.clone()
        predicted[:, last:] = False
        clean, spliced, zero, mean, kl = losses
        token_losses = TokenLosses(clean, spliced, zero, mean, kl, predicted)
        ids = at.numpy().astype(np.int64)
        return Batch(
            token_ids, special, scored, ids, ids // 3, torch.arange(x.shape[1]), self.mean,
            x, latents, sae.decode(latents, x), token_losses, x,
        )  # fmt: skip

    def give(self, metric: Metric, sae: SAE, rows: Collection[int]) -> None:
        """Give a metric the batch of these contexts, with made-up losses of its edits: each row's depend on that row alone."""
        batch = self.batch(sae, rows)
        if metric.edit_rows:
            edits = metric.edits(replace(batch, _token_losses=None))
            sources = check_edits(metric, edits, batch)
            batch = replace(batch, _edited={e.name: _edited(e, s, batch) for e, s in zip(edits, sources, strict=True)})
        metric.update(batch)

    def values(
        self, metric_class: type[Metric], sae: SAE, batches: list[list[int]], parts: int = 1, env: MakeEnv = Env
    ) -> Values:
        """Scores of a metric over these batches, given to `parts` instances in turn and merged."""
        metrics = [metric_class(sae) for _ in range(parts)]
        if metric_class.needs or metric_class.edit_rows:
            for i, rows in enumerate(batches):
                self.give(metrics[i % parts], sae, rows)
        for other in metrics[1:]:
            metrics[0].merge(other)
        return score_values(metrics[0], env(sae))


def _edited(edit: Edit, source: Tensor, batch: Batch) -> Edited:
    """Stand-ins for the model's predictions under an edit: they grow with its distance from x."""
    change = (edit.rows - batch.x[source]).norm(dim=-1) / batch.x[source].norm(dim=-1).clamp_min(1e-6)
    scored = batch.scored[source]
    kl = torch.where(scored, change, 0)
    cross_entropy = torch.where(scored, batch.token_losses.clean[source] + change, 0)
    return Edited(source, cross_entropy, kl, edit.rows if edit.hidden else None)


def score_values(metric: Metric, env: Env) -> Values:
    """{(key, at): value} of every score, as the harness computes them."""
    scores = metric.scores(env)
    units = metric.units()
    out: Values = {}
    for score in scores:
        value = ratio_interval(units, score).value if score.num is not None else score.value
        assert value is not None, f"score '{score.key}' has neither columns nor a value"
        out[score.key, score.at] = float(value)
    return out


def lens_env(sae: SAE, batch_size: int | None = None) -> Env:
    """An `Env` whose lens is a tiny random Llama, as wide as the SAE, that knows the token ids of `SyntheticText`."""
    with tempfile.TemporaryDirectory() as folder:
        loaded = load_model(str(tiny_llama(Path(folder, "tiny"), layers=2, width=sae.d_in)))
    return Env(sae, lens=Lens(Subject(loaded), HookPoint(0, "resid_post"), batch_size=batch_size))


def check_metric(
    metric: type[Metric],
    *,
    identity: Mapping[str, float] | None = None,
    mean_predictor: Mapping[str, float] | None = None,
    reads_outliers: Collection[str] = (),
    reads_text: bool = False,
    ignores_sae: bool = False,
    env: MakeEnv | None = None,
) -> None:
    """Prove that a metric keeps its contract; raises AssertionError with what is wrong.

    Checked on made-up contexts: how contexts are split into batches, and in what order they come, changes nothing; merged
    instances equal one that saw everything; a saved and restored instance goes on the same; scores are finite and fit JSON;
    tokens that are not scored enter neither by their values nor by their number; another SAE has other scores.

    Args:
        metric: the class.
        identity: expected scores (by key) of an SAE that reconstructs exactly.
        mean_predictor: expected scores of an SAE that always answers with the mean of the scored tokens.
        reads_outliers: keys of scores that are meant to count unscored tokens too.
        reads_text: unscored tokens are read as text around the scored ones, so that more of them may change a score.
        ignores_sae: the scores are meant to be the same for every SAE.
        env: what `scores` is given, made for an SAE: a metric that asks a judge or reads text needs
            `lambda sae: Env(sae, tokenizer, judge=judge_session(answer))`. By default, a metric that declares `uses_lens` gets a
            lens on a tiny random model (`lens_env`).
    """
    env = env or (lens_env if metric.uses_lens else Env)
    text, sae = SyntheticText(), random_sae(16, 48)
    everything = list(range(len(text.x)))
    whole = text.values(metric, sae, [everything], env=env)
    assert whole, "the metric has no scores"
    json.dumps([[k, a, v] for (k, a), v in whole.items()], allow_nan=False)
    shuffled = list(reversed(everything))
    others = {
        "single contexts": text.values(metric, sae, [[i] for i in everything], env=env),
        "another order": text.values(metric, sae, [shuffled[i : i + 5] for i in range(0, len(shuffled), 5)], env=env),
        "three merged instances": text.values(metric, sae, [[i, i + 1] for i in everything[::2]], parts=3, env=env),
        "a restored instance": _restored(metric, sae, text, env),
    }
    for how, found in others.items():
        _same(whole, found, f"in {how}")
    text.poison = ~text.scored
    poisoned = text.values(metric, sae, [everything], env=env)
    fixed = {key: value for key, value in whole.items() if key[0] not in reads_outliers}
    _same(fixed, {k: v for k, v in poisoned.items() if k in fixed}, "with other values at tokens that are not scored")
    text.poison, text.extra = None, 4
    if not reads_text:
        longer = text.values(metric, sae, [everything], env=env)
        _same(fixed, {k: v for k, v in longer.items() if k in fixed}, "with more tokens that are not scored")
    text.extra = 0
    other = text.values(metric, random_sae(16, 48, k=5, seed=1), [everything], env=env)
    assert ignores_sae or other != whole, "every score is the same for another SAE: the metric ignores the SAE"
    mean = constant_sae(text.x[text.scored].double().mean(0).float())
    for expected, known in ((identity, identity_sae(16)), (mean_predictor, mean)):
        if expected:
            found = text.values(metric, known, [everything], env=env)
            _same(
                {(k, None): v for k, v in expected.items()},
                {(k, None): found[k, None] for k in expected},
                "for a known SAE",
            )


def _restored(metric: type[Metric], sae: SAE, text: SyntheticText, env: MakeEnv) -> Values:
    half = len(text.x) // 2
    first, second = metric(sae), metric(sae)
    if metric.needs or metric.edit_rows:
        text.give(first, sae, range(half))
    set_state(second, get_state(first))
    if metric.needs or metric.edit_rows:
        text.give(second, sae, range(half, len(text.x)))
    return score_values(second, env(sae))


def _same(expected: Values, found: Values, where: str) -> None:
    assert expected.keys() == found.keys(), f"other scores {where}: {sorted(map(str, expected.keys() ^ found.keys()))}"
    for key, value in expected.items():
        close = math.isclose(value, found[key], rel_tol=1e-5, abs_tol=1e-7)
        assert close, f"score '{key[0]}' is {found[key]!r} {where}, expected {value!r}"


# --- judges -----------------------------------------------------------------------------------------------------------


class FunctionJudge(Judge):
    """A judge that answers with a function, for tests of metrics that ask one.

    Args:
        answer: gives the fields of the reply, or the whole reply.
        probabilities: P(true) of each boolean field, where the answers are to have them.
    """

    name = "function"
    concurrency = 1
    sends = False

    def __init__(
        self,
        answer: Callable[[Request], Mapping[str, bool | str] | Reply],
        probabilities: Callable[[Request], Mapping[str, float]] | None = None,
    ) -> None:
        super().__init__("function")
        self.answer, self.probabilities = answer, probabilities
        self.capabilities = Capabilities(structured=True, probabilities=probabilities is not None)
        self.asked: list[Request] = []

    def complete(self, request: Request) -> Reply:
        self.asked.append(request)
        found = self.answer(request)
        if isinstance(found, Reply):
            return found
        reply = read_reply(json.dumps(dict(found)), request)
        likely = self.probabilities(request) if self.probabilities else {}
        return replace(reply, model="function", usage=Usage(1, 1), probabilities=likely)


def judge_session(judge: Judge | Callable[[Request], Mapping[str, bool | str] | Reply]) -> JudgeSession:
    """A session with no file behind it, for `Env(sae, judge=judge_session(lambda request: {...}))`."""
    return JudgeSession(judge if isinstance(judge, Judge) else FunctionJudge(judge))


def check_judge(judge: Judge) -> None:
    """Prove that a judge keeps its contract; raises AssertionError with what is wrong. It is opened, asked and closed.

    Checked: who it is does not change and fits JSON; an answer has the shape of its question, for true and false and for
    text; the same question gets the same answer, alone, among others and when they come at once; what it does not answer is a
    state and never an exception.

    Args:
        judge: not opened. Its calls are made: some twenty, of a few words each.
    """
    identity = json.dumps(judge.identity, allow_nan=False)
    judge.open()
    try:
        assert json.dumps(judge.identity) == identity, "opening it changes its identity"
        texts = ("The ship sailed.", "A tax law.", 'Odd \u202e text "quoted" \\ {"first": true}', "\u4e2d\u6587", "")
        fields: dict[str, Kind] = {"first": "boolean", "second": "boolean"}
        asked = [Request("Answer.", f"{text}\nIs this about the sea?", fields, "check@1") for text in texts]
        asked.append(Request("Answer in a few words.", "What is a ship?", {"answer": "string"}, "check@1", 32))
        alone = [reply for request in asked for reply in JudgeSession(judge).complete_all([request])]
        for request, reply in zip(asked, alone, strict=True):
            _check_reply(request, reply)
        assert any(reply.state == "ok" for reply in alone), f"it answers nothing: {alone[0].state}, {alone[0].problem}"
        together = JudgeSession(judge).complete_all([*reversed(asked), *asked])
        assert [r.data for r in together] == [r.data for r in [*reversed(alone), *alone]], (
            "another answer to the same question"
        )
    finally:
        judge.close()


def _check_reply(request: Request, reply: Reply) -> None:
    assert reply.state in STATES, f"'{reply.state}' is no state"
    kinds = {"boolean": bool, "string": str}
    for name, value in reply.data.items():
        assert name in request.fields, f"'{name}' was not asked for"
        assert isinstance(value, kinds[request.fields[name]]), f"'{name}' is no {request.fields[name]}"
    if reply.state == "ok":
        assert list(reply.data) == list(request.fields), "ok, but not every field is answered, or in another order"
    else:
        assert reply.problem, f"{reply.state}, but it does not say why"
        assert reply.state == "malformed" or not reply.data, f"{reply.state}, and yet it has data"
    for name, probability in reply.probabilities.items():
        assert 0 <= probability <= 1, f"P({name}) is {probability}"
        assert request.fields[name] == "boolean", f"'{name}' is no boolean and has a probability"
    json.dumps([dict(reply.data), dict(reply.probabilities), reply.text, reply.problem, reply.model], allow_nan=False)


# --- formats ---------------------------------------------------------------------------------------------------------


def check_format(
    format: Format,
    path: Path,
    *,
    options: LoadOptions | None = None,
    x: Tensor | None = None,
    latents: Tensor | None = None,
    out: Tensor | None = None,
) -> None:
    """Prove that a format keeps its contract on one good checkpoint; raises AssertionError with what is wrong.

    Checked: it recognises the checkpoint and not an empty folder; it reads the same function twice; every convention names its
    source; latents and reconstruction are those of the library that wrote it; what it writes it reads back; and a damaged
    copy (cut short, an unknown config key) is refused with one line, never with another exception.

    Args:
        format: the format.
        path: a checkpoint of it, a file or a folder.
        options: what the checkpoint needs and does not hold.
        x: [n, d_in] activations; `latents` [n, d_sae] and `out` [n, d_out] are what the library that wrote the
            checkpoint makes of them. A test without them proves little.
    """
    options = options or LoadOptions()
    sae = read_as(format, path, options)
    assert sae.sha256() == read_as(format, path, options).sha256(), "two loads of one checkpoint differ"
    assert sae.metadata.facts, "no convention is said: give Metadata(facts=...) with where each was read"
    for fact in sae.metadata.facts:
        assert fact.value, f"convention '{fact.name}' has no value"
        assert fact.source, f"convention '{fact.name}' has no source"
    if x is not None:
        if latents is not None:
            _near(sae.encode(x).dense(), latents, "latents")
        if out is not None:
            _near(sae(x), out, "the reconstruction")
    with tempfile.TemporaryDirectory() as folder:
        empty = Path(folder, "empty")
        empty.mkdir()
        assert format.matches(path), f"matches({path}) is False"
        assert not format.matches(empty), "an empty folder matches"
        assert not format.matches(empty / "absent"), "a path that does not exist matches"
        _check_writing(format, sae, Path(folder, "written"))
        _check_damage(format, path, options, Path(folder, "damaged"))


def _near(found: Tensor, wanted: Tensor, what: str) -> None:
    assert found.shape == wanted.shape, f"{what}: shape {tuple(found.shape)}, expected {tuple(wanted.shape)}"
    worst = float((found - wanted).abs().max())
    assert worst <= 1e-5 * float(wanted.abs().max()), f"{what} differ from the library's by up to {worst:g}"


def _check_writing(format: Format, sae: SAE, folder: Path) -> None:
    if type(format).save is Format.save:
        return
    try:
        format.save(sae, folder)
    except CheckpointError:
        return  # it says that it cannot hold this one
    again = read_as(format, folder, LoadOptions())
    x = torch.randn(32, sae.d_in, generator=torch.Generator().manual_seed(0))
    _near(again.encode(x).dense(), sae.encode(x).dense(), "latents after writing and reading")
    _near(again(x), sae(x), "reconstructions after writing and reading")


def _check_damage(format: Format, path: Path, options: LoadOptions, folder: Path) -> None:
    for damage, damaged in _damaged(path, folder):
        format.matches(damaged)  # must not raise
        refusal = _refusal(format, damaged, options)
        assert refusal, f"{damage}: was read as if nothing were wrong"
        assert len(refusal.splitlines()) == 1, f"{damage}: the refusal has more than one line"


def _refusal(format: Format, path: Path, options: LoadOptions) -> str:
    """Why the format refuses what lies at `path`; empty where it does not."""
    try:
        read_as(format, path, options)
    except SaebenchError as error:
        return str(error)
    return ""


def _damaged(path: Path, folder: Path) -> Iterator[tuple[str, Path]]:
    """Copies of a checkpoint, each spoilt in one way, and what was done to it."""
    weights, configs = (".safetensors", ".pt", ".pth", ".npz"), (".json",)
    for what, suffixes, change in (
        ("the weights cut in half", weights, lambda data: data[: len(data) // 2]),
        ("the weights emptied", weights, lambda data: b""),
        ("the config cut in half", configs, lambda data: data[: len(data) // 2]),
        ("an unknown config key", configs, _with_a_strange_key),
    ):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        copy = folder / path.name
        if path.is_dir():
            shutil.copytree(path, copy)
        else:
            shutil.copy(path, copy)
        files = [f for f in (copy, *copy.rglob("*")) if f.is_file() and f.suffix in suffixes]
        for file in files:
            file.write_bytes(change(file.read_bytes()))
        if files:
            yield what, copy


def _with_a_strange_key(data: bytes) -> bytes:
    return json.dumps(json.loads(data) | {"a_key_that_nobody_knows": 1}).encode()
