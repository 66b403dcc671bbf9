"""The log of a training run as one picture."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

_PANELS = (
    ("loss", "loss"),
    ("explained_variance", "explained variance"),
    ("l0", "L0"),
    ("dead_fraction", "dead latents"),
)


def draw(lines: list[dict[str, Any]], path: Path) -> bool:
    """Loss, explained variance, L0 and dead fraction of every SAE against tokens, as PNG.

    Returns:
        Whether there was anything to draw: baselines have no loss.
    """
    names = list(dict.fromkeys(line["sae"] for line in lines if "loss" in line))
    if not names:
        return False
    figure, axes = plt.subplots(2, 2, figsize=(11, 7), constrained_layout=True)
    for (key, title), axis in zip(_PANELS, axes.flat, strict=True):
        for i, name in enumerate(names):
            own = [line for line in lines if line["sae"] == name and key in line]
            style = ("-", "--", ":")[i // 10 % 3]
            axis.plot([line["tokens"] for line in own], [line[key] for line in own], style, label=name, linewidth=1.2)
        axis.set_xlabel("tokens")
        axis.set_title(title)
        axis.grid(alpha=0.3)
        if key in ("loss", "l0"):
            axis.set_yscale("log")
    axes.flat[1].legend(fontsize=7)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return True
