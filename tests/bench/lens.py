"""Steering copies through the lens against plain hooked forward passes, in one run: `make bench-lens`.

100 latents × 8 strengths × 64 contexts of 24 tokens: for every copy, the KL from clean and the log-probabilities of 20 tokens
after the context. Both sides use the same model, threads and precision. The plain side runs the whole model on batches of copies
with a forward hook; it is timed on a random sample of the copies and scaled up. Prints one JSON line with the ratio and the
largest difference.
"""

import json
import sys

import torch

from saebench import HookPoint, load_sae
from saebench.lens import Activations, Lens
from saebench.models import load_model
from saebench.subject import Subject
from tests.bench.meter import Meter

LATENTS, STRENGTHS, CONTEXTS, LENGTH, TOKENS, BATCH = 100, 8, 64, 24, 20, 32
# Batches of the plain side that are timed.
SAMPLE = 20


def main(sae_path: str, latents: int = LATENTS) -> None:
    sae = load_sae(sae_path)
    subject = Subject(load_model(sae.metadata.model or ""))
    place = HookPoint.parse(sae.metadata.hook or "")
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(100, subject.vocabulary, (CONTEXTS, LENGTH), generator=generator)
    wanted = torch.randint(100, subject.vocabulary, (TOKENS,), generator=generator)
    directions = torch.nn.functional.normalize(sae.W_dec[:latents], dim=1)
    strengths = torch.linspace(5, 40, STRENGTHS)
    vectors = (strengths[:, None, None] * directions).reshape(-1, sae.d_out)
    source = torch.arange(CONTEXTS).repeat(len(vectors))
    lens = Lens(subject, place)

    meter = Meter()
    forked = lens.fork(ids, lambda at: _added(at, vectors), source=source)
    ours = (forked.kl()[:, 0], forked.log_probabilities(wanted)[:, 0])
    mine = meter.stop()

    sample = torch.randperm(len(source), generator=generator)[: SAMPLE * BATCH]
    meter, worst = Meter(), 0.0
    for copies in sample.split(BATCH):
        kl, log_p = _plain(subject, place, ids[source[copies]], vectors[copies // CONTEXTS], wanted)
        worst = max(worst, float((kl - ours[0][copies]).abs().max()), float((log_p - ours[1][copies]).abs().max()))
    plain = meter.stop()

    scale = len(source) / len(sample)
    seconds = {"lens_s": mine["wall_s"], "plain_s": (plain["wall_s"] or 0) * scale}
    ratio = seconds["plain_s"] / (seconds["lens_s"] or 1)
    busy = {"others_cores_lens": mine["others_cores"], "others_cores_plain": plain["others_cores"]}
    print(json.dumps({"copies": len(source), **seconds, "ratio": ratio, "largest_difference": worst, **busy}))


def _added(at: Activations, vectors: torch.Tensor) -> torch.Tensor:
    return at.x + vectors[at.copy // CONTEXTS][:, None]


@torch.no_grad()
def _plain(
    subject: Subject, place: HookPoint, ids: torch.Tensor, vectors: torch.Tensor, wanted: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """KL from clean and log-probabilities at the last token, by whole forward passes; the clean one runs once a batch."""
    clean = subject.model(input_ids=ids, use_cache=False).logits[:, -1].double().log_softmax(-1)

    def add(module: torch.nn.Module, args: object, output: torch.Tensor | tuple[torch.Tensor, ...]) -> object:
        if isinstance(output, tuple):
            return (output[0] + vectors[:, None], *output[1:])
        return output + vectors[:, None]

    handle = subject.blocks[place.layer].register_forward_hook(add)
    try:
        steered = subject.model(input_ids=ids, use_cache=False).logits[:, -1].double().log_softmax(-1)
    finally:
        handle.remove()
    return (clean.exp() * (clean - steered)).sum(-1), steered[:, wanted]


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
