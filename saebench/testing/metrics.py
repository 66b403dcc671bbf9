"""`check_metric`: proves on made-up contexts that a metric keeps its contract."""

import json
import math
import tempfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from saebench.forward.fork import check_edits
from saebench.hookpoint import HookPoint
from saebench.labels import Labels
from saebench.lens import Lens
from saebench.metric import Batch, Edit, Edited, Env, Metric, TokenLosses, get_state, set_state
from saebench.models import load_model
from saebench.sae import SAE
from saebench.stats import ratio_interval
from saebench.subject import Subject
from saebench.testing.tiny import constant_sae, identity_sae, random_sae, tiny_llama

Values = dict[tuple[str, float | None], float]
MakeEnv = Callable[[SAE], Env]


class SyntheticText:
    """Made-up contexts with activations and losses: BOS first, and a few outliers, which are not scored.

    Attributes:
        x: [contexts, length, d] activations.
        scored, special: [contexts, length] bool.
        labels: two classes of documents, a third of them held out, each a group of its own.
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
        number = np.arange(contexts)
        self.labels = Labels(("a", "b"), number // 2 % 2, number % 3 == 0, number)
        self.mean = self.x[self.scored].mean(0) + 0.1
        self.poison: Tensor | None = None
        self.extra = 0

    def batch(self, sae: SAE, rows: Collection[int]) -> Batch:
        """The batch of these contexts, with activations, latents, reconstructions and losses."""
        at = torch.tensor(sorted(rows))
        x, scored = self.x[at].clone(), self.scored[at]
        losses = self.losses[:, at].clone()
        if self.poison is not None:
            x[self.poison[at]] = 1e4
            losses[:, ~scored] = 1e4
        special, token_ids, last = self.special[at], self.token_ids[at], x.shape[1] - 1
        if self.extra:  # unscored positions after the context, half of them special
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
            x, latents, sae.decode(latents, x), token_losses, x, _labels=self.labels.take(ids),
        )  # fmt: skip

    def give(self, metric: Metric, sae: SAE, rows: Collection[int]) -> None:
        """Update a metric with the batch of these contexts and made-up losses of its edits, computed row by row."""
        batch = self.batch(sae, rows)
        if metric.edit_rows:
            edits = metric.edits(replace(batch, _token_losses=None))
            sources = check_edits(metric, edits, batch)
            batch = replace(batch, _edited={e.name: _edited(e, s, batch) for e, s in zip(edits, sources, strict=True)})
        metric.update(batch)

    def values(
        self, metric_class: type[Metric], sae: SAE, batches: list[list[int]], parts: int = 1, env: MakeEnv = Env
    ) -> Values:
        """Scores of a metric over these batches, dealt to `parts` instances that are then merged."""
        metrics = [metric_class(sae) for _ in range(parts)]
        if metric_class.needs or metric_class.edit_rows:
            for i, rows in enumerate(batches):
                self.give(metrics[i % parts], sae, rows)
        for other in metrics[1:]:
            metrics[0].merge(other)
        return score_values(metrics[0], env(sae))


def _edited(edit: Edit, source: Tensor, batch: Batch) -> Edited:
    """Made-up predictions under an edit: cross-entropy and KL grow with its distance from x."""
    change = (edit.rows - batch.x[source]).norm(dim=-1) / batch.x[source].norm(dim=-1).clamp_min(1e-6)
    scored = batch.scored[source]
    kl = torch.where(scored, change, 0)
    cross_entropy = torch.where(scored, batch.token_losses.clean[source] + change, 0)
    return Edited(source, cross_entropy, kl, edit.rows if edit.hidden else None)


def score_values(metric: Metric, env: Env) -> Values:
    """{(key, at): value} of every score, computed as the harness does."""
    scores = metric.scores(env)
    units = metric.units()
    out: Values = {}
    for score in scores:
        value = ratio_interval(units, score).value if score.num is not None else score.value
        assert value is not None, f"score '{score.key}' has neither columns nor a value"
        out[score.key, score.at] = float(value)
    return out


def lens_env(sae: SAE, batch_size: int | None = None) -> Env:
    """An `Env` whose lens is a tiny random Llama as wide as the SAE; its vocabulary covers `SyntheticText`."""
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
    reads_scale: Collection[str] = (),
    ignores_sae: bool = False,
    env: MakeEnv | None = None,
) -> None:
    """Prove on made-up contexts that a metric keeps its contract.

    - Scores depend neither on the split into batches nor on the order of contexts.
    - Merged instances have the scores of one instance that saw every context; so has one that was saved and restored.
    - Scores are finite and fit JSON.
    - Neither the values nor the number of unscored tokens enter a score.
    - Another SAE has other scores.
    - The scale of a latent changes nothing: a decoder row ten times as long with a latent a tenth as large is the same latent.

    Args:
        metric: the class.
        identity: expected scores (by key) of an SAE that reconstructs exactly.
        mean_predictor: expected scores of an SAE whose reconstruction is always the mean of the scored tokens.
        reads_outliers: keys of scores that count unscored tokens on purpose.
        reads_text: whether the metric reads unscored tokens as text around the scored ones, so that their number matters.
        reads_scale: keys of scores that depend on the scale of latents on purpose, such as decoder norms.
        ignores_sae: whether all SAEs have the same scores on purpose.
        env: makes the environment of `scores` for an SAE. A metric that asks a judge or reads text needs
            `lambda sae: Env(sae, tokenizer, judge=judge_session(answer))`. By default, a metric that declares `uses_lens` gets a
            lens on a tiny random model (`lens_env`).

    Raises:
        AssertionError: the contract is broken; the message names the score and the two values.
    """
    env = env or (lens_env if metric.uses_lens else Env)
    text, sae = SyntheticText(), random_sae(16, 48)
    everything = list(range(len(text.x)))
    whole = text.values(metric, sae, [everything], env=env)
    assert whole, "the metric has no scores"
    json.dumps([[k, a, v] for (k, a), v in whole.items()], allow_nan=False)
    _check_splits(metric, sae, text, env, whole)
    fixed = {key: value for key, value in whole.items() if key[0] not in reads_outliers}
    _check_unscored(metric, sae, text, env, fixed, reads_text)
    other = text.values(metric, random_sae(16, 48, k=5, seed=1), [everything], env=env)
    assert ignores_sae or other != whole, "every score is the same for another SAE: the metric ignores the SAE"
    _check_scale(metric, text, env, reads_scale)
    mean = constant_sae(text.x[text.scored].double().mean(0).float())
    for expected, known in ((identity, identity_sae(16)), (mean_predictor, mean)):
        if expected:
            found = text.values(metric, known, [everything], env=env)
            wanted: Values = {(k, None): v for k, v in expected.items()}
            _same(wanted, {key: found[key] for key in wanted}, "for a known SAE")


def _check_splits(metric: type[Metric], sae: SAE, text: SyntheticText, env: MakeEnv, whole: Values) -> None:
    """Other batches, another order, merged and restored instances: every score stays."""
    everything = list(range(len(text.x)))
    shuffled = list(reversed(everything))
    others = {
        "single contexts": text.values(metric, sae, [[i] for i in everything], env=env),
        "another order": text.values(metric, sae, [shuffled[i : i + 5] for i in range(0, len(shuffled), 5)], env=env),
        "three merged instances": text.values(metric, sae, [[i, i + 1] for i in everything[::2]], parts=3, env=env),
        "a restored instance": _restored(metric, sae, text, env),
    }
    for how, found in others.items():
        _same(whole, found, f"in {how}")


def _check_unscored(
    metric: type[Metric], sae: SAE, text: SyntheticText, env: MakeEnv, fixed: Values, reads_text: bool
) -> None:
    """Other values at unscored tokens, then more unscored tokens: the fixed scores stay."""
    everything = list(range(len(text.x)))
    text.poison = ~text.scored
    poisoned = text.values(metric, sae, [everything], env=env)
    text.poison = None
    _same(fixed, {k: v for k, v in poisoned.items() if k in fixed}, "with other values at tokens that are not scored")
    if reads_text:
        return
    text.extra = 4
    longer = text.values(metric, sae, [everything], env=env)
    text.extra = 0
    _same(fixed, {k: v for k, v in longer.items() if k in fixed}, "with more tokens that are not scored")


def _check_scale(metric: type[Metric], text: SyntheticText, env: MakeEnv, reads_scale: Collection[str]) -> None:
    """Rescale the latents of a ReLU SAE; a TopK SAE would choose others."""
    sae, everything = random_sae(16, 48, k=None), list(range(len(text.x)))
    factor = torch.tensor([10.0, 1.0, 0.1]).repeat(16)
    other = replace(sae, W_enc=sae.W_enc / factor, b_enc=sae.b_enc / factor, W_dec=sae.W_dec * factor[:, None])
    found, scaled = (
        {key: v for key, v in text.values(metric, one, [everything], env=env).items() if key[0] not in reads_scale}
        for one in (sae, other)
    )
    _same(found, scaled, "with latents of another scale (see reads_scale)")


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
