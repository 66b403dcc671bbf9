"""The size of a run: its text, steps, contexts per chunk, and bytes of a checkpoint."""

from dataclasses import replace
from typing import Any

from saebench.corpus import special_ids, token_contexts
from saebench.errors import UsageError
from saebench.models import load_config, load_tokenizer
from saebench.training.baselines import BASELINES
from saebench.training.request import TrainRequest
from saebench.training.text import Text, training_text

# Activations that are shuffled together, unless they would take more than this.
_CHUNK_TOKENS = 2**17
_CHUNK_BYTES = 2 * 2**30
# Share of all tokens held back where the budget is "all of the text": outliers are known only once they are computed.
_OUTLIERS = 0.002


def chunk_contexts(request: TrainRequest, d_in: int, nbytes: int, length: int) -> int:
    """How many contexts of `length` tokens are shuffled together."""
    if request.chunk_contexts:
        return request.chunk_contexts
    tokens = max(min(_CHUNK_TOKENS, _CHUNK_BYTES // (d_in * nbytes)), 2 * request.batch_size)
    if request.tokens:  # no chunk holds much more than the run takes
        tokens = min(tokens, int(1.02 * request.tokens) + 2 * length)
    return max(1, tokens // length)


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


def budget(request: TrainRequest) -> tuple[int | None, int | None, Text | None]:
    """(tokens, steps, text) of a request whose text is on this machine; of one from a hub, the request's own numbers and None.

    Raises:
        UsageError: see `step_count`.
    """
    if request.data is None and request.corpus.hub is not None:
        return request.tokens, request.tokens and request.tokens // request.batch_size, None
    tokenizer = load_tokenizer(request.model, request.revision)
    text = read_text(request, tokenizer, load_config(request.model, request.revision))
    steps = step_count(request, text.tokens)
    return steps * request.batch_size, steps, text


def read_text(request: TrainRequest, tokenizer: Any, config: Any, vocabulary: int | None = None) -> Text:
    """The text of a request.

    Args:
        config: the model's.
        vocabulary: rows of the embedding, which bound token ids; None takes the config's vocabulary.

    Raises:
        UsageError: `data` is missing, or no such file as `saebench.training.text.own_texts` reads.
    """
    config = config.get_text_config()
    if request.data is not None and request.data.suffix == ".npy":
        specials = special_ids(tokenizer, config)
        contexts = token_contexts(request.data, vocabulary or config.vocab_size, specials.tolist())
        return Text(contexts.token_ids.astype("int32"), specials, len(contexts))
    if tokenizer is None:
        raise UsageError(f"model '{request.model}' has no tokenizer: give token ids with --data FILE.npy")
    wanted = (request.tokens or 2**62) // request.epochs + 4 * _CHUNK_TOKENS
    return training_text(with_bos(request, tokenizer).task(), tokenizer, wanted, request.data)


def with_bos(request: TrainRequest, tokenizer: Any) -> TrainRequest:
    """The request with bos = "auto" replaced by whether the tokenizer has a BOS token."""
    if request.bos != "auto":
        return request
    return replace(request, bos=getattr(tokenizer, "bos_token_id", None) is not None)


def checkpoint_bytes(request: TrainRequest, d_in: int) -> int:
    """Weights and two moments of every SAE, in float32."""
    return sum(3 * 4 * (2 * d_in * sae.width + sae.width + d_in) for sae in request.saes if sae.recipe not in BASELINES)
