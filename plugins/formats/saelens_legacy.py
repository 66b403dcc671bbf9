"""Conversion of SAELens configs before version 6 to those of version 6.

The old configs are flat, contain all settings of the training run, and omit conventions that had no alternative then.
Source: the compatibility code of sae-lens 6.54.12.
"""

from typing import Any

from saebench.format import CheckpointError, LoadOptions
from saebench.loading.readers import Config

# An SAE of one attention head reads d_head entries of hook_z.
HEADS = ("hook_head_index", "hook_point_head_index")
_MATTERS = {
    "architecture", "activation_fn", "activation_fn_str", "activation_fn_kwargs", "k", "apply_b_dec_to_input",
    "finetuning_scaling_factor", "normalize_activations", "reshape_activations", "d_in", "d_sae", "hook_name",
    "hook_point", "model_name", "context_size", "prepend_bos", *HEADS,
}  # fmt: skip
_HARMLESS = {
    "dtype", "device", "hook_layer", "hook_point_layer", "dataset_path",
    "dataset_trust_remote_code", "sae_lens_version", "sae_lens_training_version", "neuronpedia_id", "seqpos_slice",
    "model_from_pretrained_kwargs", "model_kwargs", "model_class_name", "exclude_special_tokens", "streaming",
    "is_dataset_tokenized", "use_cached_activations", "cached_activations_path", "n_batches_in_buffer",
    "training_tokens", "total_training_tokens", "store_batch_size", "store_batch_size_prompts", "seed",
    "b_dec_init_method", "expansion_factor", "from_pretrained_path", "l1_coefficient", "lp_norm", "lr", "lr_end",
    "lr_scheduler_name", "lr_warm_up_steps", "lr_decay_steps", "l1_warm_up_steps", "train_batch_size",
    "train_batch_size_tokens", "use_ghost_grads", "feature_sampling_window", "feature_sampling_method",
    "resample_batches", "feature_reinit_scale", "dead_feature_window", "dead_feature_estimation_method",
    "dead_feature_threshold", "log_to_wandb", "wandb_project", "wandb_entity", "wandb_log_frequency", "wandb_id",
    "eval_every_n_wandb_logs", "n_checkpoints", "checkpoint_path", "tokens_per_buffer", "run_name", "verbose",
    "autocast", "autocast_lm", "compile_llm", "llm_compilation_mode", "compile_sae", "sae_compilation_mode",
    "adam_beta1", "adam_beta2", "mse_loss_normalization", "n_eval_batches", "eval_batch_size_prompts", "n_restart_cycles",
    "finetuning_tokens", "finetuning_method", "normalize_sae_decoder", "noise_scale", "init_encoder_as_decoder_transpose",
    "decoder_orthogonal_init", "decoder_heuristic_init", "decoder_heuristic_init_norm", "scale_sparsity_penalty_by_decoder_norm",
    "jumprelu_init_threshold", "jumprelu_bandwidth", "act_store_device", "logger", "hook_eval",
    "cache_dir", "unique_id", "run_id", "name", "sparsity_penalty", "lr_scheduler", "model_batch_size", "log_name",
}  # fmt: skip


def is_legacy(cfg: Config) -> bool:
    """Whether the config is older than version 6, which has the model's keys under `metadata`."""
    return not isinstance(cfg.data.get("metadata"), dict)


def refuse_one_head(cfg: Config) -> None:
    """Raise CheckpointError if the SAE was trained on a single attention head."""
    for key in HEADS:
        if cfg.has(key):
            raise CheckpointError(
                f"{cfg.path}: '{cfg.prefix}{key}' is {cfg.integer(key, low=0)}: an SAE of one attention head reads a part of its "
                "hook point, which is not supported"
            )


def modern(cfg: Config, options: LoadOptions) -> Config:
    """Convert a config to version 6.

    Raises:
        CheckpointError: an unknown key, or an activation that SAELens 6 does not have.
    """
    cfg.check(_MATTERS, _HARMLESS, options)
    refuse_one_head(cfg)
    architecture = cfg.text("architecture", "standard")
    activation = cfg.text("activation_fn_str") or cfg.text("activation_fn") or "relu"
    kwargs = cfg.table("activation_fn_kwargs")
    kwargs.check({"k"}, {"use_sparse_activations"}, options)
    data: dict[str, Any] = {
        key: cfg.data[key]
        for key in ("d_in", "d_sae", "finetuning_scaling_factor", "k", "reshape_activations")
        if key in cfg.data
    }
    if activation == "topk" and architecture in ("standard", "topk"):
        architecture = "topk"
        data["k"] = kwargs.integer("k", cfg.integer("k"))
    elif activation == "relu" and kwargs.has("k"):
        raise CheckpointError(f"{cfg.path}: 'activation_fn_kwargs.k' contradicts activation 'relu': remove one")
    elif activation != "relu" and not (activation == "topk" and architecture == "topk"):
        raise CheckpointError(
            f"{cfg.path}: activation '{activation}' with architecture '{architecture}' is not supported"
        )
    normalize = cfg.data.get("normalize_activations")
    if isinstance(normalize, bool):
        normalize = "expected_average_only_in" if normalize else "none"
    return Config(
        cfg.path,
        data
        | {
            "architecture": architecture,
            "normalize_activations": normalize or "none",
            "apply_b_dec_to_input": cfg.boolean("apply_b_dec_to_input", True),
            "metadata": {
                "hook_name": cfg.text("hook_name") or cfg.text("hook_point"),
                "model_name": cfg.text("model_name"),
                "context_size": cfg.integer("context_size"),
                "prepend_bos": cfg.data.get("prepend_bos"),
            },
        },
    )
