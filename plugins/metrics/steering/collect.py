"""The pass: firings of sampled latents with the tokens that follow, means of activations, and neutral contexts.

Documents have one of three roles, by hash: `TARGETS` supply target sets, percentiles and directions; `CHOOSE` and `SCORE` supply
the neutral contexts on which a strength is chosen and scored.
"""

import numpy as np
import torch
from torch import Tensor

from saebench import SAE, Batch
from saebench.lens import token_scale

from ..autointerp.tables import Table, joined, rows
from ..latents import firings, hashed
from .settings import PassSettings

TARGETS, CHOOSE, SCORE = 0, 1, 2
# Firings whose activations are held at once while they are summed.
_ENTRIES = 2**15


def role(seed: int, document: np.ndarray) -> np.ndarray:
    """The role of each document: half of them supply targets, a quarter each the contexts to choose and to score on."""
    quarter = hashed("steering/role", seed, document) >> np.uint64(62)
    return np.where(quarter < 2, TARGETS, quarter - 1).astype(np.int8)


def predicting(batch: Batch) -> Tensor:
    """[B, T] scored tokens of the target documents that are followed by an ordinary token."""
    mine = torch.from_numpy(role(batch.seed, np.asarray(batch.document_id)) == TARGETS).to(batch.scored.device)
    where = batch.scored & mine[:, None]
    where[:, :-1] &= ~batch.special[:, 1:]
    where[:, -1] = False
    return where


def next_counts(batch: Batch, where: Tensor) -> np.ndarray:
    """[V'] how often each token follows the tokens of a mask; V' is the largest of them plus one."""
    following = batch.token_ids.roll(-1, 1)[where]
    return np.bincount(following.cpu().numpy())


def added(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The sum of two count vectors of unequal length."""
    out = np.zeros(max(len(a), len(b)), dtype=np.int64)
    out[: len(a)] += a
    out[: len(b)] += b
    return out


def fired_tokens(batch: Batch, sae: SAE, where: Tensor, chosen: np.ndarray) -> tuple[Table, Table]:
    """Firings of the chosen latents, and sums of the activations at them.

    Returns:
        firings: columns latent, next (the token that follows) and strength (norm of z·d in the model's space).
        sums: columns latent, count and sum [n, d_out].
    """
    found = firings(batch, where, chosen)
    latent, token = found["latent"], found["row"] * batch.token_ids.shape[1] + found["position"]
    device = batch.x.device
    norm = sae.W_dec.double().norm(dim=1).cpu().numpy()
    scale = token_scale(sae, batch.x_read).double().reshape(-1).cpu().numpy()
    following = batch.token_ids.roll(-1, 1).reshape(-1).cpu().numpy()
    own, place = np.unique(latent, return_inverse=True)
    sums = torch.zeros(len(own), batch.x.shape[-1], dtype=torch.float64, device=device)
    x = batch.x.reshape(-1, batch.x.shape[-1])
    for start in range(0, len(latent), _ENTRIES):
        part = slice(start, start + _ENTRIES)
        index = torch.from_numpy(place[part].astype(np.int64)).to(device)
        sums.index_add_(0, index, x[torch.from_numpy(token[part]).to(device)].double())
    strength = found["z"] * norm[latent] * scale[token]
    table = {"latent": latent, "next": following[token].astype(np.int32), "strength": strength.astype(np.float32)}
    counts = np.bincount(place, minlength=len(own))
    return table, {"latent": own, "count": counts, "sum": sums.cpu().numpy()}


def summed(tables: list[Table], latents: np.ndarray) -> Table:
    """One row per latent of several tables of sums."""
    table = joined(tables)
    table = rows(table, np.isin(table["latent"], latents))
    own, place = np.unique(table["latent"], return_inverse=True)
    total = np.zeros((len(own), table["sum"].shape[1]))
    np.add.at(total, place, table["sum"])
    count = np.bincount(place, weights=table["count"], minlength=len(own)).astype(np.int64)
    return {"latent": own, "count": count, "sum": total}


def neutral(batch: Batch, settings: PassSettings) -> Table:
    """The beginnings of contexts of the other documents: columns role, context, document, hash and tokens [n, length]."""
    roles = role(batch.seed, np.asarray(batch.document_id))
    length = settings.length
    # Special tokens stand at the beginning only; one after it would be padding or a document's end.
    special = batch.special[:, :length].cpu().numpy()
    whole = special.shape[1] == length and ~special[:, 1:].any(1)
    mine = (roles != TARGETS) & whole
    context = np.asarray(batch.context_id)[mine]
    return {
        "role": roles[mine],
        "context": context,
        "document": np.asarray(batch.document_id)[mine],
        "hash": hashed("steering/contexts", batch.seed, context),
        "tokens": batch.token_ids[:, :length].cpu().numpy()[mine].astype(np.int32),
    }


def chosen_contexts(tables: list[Table], settings: PassSettings) -> Table:
    """The contexts with the smallest hashes of either role, sorted by role and hash."""
    table = joined(tables)
    order = np.lexsort((table["hash"], table["role"]))
    roles = table["role"][order]
    place = np.arange(len(order)) - np.searchsorted(roles, roles)
    return rows(table, order[place < settings.contexts // 2])
