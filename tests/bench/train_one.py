"""One trainer on the benchmark's activations, in a process of its own: what `train.py` starts for each line of its table.

    python tests/bench/train_one.py TRAINER DIR OUT.pt --steps 300 --lr 2e-3

TRAINER is saebench, sparsify, dictionary_learning or sae_lens; each is called as its own training loop calls it, on the same
batches in the same order, with its own loss, initialisation and constraints. All have one schedule: warm-up over 5 % of the
steps (the libraries' 1,000 steps are longer than the run), then constant, then falling over the last 20 %. For ours a latent
is dead after 30,000 silent tokens; the others' 10 million tokens or 1,000 steps are longer than the run. What it made goes to
OUT.pt, in the space of the activations, and its figures to stdout as JSON.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch
from meter import Meter
from torch import Tensor

WIDTH, K, BATCH, D = 4608, 32, 2048, 576
# Of ours: silent for so many tokens, a latent is dead.
DEAD_AFTER = 30_000
Step = Callable[[Tensor], Any]
Made = tuple[Step, Callable[[], dict[str, Tensor]], float]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("trainer", choices=sorted(TRAINERS))
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--lr", type=float)
    options = parser.parse_args()
    torch.manual_seed(0)
    rows = torch.load(options.folder / "train-acts.pt", mmap=True)[: options.steps * BATCH].float()
    step, weights, lr = TRAINERS[options.trainer](rows, options.steps, options.lr)
    meter, seconds = Meter(), []
    for x in rows.split(BATCH):
        start = time.perf_counter()
        step(x)
        seconds.append(time.perf_counter() - start)
    used = meter.stop()
    torch.save(weights(), options.out)
    print(
        json.dumps(
            {"trainer": options.trainer, "lr": lr, "activations": len(rows), "median_step_s": median(seconds), **used}
        )
    )


def saebench(rows: Tensor, steps: int, lr: float | None) -> Made:
    from saebench.recipe import make_settings
    from saebench.registry import registry
    from saebench.training.trainer import Trainer

    recipe = registry().recipes["topk"]
    settings = make_settings(recipe, {"k": K, "dead_after": DEAD_AFTER} | ({} if lr is None else {"lr": lr}))
    trainer = Trainer(recipe, settings, D, width=WIDTH, seed=0, steps=steps)
    trainer.initialise(rows[: 4 * BATCH])

    def weights() -> dict[str, Tensor]:
        sae = trainer.sae()
        return {"W_enc": sae.W_enc, "W_dec": sae.W_dec, "b_enc": sae.b_enc, "b_dec": sae.b_dec}

    return trainer.step, weights, settings.lr


def dictionary_learning(rows: Tensor, steps: int, lr: float | None) -> Made:
    """As `trainSAE` runs it: activations scaled to unit mean square norm, folded back at the end."""
    from dictionary_learning.trainers.top_k import AutoEncoderTopK, TopKTrainer

    norm = float(rows[: 100 * BATCH].pow(2).sum(1).mean().sqrt())
    trainer = TopKTrainer(
        steps,
        D,
        WIDTH,
        K,
        15,
        "smollm2",
        AutoEncoderTopK,
        lr=lr,
        warmup_steps=steps // 20,
        decay_start=steps * 4 // 5,
        seed=0,
        device="cpu",
    )
    count = iter(range(steps))

    def weights() -> dict[str, Tensor]:
        ae = trainer.ae
        ae.scale_biases(norm)
        return {
            "W_enc": ae.encoder.weight.T, "W_dec": ae.decoder.weight.T, "b_enc": ae.encoder.bias, "b_dec": ae.b_dec,
        }  # fmt: skip

    return lambda x: trainer.update(next(count), x / norm), weights, trainer.lr


def sparsify(rows: Tensor, steps: int, lr: float | None) -> Made:
    """As its `Trainer` runs a step with Adam and AuxK (fvu + α·auxk, projection, Adam, unit norm)."""
    from sparsify import SparseCoder, SparseCoderConfig

    coder = SparseCoder(D, SparseCoderConfig(num_latents=WIDTH, k=K))
    coder.b_dec.data = rows[:BATCH].mean(0)
    lr = lr or 2e-4 / (WIDTH / 2**14) ** 0.5
    optimizer = torch.optim.Adam(coder.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min(1.0, (s + 1) / (steps / 20), (steps - s) / (steps / 5))
    )
    silent = torch.zeros(WIDTH, dtype=torch.long)

    def step(x: Tensor) -> None:
        out = coder(x, dead_mask=silent > 10_000_000)
        (out.fvu + out.auxk_loss / 32).backward()
        silent.add_(len(x))
        silent[out.latent_indices.flatten()] = 0
        coder.remove_gradient_parallel_to_decoder_directions()
        optimizer.step()
        optimizer.zero_grad()
        coder.set_decoder_norm_to_unit_norm()
        schedule.step()

    def weights() -> dict[str, Tensor]:
        return {
            "W_enc": coder.encoder.weight.T, "W_dec": coder.W_dec, "b_enc": coder.encoder.bias, "b_dec": coder.b_dec,
        }  # fmt: skip

    return step, weights, lr


def sae_lens(rows: Tensor, steps: int, lr: float | None, autocast: bool = False) -> Made:
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    lr = lr or SAETrainerConfig.lr
    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=D, d_sae=WIDTH, k=K))
    config = SAETrainerConfig(
        total_training_samples=len(rows), train_batch_size_samples=BATCH, lr=lr, lr_end=lr / 10,
        lr_warm_up_steps=steps // 20, lr_decay_steps=steps // 5, autocast=autocast, logger=LoggingConfig(log_to_wandb=False),
    )  # fmt: skip
    nothing: Iterator[Tensor] = iter(())
    trainer = SAETrainer(config, sae, nothing)

    def step(x: Tensor) -> None:
        trainer.step(x)
        trainer.n_training_steps += 1

    def weights() -> dict[str, Tensor]:
        norm = sae.W_dec.norm(dim=1)  # it selects on activations times the decoder's norms
        return {
            "W_enc": sae.W_enc * norm,
            "W_dec": sae.W_dec / norm[:, None],
            "b_enc": sae.b_enc * norm,
            "b_dec": sae.b_dec,
        }

    return step, weights, lr


def sae_lens_bf16(rows: Tensor, steps: int, lr: float | None) -> Made:
    return sae_lens(rows, steps, lr, autocast=True)


TRAINERS: dict[str, Callable[[Tensor, int, float | None], Made]] = {
    f.__name__: f for f in (saebench, dictionary_learning, sparsify, sae_lens, sae_lens_bf16)
}

if __name__ == "__main__":
    main()
