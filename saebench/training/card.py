"""The model card of a trained SAE: a README.md in its folder, as model hubs show it."""

from collections.abc import Mapping, Sequence
from typing import Any

from saebench import __version__
from saebench.sae import SAE
from saebench.text import clean
from saebench.training.request import SaeSpec

# Keys of the log that a card shows, with their captions.
_LOGGED = {
    "explained_variance": "explained variance",
    "l0": "latents per token (L0)",
    "dead_fraction": "share of dead latents",
}


def model_card(
    spec: SaeSpec, sae: SAE, settings: Mapping[str, Any], log: Sequence[Mapping[str, Any]], command: str
) -> str:
    """The card as Markdown.

    Args:
        sae: the SAE as it is written, with its metadata.
        settings: of the recipe, defaults included.
        log: the run's log; the card shows this SAE's last line.
        command: the command line that trained it; "" from Python.
    """
    about = sae.metadata
    facts = {
        "recipe": spec.recipe, "language model": about.model, "hook point": about.hook, "inputs": sae.d_in,
        "latents": sae.d_sae, "training tokens": about.training_tokens, "context length": about.context_length,
        "seed": spec.seed, **settings,
    }  # fmt: skip
    parts = [
        "---\nlibrary_name: saelens\ntags:\n- sparse-autoencoder\n---",
        f"# {clean(spec.name)}",
        f"A sparse autoencoder (SAELens 6) trained with saebench {__version__}.",
        _table("Setting", facts),
    ]
    lines = [line for line in log if line.get("sae") == spec.name]
    if logged := {caption: f"{lines[-1][key]:.4g}" for key, caption in _LOGGED.items() if lines and key in lines[-1]}:
        parts += [
            "## Last training steps",
            "Means over training batches, not a held-out measurement.",
            _table("", logged),
        ]
    parts += ["## Measure it", "```\nsaebench run --sae .\n```"]
    if command:
        parts += ["## How it was trained", f"```\n{clean(command, 2000)}\n```"]
    return "\n\n".join(parts) + "\n"


def _table(heading: str, rows: Mapping[str, Any]) -> str:
    body = "\n".join(f"| {name} | {_cell(value)} |" for name, value in rows.items() if value is not None)
    return f"| {heading} | |\n|---|---|\n{body}"


def _cell(value: Any) -> str:
    return clean(f"{value:,}" if type(value) is int and value > 9999 else value, 200).replace("|", "\\|")
