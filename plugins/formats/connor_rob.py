"""The attention SAEs of Kissane and Krzyzanowski (2024): `NAME.pt` and `NAME_cfg.json`, on hook_z with heads flattened.

ReLU; b_dec is subtracted. Source: sae-lens's loader, without sample files; the list of training keys may be incomplete, and
an unknown key is refused.
"""

from pathlib import Path

from saebench import SAE, Format, LoadOptions, hookimpl
from saebench.format import CheckpointError, Layout
from saebench.loading.readers import Config, TorchFile, shapes_of, torch_file_of
from saebench.sae import Fact, Metadata, ReLU

_MATTERS = {"act_size", "dict_size", "act_name", "model_name", "seq_len", "head", "concat_heads"}
_HARMLESS = {
    "seed", "batch_size", "buffer_mult", "lr", "num_tokens", "l1_coeff", "beta1", "beta2", "dict_mult", "enc_dtype",
    "site", "layer", "device", "reinit", "resample_scheme", "anthropic_neuron_resample_scale",
    "dead_direction_cutoff", "re_init_every", "anthropic_resample_last", "resample_factor", "num_resamples",
    "wandb_project_name", "wandb_entity", "save_state_dict_every", "b_dec_init", "sched_type", "sched_epochs",
    "sched_lr_factor", "sched_warmup_epochs", "sched_finish", "anthropic_resample_batches", "eval_every",
    "model_batch_size", "buffer_size", "buffer_batches", "name",
}  # fmt: skip


def config_of(file: Path) -> Path | None:
    """The config beside a weights file of the same name."""
    config = file.with_name(f"{file.stem}_cfg.json")
    return config if config.is_file() else None


class ConnorRob(Format):
    """Attention SAEs of GPT-2 by Kissane and Krzyzanowski."""

    name = "connor_rob"
    layouts = (Layout("*.pt", ("{*}_cfg.json",), folder=False),)

    def matches(self, path: Path) -> bool:
        file = torch_file_of(path)
        return file is not None and config_of(file) is not None and "W_enc" in shapes_of(file)

    def load(self, path: Path, options: LoadOptions) -> SAE:
        """Load `NAME.pt`; architecture and hook point are in the `NAME_cfg.json` beside it."""
        source = torch_file_of(path)
        config = config_of(source) if source else None
        if source is None or config is None:
            raise CheckpointError(f"{path}: expected NAME.pt beside NAME_cfg.json")
        file, cfg = TorchFile(source), Config.read(config)
        cfg.check(_MATTERS, _HARMLESS, options)
        if not cfg.boolean("concat_heads", True):
            raise CheckpointError(f"{cfg.path}: 'concat_heads' is false: an SAE of one attention head is not supported")
        file.check({"W_enc", "W_dec", "b_enc", "b_dec"}, (), options)
        d_in, d_sae = file.shape("W_enc", 2)
        cfg.expect("act_size", d_in)
        cfg.expect("dict_size", d_sae)
        return SAE(
            file.get("W_enc", d_in, d_sae), file.get("W_dec", d_sae, d_in).contiguous(), file.get("b_enc", d_sae),
            file.get("b_dec", d_in), ReLU(), True,
            metadata=Metadata(dtype=file.dtype,
                architecture="standard", model=cfg.text("model_name"), hook=cfg.text("act_name"),
                context_length=cfg.integer("seq_len"),
                facts=(Fact("subtracts b_dec", "true", "inferred: this format always does"),),
            ),
        )  # fmt: skip


@hookimpl
def saebench_formats() -> list[Format]:
    return [ConnorRob()]
