"""How often and how strongly each latent fires in ordinary text: the unit of a steering strength."""

import hashlib
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from saebench.cache import cache_folder, load_from_cache, save_in_cache
from saebench.catalog import load_task
from saebench.corpus import task_contexts
from saebench.errors import UsageError
from saebench.lens import Lens, token_scale
from saebench.sae import SAE
from saebench.subject import Subject

# The text: the first contexts of this task.
_TASK, _CONTEXTS = "fidelity", 64
_QUANTILE = 0.999
# Tokens whose norm exceeds so many medians are massive activations and are left out.
_MAX_NORM = 10.0


@dataclass(frozen=True)
class Activity:
    """Activity of the latents in a sample of text.

    Attributes:
        strength: [d_sae] the 99.9th percentile of ‖z·d‖ over a latent's firings (z > 0); 0 for a silent latent.
        share: [d_sae] share of tokens on which a latent fires.
        tokens: size of the sample.
    """

    strength: Tensor
    share: Tensor
    tokens: int

    def require_live(self, latents: tuple[int, ...]) -> None:
        """Raise UsageError for a latent that does not exist, or is silent in the sample."""
        d_sae = len(self.strength)
        for latent in latents:
            if not 0 <= latent < d_sae:
                raise UsageError(f"latent {latent} is out of range: this SAE has latents 0 to {d_sae - 1}")
            if float(self.strength[latent]) == 0:
                raise UsageError(
                    f"latent {latent} never fires in {self.tokens:,} tokens of text, so its strength has no unit: "
                    "pass another --latent (--find WORDS lists some)"
                )


def activity(subject: Subject, sae: SAE, lens: Lens) -> Activity:
    """The latents' activity in a little of the `fidelity` task's text, cached per SAE and model."""
    key = f"{sae.sha256()} {subject.loaded.sha256} {subject.dtype} {lens.read} {lens.write} {_CONTEXTS}"
    path = cache_folder() / "steering" / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.safetensors"
    found = load_from_cache(path)
    if found is None:
        found = _measure(subject, sae, lens)
        save_in_cache(path, found)
    return Activity(found["strength"], found["share"], int(found["tokens"]))


def _measure(subject: Subject, sae: SAE, lens: Lens) -> dict[str, Tensor]:
    task = load_task(_TASK)
    text = task_contexts(task.with_content(contexts=replace(task.contexts, count=_CONTEXTS)), subject.loaded.tokenizer)
    here = lens.capture(torch.from_numpy(text.token_ids))
    norm = here.x_read.norm(dim=-1)
    ordinary = ~torch.from_numpy(text.special).to(norm.device)
    ordinary &= norm <= _MAX_NORM * norm[ordinary].median()
    x = here.x_read[ordinary]
    latents, scale = sae.encode(x), token_scale(sae, x)
    size = latents.values * sae.W_dec.norm(dim=1)[latents.indices] * scale[latents.rows()]
    fires = latents.values > 0
    order = torch.argsort(size[fires])
    index, size = latents.indices[fires][order], size[fires][order]
    order = torch.argsort(index, stable=True)
    counts = torch.bincount(index, minlength=sae.d_sae)
    strength = torch.zeros(sae.d_sae)
    for latent, values in zip(
        counts.nonzero()[:, 0].tolist(), size[order].split(counts[counts > 0].tolist()), strict=True
    ):
        strength[latent] = torch.quantile(values, _QUANTILE)
    return {"strength": strength, "share": (counts / len(x)).float().cpu(), "tokens": torch.tensor(len(x))}
