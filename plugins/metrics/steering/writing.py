"""Steered answers to instructions, and the output score of a latent."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from saebench import SaebenchError
from saebench.errors import NonFiniteError
from saebench.lens import Activations, Lens

from ..autointerp.text import clean
from .measure import Steered, raised, run_added
from .settings import JudgedSettings


@dataclass(frozen=True)
class Writer:
    """Answers of the model to the same instructions, steered or not.

    Attributes:
        prompts: token ids of each instruction.
        seed: of the sampling; equal for every latent and factor, so that answers differ by the edit alone.
    """

    lens: Lens
    tokenizer: Any
    prompts: list[list[int]]
    settings: JudgedSettings
    seed: int

    def answers(self, vector: torch.Tensor | None) -> list[str] | None:
        """An answer to each instruction with a vector [d] added at every position; None where the output is not finite."""
        row = None if vector is None else vector.float().to(self.lens.device)

        def add(at: Activations) -> torch.Tensor:
            return at.x if row is None else at.x + row

        end = self.tokenizer.eos_token_id
        try:
            found = self.lens.generate(
                self.prompts, add, tokens=self.settings.tokens, temperature=1.0, seed=self.seed,
                stop=[] if end is None else [end],
            )  # fmt: skip
        except NonFiniteError:
            return None
        return [clean(self.tokenizer.decode(ids, skip_special_tokens=True)) for ids in found]

    def steered(self, one: Steered, neutral: Sequence[list[int]]) -> dict[str, Any]:
        """The answers at each factor, and the output score: the rise in probability of the targets at factor 1.

        The output score needs no judge (Arad et al. 2025, arXiv 2505.20063, with target tokens in place of the logit lens).
        """
        vector = one.size * one.direction
        risen = raised(run_added(self.lens, vector[None], list(neutral)), one.targets)
        answers = [self.answers(factor * vector) for factor in self.settings.factors]
        score = float(risen.mean())
        return {"answers": answers, "output_score": score if np.isfinite(score) else None}


def prompts(tokenizer: Any, instructions: Sequence[str]) -> list[list[int]]:
    """Token ids of each instruction, in the chat template where the tokenizer has one.

    Raises:
        SaebenchError: an instruction without a token.
    """
    out = []
    for text in instructions:
        special = True
        if getattr(tokenizer, "chat_template", None):
            messages = [{"role": "user", "content": text}]
            text, special = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True), False
        out.append([int(i) for i in tokenizer(text, add_special_tokens=special)["input_ids"]])
    if not all(out):
        raise SaebenchError("the tokenizer has no token for an instruction: use a text model")
    return out
