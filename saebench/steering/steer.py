"""`saebench.steer`: continuations of a prompt with and without a latent's direction, at several strengths."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from saebench.corpus import bos_id
from saebench.errors import NonFiniteError, UsageError
from saebench.hookpoint import HookPoint
from saebench.lens import Activations, Lens
from saebench.loading.checkpoint import load_sae
from saebench.models import default_device, default_dtype, load_model
from saebench.sae import SAE
from saebench.steering.activity import Activity, activity
from saebench.subject import Subject


@dataclass(frozen=True)
class Continuation:
    """One continuation.

    Attributes:
        strength: in 99.9th percentile activations of each latent; 0 for the untouched model.
        text: the new text, without the prompt.
    """

    strength: float
    text: str


class Steerer:
    """A loaded SAE on its model, ready to steer.

    Attributes:
        sae, subject: on one device.
        lens: at the SAE's hook points.
        activity: how strongly each latent fires in ordinary text.
    """

    def __init__(
        self,
        sae: str | Path | SAE,
        *,
        model: str | None = None,
        hook: str | None = None,
        device: str | None = None,
        dtype: str | None = None,
        **load: Any,
    ) -> None:
        """
        Args:
            sae: a checkpoint, or an SAE in memory.
            model, hook: where the checkpoint names none, or others are meant.
            load: further arguments of `load_sae`.

        Raises:
            UsageError: model or hook point are unknown or do not fit the SAE, or the model has no tokenizer.
        """
        device = device or default_device()
        found = sae if isinstance(sae, SAE) else load_sae(sae, **load)
        meta = found.metadata
        name, place = model or meta.model, hook or meta.hook
        if name is None or place is None:
            missing = "--model" if name is None else "--hook"
            raise UsageError(f"the checkpoint does not name its {missing[2:]}: pass {missing}")
        self.sae = found.to(device, torch.float32)
        self.subject = Subject(load_model(name, dtype=dtype or default_dtype(device), device=device))
        if self.subject.loaded.tokenizer is None:
            raise UsageError(f"model '{name}' has no tokenizer, and a prompt is text: choose a model folder with one")
        read = HookPoint.parse(place)
        write = HookPoint.parse(meta.hook_out) if meta.hook_out and not hook else read
        self.lens = Lens(self.subject, read, write)
        self._require_widths()
        self.activity: Activity = activity(self.subject, self.sae, self.lens)

    def _require_widths(self) -> None:
        here = self.lens.capture([[0]])
        if (here.x_read.shape[-1], here.x.shape[-1]) != (self.sae.d_in, self.sae.d_out):
            raise UsageError(
                f"the SAE reads {self.sae.d_in} numbers per token, but {self.lens.read} of {self.subject.name} has "
                f"{here.x_read.shape[-1]}: check --model and --hook"
            )

    def token_ids(self, prompt: str, chat: bool = False) -> list[int]:
        """The prompt's tokens: after BOS (unless the SAE was trained without), or in the model's chat template.

        Raises:
            UsageError: the prompt is empty, or the tokenizer has no chat template.
        """
        tokenizer = self.subject.loaded.tokenizer
        if not prompt.strip():
            raise UsageError("the prompt is empty: pass some text to continue")
        if not chat:
            own = [int(i) for i in tokenizer(prompt)["input_ids"]]
            bos = bos_id(self.sae.metadata.prepend_bos is not False, tokenizer)
            return own if bos is None or own[:1] == [bos] else [bos, *own]
        if not getattr(tokenizer, "chat_template", None):
            raise UsageError(f"model {self.subject.name} has no chat template: leave --chat away")
        messages = [{"role": "user", "content": prompt}]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return [int(i) for i in tokenizer(text, add_special_tokens=False)["input_ids"]]

    def continuations(
        self,
        prompt: str,
        latents: Sequence[int],
        strengths: Sequence[float],
        *,
        tokens: int = 48,
        chat: bool = False,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> list[Continuation]:
        """The untouched continuation, then one for each strength; arguments as for `steer`."""
        latents = tuple(latents)
        if not latents:
            raise UsageError("no latent given: pass --latent I, or --find WORDS to look for one")
        for strength in strengths:
            if not math.isfinite(strength):
                raise UsageError(f"strength {strength} is not a number: pass a finite --strength")
        if tokens < 1:
            raise UsageError(f"{tokens} tokens to generate: pass --tokens 1 or more")
        self.activity.require_live(latents)
        ids = self.token_ids(prompt, chat)
        device = self.lens.device
        rows = torch.nn.functional.normalize(self.sae.W_dec[list(latents)], dim=1)
        unit = (self.activity.strength[list(latents)].to(device)[:, None] * rows).sum(0)
        every = (0.0, *strengths)
        vectors = torch.tensor(every, device=device)[:, None] * unit
        how = {"tokens": tokens, "temperature": temperature, "seed": seed, "stop": self._stop()}
        try:
            found = self._generate(ids, vectors, how)
        except NonFiniteError as error:
            broken = next((f for f, one in zip(every, vectors, strict=True) if self._breaks(ids, one, how)), every[-1])
            raise NonFiniteError(
                f"strength {broken:g} makes the model's logits non-finite: pass a smaller --strength"
            ) from error
        decode = self.subject.loaded.tokenizer.decode
        return [Continuation(f, decode(out, skip_special_tokens=True)) for f, out in zip(every, found, strict=True)]

    def _generate(self, ids: list[int], vectors: torch.Tensor, how: dict[str, Any]) -> list[list[int]]:
        """A continuation for each vector [n, d], added at every position."""

        def add(at: Activations) -> torch.Tensor:
            return at.x + vectors[at.copy][:, None]

        return self.lens.generate([ids], add, source=torch.zeros(len(vectors), dtype=torch.int64), **how)

    def _breaks(self, ids: list[int], vector: torch.Tensor, how: dict[str, Any]) -> bool:
        try:
            self._generate(ids, vector[None], how)
        except NonFiniteError:
            return True
        return False

    def _stop(self) -> list[int]:
        """Token ids that end a text: the tokenizer's, and those of the model's generation config."""
        config = getattr(self.subject.model, "generation_config", None)
        named = [self.subject.loaded.tokenizer.eos_token_id, getattr(config, "eos_token_id", None)]
        return [i for value in named for i in (value if isinstance(value, list) else [value]) if i is not None]


def steer(
    sae: str | Path | SAE,
    prompt: str,
    *,
    latents: Sequence[int],
    strengths: Sequence[float] = (1.0,),
    tokens: int = 48,
    chat: bool = False,
    temperature: float = 0.0,
    seed: int = 0,
    **where: Any,
) -> list[Continuation]:
    """Continue a prompt with and without the directions of some latents; the same as `saebench steer`.

    At every position of the prompt and of the new text, strength · m · d is added to the activation, with d the latent's decoder
    row and m its 99.9th percentile activation in ordinary text.

    Args:
        sae: a checkpoint, or an SAE in memory.
        prompt: the text to continue.
        latents: their directions are added together.
        strengths: one continuation each.
        tokens: new tokens at most.
        chat: put the prompt into the model's chat template, as a user's message.
        temperature: 0 for the likeliest token; else sampled, with `seed`.
        where: model, hook, device, dtype, and arguments of `load_sae`.

    Returns:
        The untouched continuation (strength 0), then one for each strength.

    Raises:
        UsageError: a latent that is silent or does not exist, a prompt longer than the model's positions.
        NonFiniteError: a strength makes the logits non-finite.
    """
    steerer = Steerer(sae, **where)
    return steerer.continuations(
        prompt, latents, strengths, tokens=tokens, chat=chat, temperature=temperature, seed=seed
    )
