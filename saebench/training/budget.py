"""How much there is to do: the text, its steps, what is shuffled together, what a checkpoint takes."""

from typing import Any

import torch

from saebench.corpus import token_contexts
from saebench.errors import UsageError
from saebench.models import load_config, load_tokenizer
from saebench.training.baselines import BASELINES
from saebench.training.plan import TrainRequest
from saebench.training.text import Text, training_text

# Activations that are shuffled together, unless they would take more than this.
_CHUNK_TOKENS = 2**17
_CHUNK_BYTES = 2 * 2**30
# Of all tokens: what is kept back where the budget is "all of the text", since outliers are known only when they come.
_OUTLIERS = 0.002


def chunk_contexts(request: TrainRequest, d_in: int, nbytes: int, length: int) -> int:
    """How many contexts of `length` tokens are shuffled together."""
    if request.chunk_contexts:
        return request.chunk_contexts
    tokens = min(_CHUNK_TOKENS, _CHUNK_BYTES // (d_in * nbytes))
    return max(1, max(tokens, 2 * request.batch_size) // length)


def step_count(request: TrainRequest, text_tokens: int) -> int:
    """How many steps a run has.

    Raises:
        UsageError: the text is too short for the budget, or the budget for one step.
    """
    if not text_tokens:
        raise UsageError("the text has no token to train on: all are special (BOS, padding)")
    most = text_tokens * request.epochs
    tokens = request.tokens or int(most * (1 - _OUTLIERS))
    if tokens > most:
        epochs = -(-tokens // text_tokens)
        raise UsageError(
            f"{tokens:,} tokens are asked for and the text has {text_tokens:,} × {request.epochs} epoch(s): "
            f"it would take {epochs} epochs (--epochs {epochs}), or give more text or fewer --tokens"
        )
    if tokens < request.batch_size:
        raise UsageError(
            f"{tokens:,} tokens do not fill one batch of {request.batch_size:,}: give more, or a smaller batch"
        )
    return tokens // request.batch_size


def budget(request: TrainRequest) -> tuple[int | None, int | None, int]:
    """(tokens, steps, tokens a context) of a request whose text is on this machine; of one from a hub, what was asked for.

    Raises:
        UsageError: see `step_count`.
    """
    if request.data is None and request.corpus.hub is not None:
        return request.tokens, request.tokens and request.tokens // request.batch_size, request.context_length
    loaded_for = load_tokenizer(request.model, request.revision)
    config = load_config(request.model, request.revision).get_text_config()
    text = read_text(request, loaded_for, config.vocab_size, special_ids_of(config))
    steps = step_count(request, text.tokens)
    return steps * request.batch_size, steps, text.length


def read_text(request: TrainRequest, tokenizer: Any, vocabulary: int, specials: list[int]) -> Text:
    """The text of a request.

    Raises:
        UsageError: `data` is missing, or no such file as `saebench.training.text.own_texts` reads.
    """
    if request.data is not None and request.data.suffix == ".npy":
        contexts = token_contexts(request.data, vocabulary, specials)
        return Text(contexts.token_ids.astype("int32"), torch.tensor(specials).numpy(), len(contexts))
    if tokenizer is None:
        raise UsageError(f"model '{request.model}' has no tokenizer: give token ids with --data FILE.npy")
    wanted = (request.tokens or 2**62) // request.epochs + 4 * _CHUNK_TOKENS
    return training_text(request.task(), tokenizer, wanted, request.data)


def checkpoint_bytes(request: TrainRequest, d_in: int) -> int:
    """Weights and two moments of every SAE, in float32."""
    return sum(3 * 4 * (2 * d_in * sae.width + sae.width + d_in) for sae in request.saes if sae.recipe not in BASELINES)


def special_ids_of(config: Any) -> list[int]:
    """Special ids of a model without a tokenizer, from its config."""
    found = (config.bos_token_id, config.eos_token_id, config.pad_token_id)
    return sorted({i for value in found for i in (value if isinstance(value, list) else [value]) if i is not None})
