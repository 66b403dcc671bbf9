"""SAEBench's own core evaluation on fixed tokens and one SAE, timed. Runs in an environment of its own.

    .bench/venv/bin/python tests/bench/saebench_core_peer.py --model DIR --tokens FILE.npy --sae DIR --out FILE.json

What is measured is `sae_bench.evals.core.main.run_evals`, called as its command line calls it (every metric on, feature-wise
statistics on, batch size 16, special tokens excluded). Only its three inputs are ours:

* the model: TransformerLens knows no SmolLM2, so its config is written out by hand and the weights go in unprocessed;
* the token store: a stand-in that deals the fixed rows in order, in place of one that streams a hub data set;
* the SAE: SAEBench's own TopKSAE class, filled with the checkpoint's tensors.

Facts about what its core scores (version 0.6.0, read and confirmed by the numbers):

* Cross-entropy and KL are gathered per token over all batches, then averaged once: no average of batch averages. A token
  is left out if it is the pad, EOS or BOS id; the last position has no loss; KL takes every position left.
* The spliced run replaces the masked-in positions only; zero ablation replaces every position.
* cossim, l2_ratio, l0 are per-token means over the same positions, in one more pass over the model up to the hook point.
* l0 counts z != 0, but alive fraction (`frac_alive`) counts z > 0; both agree where latents are never negative.
* explained_variance takes, per dimension, the square of the mean *square* where the square of the mean belongs; mse is
  divided by the number of tokens in its batch once too often; explained_variance_legacy and relative_reconstruction_bias
  are made of batch means and move with the batch size. None of these four can be compared.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from meter import Meter, peak_mib
from safetensors.torch import load_file

HOOK_LAYER = 15


class FixedTokens:
    """Deals rows of a [contexts, T] tensor in order: the part of sae_lens' ActivationsStore that the core eval uses."""

    def __init__(self, tokens: torch.Tensor) -> None:
        self.tokens = tokens
        self.context_size = tokens.shape[1]
        self.next = 0

    def get_batch_tokens(self, n: int) -> torch.Tensor:
        batch = self.tokens[self.next : self.next + n]
        if len(batch) != n:
            raise SystemExit(f"asked for {n} contexts at {self.next}, there are {len(self.tokens)}")
        self.next += n
        return batch

    def reset_input_dataset(self) -> None:
        self.next = 0


def load_model(folder: Path) -> tuple[Any, Any]:
    """The Hugging Face model and its HookedTransformer, weights unprocessed (no folding, no centring)."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformer_lens.pretrained.weight_conversions import convert_llama_weights
    from transformers import AutoModelForCausalLM

    hf: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    c = hf.config
    cfg = HookedTransformerConfig(
        model_name="smollm2-135m-instruct",
        n_layers=c.num_hidden_layers,
        d_model=c.hidden_size,
        n_heads=c.num_attention_heads,
        n_key_value_heads=c.num_key_value_heads,
        d_head=c.hidden_size // c.num_attention_heads,
        d_mlp=c.intermediate_size,
        d_vocab=c.vocab_size,
        n_ctx=2048,
        eps=c.rms_norm_eps,
        act_fn="silu",
        gated_mlp=True,
        normalization_type="RMS",
        final_rms=True,
        positional_embedding_type="rotary",
        rotary_adjacent_pairs=False,
        rotary_dim=c.hidden_size // c.num_attention_heads,
        rotary_base=int(c.rope_parameters["rope_theta"]),
        original_architecture="LlamaForCausalLM",
        dtype=torch.float32,
        device="cpu",
    )
    model = HookedTransformer(cfg)
    model.load_and_process_state_dict(
        convert_llama_weights(hf, cfg),
        fold_ln=False,
        center_writing_weights=False,
        center_unembed=False,
        fold_value_biases=False,
        refactor_factored_attn_matrices=False,
    )
    return hf, model.eval()


@torch.no_grad()
def logits_differ(hf: Any, model: Any, tokens: torch.Tensor) -> float:
    """The largest absolute difference between the two models' logits."""
    return float((hf(tokens, use_cache=False).logits - model(tokens, return_type="logits")).abs().max())


def load_sae(path: Path) -> Any:
    """SAEBench's TopKSAE with a checkpoint's tensors, for the three folders this project bundles.

    Its own loaders are not used: there is none for sparsify, and none that reads a local folder.
    """
    tensors, k, threshold = read_checkpoint(path)
    from sae_bench.custom_saes.topk_sae import TopKSAE

    d_in, d_sae = tensors["W_enc"].shape
    sae = TopKSAE(
        d_in,
        d_sae,
        k,
        "smollm2-135m-instruct",
        HOOK_LAYER,
        torch.device("cpu"),
        torch.float32,
        use_threshold=threshold is not None,
    )
    if threshold is not None:
        tensors["threshold"] = threshold
    sae.load_state_dict(tensors | {"k": sae.k})
    # Its core asks every SAE for this name, which its own classes lack in 0.6.0: without it the run ends in an AttributeError.
    sae.cfg.architecture = sae.cfg.architecture_str = "topk"
    return sae


def read_checkpoint(path: Path) -> tuple[dict[str, torch.Tensor], int, torch.Tensor | None]:
    """W_enc [d_in, d_sae], W_dec [d_sae, d_in], b_enc, b_dec in float32; k; BatchTopK's threshold."""
    if (path / "sae_weights.safetensors").is_file():  # SAELens v6, exported: decoder norms are folded
        raw, k = load_file(path / "sae_weights.safetensors"), json.loads((path / "cfg.json").read_text())["k"]
        tensors, threshold = {n: raw[n] for n in ("W_enc", "W_dec", "b_enc", "b_dec")}, None
    elif (path / "ae.pt").is_file():  # dictionary_learning
        raw = torch.load(path / "ae.pt", map_location="cpu", weights_only=True)
        k, threshold = int(raw["k"]), raw["threshold"].float()
        tensors = {
            "W_enc": raw["encoder.weight"].T,
            "W_dec": raw["decoder.weight"].T,
            "b_enc": raw["encoder.bias"],
            "b_dec": raw["b_dec"],
        }
    else:  # sparsify; the folder itself, or the parent of its hook point's folder
        folder = path if (path / "sae.safetensors").is_file() else next(path.glob("*/sae.safetensors")).parent
        raw, k = load_file(folder / "sae.safetensors"), json.loads((folder / "cfg.json").read_text())["k"]
        tensors = {
            "W_enc": raw["encoder.weight"].T,
            "W_dec": raw["W_dec"],
            "b_enc": raw["encoder.bias"],
            "b_dec": raw["b_dec"],
        }
        threshold = None
    return {n: t.float().contiguous() for n, t in tensors.items()}, k, threshold


def special_ids(folder: Path) -> set[int | None]:
    """The ids its command line leaves out: the tokenizer's pad, EOS and BOS."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    return {tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id}


def run_core(
    model: Any, sae: Any, tokens: torch.Tensor, batch_size: int, ignore: set[int | None]
) -> tuple[dict[str, float], dict[str, float | None]]:
    """SAEBench's numbers and what they cost (see `Meter`), model already loaded."""
    from sae_bench.evals.core.eval_config import CoreEvalConfig
    from sae_bench.evals.core.main import calculate_misc_metrics, run_evals

    batches, rest = divmod(len(tokens), batch_size)
    if rest:
        raise SystemExit(f"{len(tokens)} contexts do not divide into batches of {batch_size}")
    config = CoreEvalConfig(
        model_name="smollm2-135m-instruct",
        batch_size_prompts=batch_size,
        n_eval_reconstruction_batches=batches,
        n_eval_sparsity_variance_batches=batches,
        exclude_special_tokens_from_reconstruction=True,
        context_size=tokens.shape[1],
        compute_kl=True,
        compute_ce_loss=True,
        compute_l2_norms=True,
        compute_sparsity_metrics=True,
        compute_variance_metrics=True,
        compute_featurewise_density_statistics=True,
        compute_featurewise_weight_based_metrics=True,
        llm_dtype="float32",
    )
    meter = Meter()
    scalars, features = run_evals(sae, FixedTokens(tokens), model, config, ignore_tokens=ignore)
    misc = calculate_misc_metrics(features)
    spent = meter.stop()
    flat = {name: float(v) for group in scalars.values() for name, v in group.items()}
    return flat | {name: float(v) for name, v in misc.items()}, spent


@torch.no_grad()
def explained_variance(hf: Any, sae: Any, tokens: torch.Tensor) -> float:
    """1 − Σ‖x−x̂‖²/Σ‖x−μ‖² in float64 throughout, from the Hugging Face model's float32 activations at the hook point."""
    caught: list[torch.Tensor] = []
    hook = hf.model.layers[HOOK_LAYER].register_forward_hook(
        lambda _m, _i, out: caught.append((out[0] if isinstance(out, tuple) else out).flatten(0, 1))
    )
    for batch in tokens.split(4):
        hf(batch, use_cache=False, logits_to_keep=1)
    hook.remove()
    x = torch.cat(caught).double()
    residual = x - sae.double()(x)
    sae.float()
    return float(1 - residual.pow(2).sum() / (x - x.mean(0)).pow(2).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("--model", "--tokens", "--sae", "--out"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--batch-size", type=int, default=16)
    args = parser.parse_args()

    tokens = torch.from_numpy(np.load(args.tokens))
    loading = Meter()
    hf, model = load_model(args.model)
    load = loading.stop()["wall_s"]
    difference = logits_differ(hf, model, tokens[:2])
    if difference > 1e-4:
        raise SystemExit(f"TransformerLens and Hugging Face logits differ by {difference:.2e}: the conversion is wrong")
    sae = load_sae(args.sae)
    before = peak_mib()
    scores, spent = run_core(model, sae, tokens, args.batch_size, special_ids(args.model))
    result = {
        "scores": scores,
        **spent,
        "load_s": load,
        "peak_before_mib": before,
        "logits_max_abs_difference": difference,
        "float64_explained_variance": explained_variance(hf, sae, tokens),
        "batch_size": args.batch_size,
        "contexts": len(tokens),
        "context": tokens.shape[1],
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


def versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("sae-bench", "sae-lens", "transformer-lens", "transformers", "torch")}


if __name__ == "__main__":
    main()
