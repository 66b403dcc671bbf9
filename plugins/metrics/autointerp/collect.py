"""What the pass leaves behind: windows around activations of the sampled latents, and contexts in which to find silent ones.

Everything is kept by smallest hash, so that it does not matter in which order contexts come, how many a batch holds, or
how many processes share them; and memory does not grow with the text or with the width of the SAE.
"""

from dataclasses import dataclass

import numpy as np
import torch

from saebench import Batch

from .hashing import Purpose, hashed
from .settings import Settings
from .tables import Table, rank_within, rows

# The two halves of the documents.
EXPLAINER, JUDGE = 0, 1
# Entries that are looked at together: bounds the [entries, window] temporaries of a latent that fires everywhere.
_ENTRIES = 2**16


def latent_order(seed: int, d_sae: int) -> np.ndarray:
    """[d_sae] latents in the order of their hashes: the sample is the first so many of them that are live."""
    order: np.ndarray = np.argsort(hashed(seed, Purpose.LATENT, np.arange(d_sae)), kind="stable")
    return order


def sampled(order: np.ndarray, live: np.ndarray, n: int) -> np.ndarray:
    """The first n live latents in that order. As more become live the n-th moves forward: what leaves never comes back."""
    found: np.ndarray = order[live[order]][:n]
    return found


def side(seed: int, document: np.ndarray) -> np.ndarray:
    """EXPLAINER or JUDGE for each document, by a coin that its id throws."""
    return (hashed(seed, Purpose.SIDE, document) >> np.uint64(63)).astype(np.int8)


@dataclass(frozen=True)
class View:
    """One batch as the collection needs it, on the CPU.

    Attributes:
        latents: [K] the sampled ones so far.
        z: [K, B, T] their activations at scored tokens; 0 elsewhere.
        tokens: [B, T] int32
        ok: [B, T] scored tokens: windows hold no others, so every activation in them counts and is known.
        low, high: [B] where each context's text begins and ends: special tokens at its ends are left out.
        context, document: [B]
        side: [B] whose each document is.
    """

    latents: np.ndarray
    z: np.ndarray
    tokens: np.ndarray
    ok: np.ndarray
    low: np.ndarray
    high: np.ndarray
    context: np.ndarray
    document: np.ndarray
    side: np.ndarray

    def fits(self, window: int) -> np.ndarray:
        """[B] contexts that are as long as a window."""
        found: np.ndarray = self.high - self.low >= window
        return found


def fired(batch: Batch) -> np.ndarray:
    """[d_sae] latents that fire on any scored token of a batch."""
    latents = batch.latents
    flags = torch.zeros(latents.shape[-1], dtype=torch.bool, device=latents.values.device)
    flags[latents.indices[batch.scored.reshape(-1)[latents.rows()]]] = True
    return flags.cpu().numpy()


def view(batch: Batch, chosen: np.ndarray, seed: int) -> View:
    """The batch as seen by these latents."""
    latents, (b, t) = batch.latents, batch.token_ids.shape
    device = latents.values.device
    column = torch.full((latents.shape[-1],), -1, dtype=torch.int64, device=device)
    column[torch.from_numpy(chosen).to(device)] = torch.arange(len(chosen), device=device)
    row, column = latents.rows(), column[latents.indices]
    mine = (column >= 0) & batch.scored.reshape(-1)[row]
    z = np.zeros((len(chosen), b * t), dtype=np.float32)
    z[column[mine].cpu().numpy(), row[mine].cpu().numpy()] = latents.values[mine].float().cpu().numpy()
    text = ~batch.special.cpu().numpy()
    some = text.any(1)
    return View(
        chosen,
        z.reshape(len(chosen), b, t),
        batch.token_ids.cpu().numpy().astype(np.int32),
        batch.scored.cpu().numpy(),
        np.where(some, text.argmax(1), 0),
        np.where(some, t - text[:, ::-1].argmax(1), 0),
        np.asarray(batch.context_id, dtype=np.int64),
        np.asarray(batch.document_id, dtype=np.int64),
        side(seed, np.asarray(batch.document_id)),
    )


def start_of(place: np.ndarray, low: np.ndarray, high: np.ndarray, window: int) -> np.ndarray:
    """Where the window around a place begins: the place in its middle, but within the text."""
    start: np.ndarray = np.clip(place - window // 2, low, high - window)
    return start


# --- activating windows ----------------------------------------------------------------------------------------------


def activating(v: View, settings: Settings, seed: int) -> Table:
    """One row for each peak: a token where a latent is strongest of the window around it (the first of equals).

    Columns: latent, side, hash, context, document, peak and start (positions in the context), magnitude |z| at the peak, and
    of the stretch of 2·window − 1 tokens around the peak, which holds every window that the peak is in: tokens (−1 outside
    of the context), z, ok.
    """
    w = settings.window
    k, b, t = np.nonzero(v.z)
    keep = v.fits(w)[b]
    k, b, t = k[keep], b[keep], t[keep]
    start = start_of(t, v.low[b], v.high[b], w)
    peak = np.zeros(len(k), dtype=bool)
    for begin in range(0, len(k), _ENTRIES):
        part = slice(begin, begin + _ENTRIES)
        at = start[part, None] + np.arange(w)
        peak[part] = v.ok[b[part, None], at].all(1)
        strongest = np.abs(v.z[k[part, None], b[part, None], at]).argmax(1)
        peak[part] &= strongest == t[part] - start[part]
    k, b, t, start = k[peak], b[peak], t[peak], start[peak]
    table = {
        "latent": v.latents[k],
        "side": v.side[b],
        "hash": hashed(seed, Purpose.WINDOW, v.latents[k], v.context[b], t),
        "context": v.context[b],
        "document": v.document[b],
        "peak": t,
        "start": start,
        "magnitude": np.abs(v.z[k, b, t]),
    }
    return table | _stretches(v, k, b, t, w)


def _stretches(v: View, k: np.ndarray, b: np.ndarray, t: np.ndarray, w: int) -> Table:
    at = t[:, None] + np.arange(-(w - 1), w)
    inside = (at >= v.low[b, None]) & (at < v.high[b, None])
    at = np.where(inside, at, 0)
    return {
        "tokens": np.where(inside, v.tokens[b[:, None], at], -1).astype(np.int32),
        "z": np.where(inside, v.z[k[:, None], b[:, None], at], 0).astype(np.float32),
        "ok": inside & v.ok[b[:, None], at],
    }


def smallest_windows(table: Table, settings: Settings, latents: np.ndarray) -> Table:
    """Of these latents, the rows with the smallest hashes of each side, and the strongest of either."""
    table = rows(table, np.isin(table["latent"], latents))
    by_hash = rank_within(table["latent"] * 2 + table["side"], table["hash"])
    by_strength = rank_within(table["latent"], -table["magnitude"], table["hash"])
    return rows(table, (by_hash < settings.reservoir) | (by_strength < settings.top))


# --- contexts in which to find silent windows ------------------------------------------------------------------------


def pooled(v: View, settings: Settings, seed: int) -> Table:
    """The judge's contexts. Columns: context, document, hash, low, high, tokens and ok [n, T]."""
    mine = (v.side == JUDGE) & v.fits(settings.window)
    return {
        "context": v.context[mine],
        "document": v.document[mine],
        "hash": hashed(seed, Purpose.CONTEXT, v.context[mine]),
        "low": v.low[mine],
        "high": v.high[mine],
        "tokens": v.tokens[mine],
        "ok": v.ok[mine],
    }


def smallest_contexts(table: Table, settings: Settings) -> Table:
    """The rows with the smallest hashes."""
    order = np.lexsort((table["context"], table["hash"]))[: settings.pool]
    return rows(table, np.sort(order))


def firings(v: View, contexts: np.ndarray) -> Table:
    """Where the sampled latents fire in these contexts. Columns: latent, context, position."""
    k, b, t = np.nonzero(v.z)
    mine = np.isin(v.context[b], contexts)
    return {
        "latent": v.latents[k[mine]],
        "context": v.context[b[mine]],
        "position": t[mine].astype(np.int32),
    }


def only(table: Table, latents: np.ndarray, contexts: np.ndarray) -> Table:
    """The firings of these latents in these contexts."""
    return rows(table, np.isin(table["latent"], latents) & np.isin(table["context"], contexts))
