"""Sampled latents and their firings: shared by the metrics that intervene on single latents.

Samples are the smallest hashes, so that the order of contexts and their division into batches or ranks do not matter.
"""

import numpy as np
import torch
from torch import Tensor

from saebench import Batch, Env, Lens, SaebenchError
from saebench.streams import stream_seed

from .autointerp.tables import Table


def lens_of(env: Env, metric: str) -> Lens:
    """The language model at the hook point.

    Raises:
        SaebenchError: the run has no language model.
    """
    if env.lens is None:
        raise SaebenchError(
            f"metric '{metric}' acts on a language model, but this run has none: run a text task with --model"
        )
    return env.lens


def hashed(purpose: str, seed: int, *keys: np.ndarray | int) -> np.ndarray:
    """uint64 hashes of (purpose, seed, key, …), elementwise; keys are whole numbers and broadcast."""
    out = np.array([stream_seed(purpose, seed)], dtype=np.uint64)
    for key in keys:
        out = _mix(
            (out + np.uint64(0x9E3779B97F4A7C15)) ^ np.atleast_1d(np.asarray(key)).astype(np.int64).view(np.uint64)
        )
    return out


def _mix(h: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 (Steele, Lea & Flood 2014, OOPSLA)."""
    h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    out: np.ndarray = h ^ (h >> np.uint64(31))
    return out


def sampled(metric: str, seed: int, live: np.ndarray, n: int) -> np.ndarray:
    """The n live latents with the smallest hashes, in that order. A latent that leaves the sample never returns."""
    order = np.argsort(hashed(f"{metric}/latents", seed, np.arange(len(live))), kind="stable")
    found: np.ndarray = order[live[order]][:n]
    return found


def fired(batch: Batch, where: Tensor) -> np.ndarray:
    """[d_sae] latents with z > 0 at any of the tokens of the mask `where` [B, T]."""
    latents = batch.latents
    flags = torch.zeros(latents.shape[-1], dtype=torch.bool, device=latents.values.device)
    flags[latents.indices[where.reshape(-1)[latents.rows()] & (latents.values > 0)]] = True
    return flags.cpu().numpy()


def firings(batch: Batch, where: Tensor, chosen: np.ndarray) -> Table:
    """Every firing (z > 0) of the chosen latents in the mask `where` [B, T]: columns latent, row, position and z."""
    latents = batch.latents
    device = latents.values.device
    wanted = torch.zeros(latents.shape[-1], dtype=torch.bool, device=device)
    wanted[torch.from_numpy(chosen).to(device)] = True
    token = latents.rows()
    keep = wanted[latents.indices] & where.reshape(-1)[token] & (latents.values > 0)
    token, width = token[keep], batch.token_ids.shape[1]
    return {
        "latent": latents.indices[keep].cpu().numpy(),
        "row": (token // width).cpu().numpy(),
        "position": (token % width).cpu().numpy(),
        "z": latents.values[keep].double().cpu().numpy(),
    }
