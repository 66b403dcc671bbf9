"""The request: the options of `saebench run` and the parameters of `saebench.run`, each declared once."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from saebench.errors import UsageError
from saebench.options import option

if TYPE_CHECKING:
    from saebench.running.reporting import Reporter
    from saebench.sae import SAE


@dataclass(frozen=True, kw_only=True)
class Request:
    """The SAEs, metrics, text and settings of a run; the fields are the options of `saebench run`.

    Attributes:
        reporter: receives progress; from Python only.
    """

    saes: str | Path | SAE | Sequence[str | Path | SAE] = option(
        flag="--sae",
        metavar="PATH",
        help="An SAE checkpoint, a folder of them, or a quoted pattern ('runs/*'); repeatable: all share one pass.",
        kw_only=False,
    )
    names: Sequence[str] = option((), flag="--name", help="Its name in records and tables; once for each SAE.")
    model: str | None = option(None, help="Alias, hub id, folder or .gguf. Default: the model each checkpoint names.")
    revision: str | None = option(None, help="Commit or branch of a hub model.")
    hook: str | None = option(
        None, help="Where the SAE reads, e.g. blocks.15.hook_resid_post. Default: from the checkpoint."
    )
    task: str = option("fidelity", help="A task (name, name@version or TOML file), or a suite: probing.")
    tokens: str | Path | None = option(
        None, metavar="FILE.npy", help="Run on these token ids [contexts, tokens] as they are."
    )
    no_bos: bool = option(
        False, help="Contexts without BOS, as some SAEs are trained; recorded, and compared with its like only."
    )
    data: str | Path | None = option(
        None, metavar="FILE", help="Probe for the labels of this table of texts (.csv or .parquet)."
    )
    text_column: str = option("text", help="Of --data.")
    activations: str | Path | None = option(
        None,
        metavar="FILE",
        help="Run on these activations, [N, d] or [items, positions, d] (.npy, .safetensors, .parquet); no model runs.",
    )
    labels: str | Path | None = option(
        None, metavar="FILE", help="Of --activations: a table (.csv or .parquet) with one row per item."
    )
    grid: str | None = option(
        None, metavar="H,W", help="Of --activations: height and width of the positions, for images."
    )
    label_column: str = option("label", help="Of --data and --labels.")
    group_column: str | None = option(
        None, help="Of --data and --labels: rows that share it are on one side of the split. Default: each its own."
    )
    planted: str | None = option(
        None, metavar="NAME", help="Run on a planted model, whose features are known (planted-1k, or a TOML file)."
    )
    metrics: Sequence[str] = option((), flag="--metric", help="Only this metric; repeatable. Default: the task's.")
    settings: Sequence[str] | Mapping[str, Any] = option(
        (),
        flag="--set",
        metavar="METRIC.NAME=VALUE",
        help="A setting of a metric; repeatable. Part of the record's identity.",
    )
    results: str | Path = option(Path("results"), help="Folder of the records.")
    format: str | None = option(None, help="The checkpoint's format. Default: recognised from its files.")
    k: int | None = option(None, help="Active latents per token, for a TopK checkpoint that does not contain it.")
    scale: float | None = option(None, help="Input scale, for a checkpoint that needs one and does not contain it.")
    ignore_keys: Collection[str] = option(
        (), flag="--ignore-key", help="A config key of the checkpoint that changes nothing; repeatable."
    )
    batch_size: int | None = option(None, help="Contexts a batch. Default: fitted to memory.")
    device: str | None = option(None, help="cpu, cuda, cuda:1 … Default: a GPU if there is one.")
    dtype: Literal["float32", "bfloat16", "float16"] | None = option(
        None, help="Of the model. Default: float32 on a CPU, bfloat16 on a GPU."
    )
    limit: int | None = option(None, help="Only the first N contexts; the record is marked partial.")
    seed: int = option(0, help="Seed of metrics that draw at random; the others ignore it.")
    judge: str | None = option(
        None, metavar="PROVIDER:MODEL", help="The judge, for metrics that ask one, e.g. openai:gpt-6-luna, local:ALIAS."
    )
    judge_url: str | None = option(
        None,
        metavar="URL",
        help="A server of your own (vLLM, llama.cpp, Ollama); gets no key but $SAEBENCH_JUDGE_KEY.",
    )
    judge_cache: str | Path | None = option(
        None, metavar="FILE", help="The judge's replies. Default: one file in the cache folder."
    )
    judge_batch: bool = option(
        False, help="Send requests in batches: half the price, up to a day; the run may be stopped and repeated."
    )
    judge_thinking: int = option(
        0,
        metavar="TOKENS",
        help="Tokens for the thoughts of a reasoning model at --judge-url. Default: no thinking.",
    )
    replay: Literal["record", "live", "only"] = option(
        "record",
        help="record asks for replies missing from the file; live asks for all of them again and replaces the file's, so "
        "that older records can be replayed only from a copy; only asks for none.",
    )
    max_cost: float | None = option(
        None, metavar="USD", help="Stop before the judge's calls cost more; run again to continue."
    )
    force: bool = option(False, help="Compute scores again that a record already has.")
    strict: bool = option(False, help="A broken plugin is an error.")
    reporter: Reporter | None = None

    @property
    def sources(self) -> list[str | Path | SAE]:
        """The SAEs as a list."""
        several = isinstance(self.saes, Sequence) and not isinstance(self.saes, str)
        return list(self.saes) if several else [self.saes]  # type: ignore[arg-type,list-item]

    @property
    def folder(self) -> Path:
        """Folder of the records."""
        return Path(self.results)


def check_request(request: Request) -> None:
    """Raise UsageError for options that are invalid, before anything is loaded."""
    from saebench.corpus import open_tokens

    if request.folder.exists() and not request.folder.is_dir():
        raise UsageError(f"--results {request.folder} is a file: name a folder")
    if request.device is not None and not _has_device(request.device):
        raise UsageError(f"--device {request.device} is not on this machine: cpu is, or leave it out")
    if request.max_cost is not None and not 0 <= request.max_cost < math.inf:
        raise UsageError(f"--max-cost must be an amount of US dollars, not {request.max_cost}")
    for name, value in (("--limit", request.limit), ("--batch-size", request.batch_size)):
        if value is not None and value < 1:
            raise UsageError(f"{name} must be 1 or more, not {value}")
    if request.tokens is not None:
        open_tokens(Path(request.tokens))


def _has_device(name: str) -> bool:
    import torch

    try:
        return torch.device(name).type != "cuda" or torch.cuda.is_available()
    except RuntimeError:
        return False
