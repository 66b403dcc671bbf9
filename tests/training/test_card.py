"""The model card beside a trained SAE."""

from pathlib import Path

from click.testing import CliRunner

import saebench
from saebench.cli import main

from .shared import command


def test_a_card_has_settings_scores_and_the_command(llama: Path, ids: Path, tmp_path: Path) -> None:
    given = [*command("topk", llama, ids, tmp_path / "run"), "--set", "lr=0.002", "--no-bos"]
    done = CliRunner().invoke(main, given)
    assert done.exit_code == 0, done.output
    folder = tmp_path / "run" / "topk-k4"
    card = (folder / "README.md").read_text()
    sae = saebench.load_sae(folder)
    for row in (
        f"| latents | {sae.d_sae} |",
        "| k | 4 |",
        "| lr | 0.002 |",
        "| auxk |",
        "| latents per token (L0) | 4 |",
    ):
        assert row in card
    line = next(line for line in card.splitlines() if line.startswith("saebench train"))
    assert line.endswith("--set lr=0.002")
    for part in ("topk", f"--model {llama}", f"--data {ids}", "--width 48", "--k 4", "--no-bos", "--batch-size 1000"):
        assert part in line
    assert "--device" not in line, "the machine's, not the SAE's"


def test_a_baselines_card_has_no_scores(llama: Path, ids: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(main, command("pca", llama, ids, tmp_path / "run"))
    assert done.exit_code == 0, done.output
    card = (tmp_path / "run" / "pca-k4" / "README.md").read_text()
    assert "| recipe | pca |" in card
    assert "Last training steps" not in card
