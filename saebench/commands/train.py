"""`saebench train`: train SAEs, with progress, and print their folders."""

import json
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from saebench.commands.shell import console_on, debug_option, echo, errors, options
from saebench.errors import SaebenchError, UsageError, one_line
from saebench.options import options_of
from saebench.training.request import TrainRequest

if TYPE_CHECKING:
    from rich.console import Console

    from saebench.training.checkpoints import RunFolder

_OF_ONE_SAE = ("width", "k", "sets")
_OF_A_TOY = ("seed", "k", "sets")


@click.command()
@click.argument("what", required=False, metavar="RECIPE|FILE.toml")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the run; the same command again goes on in it.")
@options(TrainRequest, unset=True)
@click.option("--width", type=int, help="Latents.")
@click.option("--k", type=int, help="Active latents per token, for recipes that have a k.")
@click.option("--set", "sets", multiple=True, metavar="NAME=VALUE", help="Another setting of the recipe; repeatable.")
@click.option("--toy", is_flag=True, help="Recover the planted features of a small network instead: seconds, no model.")
@click.option("--dry-run", is_flag=True, help="Print tokens, steps, memory and time; train nothing.")
@click.option("--json", "as_json", is_flag=True, help="With --dry-run: as JSON on stdout.")
@debug_option
def train(
    what: str | None, out: Path | None, toy: bool, dry_run: bool, as_json: bool, debug: bool, **given: Any
) -> None:
    """Train SAEs on a model's activations, all of a file's from one forward pass.

    \b
    Examples:
      saebench train topk --model smollm2-135m-instruct --hook blocks.15.hook_resid_post --width 2304 --k 32 --out my-sae
      saebench train tasks/train/smollm2-135m.toml --out baselines
      saebench train tasks/train/llama-3.2-1b.toml --dry-run
      saebench train topk --planted planted-1k --width 256 --k 8 --out planted-sae
      saebench train --toy
      torchrun --nproc-per-node 2 -m saebench train FILE.toml --out run
    """
    with errors(debug):
        if as_json and not dry_run:
            raise UsageError("--json goes with --dry-run: a run writes its log into --out")
        if toy:
            _toy(what or "topk", out, dry_run, given)
            return
        command = _command(what, given)
        requests = _requests(what, given)
        if dry_run:
            _dry_run(requests, as_json)
            return
        if out is None:
            raise UsageError("--out DIR is missing: the folder of the run")
        _train(requests, out, command)


def _command(what: str | None, given: dict[str, Any]) -> str:
    """The command line that trains the same SAEs: options of where it runs are left out."""
    flags = {one.name: one.flag for one in options_of(TrainRequest) if one.name not in ("device", "cache")}
    parts = ["saebench", "train", str(what)]
    for name, flag in {**flags, "width": "--width", "k": "--k"}.items():
        if given[name] is not None:
            parts += [flag] if isinstance(given[name], bool) else [flag, str(given[name])]
    return shlex.join([*parts, *(part for text in given["sets"] for part in ("--set", text))])


def _requests(what: str | None, options: dict[str, Any]) -> list[TrainRequest]:
    """One run, or one for each hook point of a file."""
    from saebench.training.plan import OF_A_MODEL, expand, read_requests, with_options

    if what is None:
        raise UsageError("name a recipe (saebench list recipes) or a TOML file (tasks/train/ has some)")
    own = {name: options.pop(name) for name in _OF_ONE_SAE}
    if what.endswith(".toml"):
        if given := [name for name, value in own.items() if value not in (None, ())]:
            raise UsageError(f"--{given[0].rstrip('s')} sets one SAE, and {what} lists the SAEs: change it there")
        if given := [name for name in ("planted", "activations") if options[name]]:
            raise UsageError(f"--{given[0]} goes with a recipe, and {what} names its own source: change it there")
        found = read_requests(Path(what), options["seed"] or 0)
        if found[0].planted and (given := [name for name in sorted(OF_A_MODEL) if options.get(name) is not None]):
            raise UsageError(
                f"--{given[0].replace('_', '-')} is of a language model, and {what} trains on a planted one"
            )
        return [with_options(request, options) for request in (found[:1] if options["hook"] else found)]
    if options["planted"] or options["activations"]:
        _fill_source(options)
    for name, value in (("model", options["model"]), ("hook", options["hook"]), ("width", own["width"])):
        if value is None:
            raise UsageError(f"--{name} is missing (or name a TOML file)")
    settings = dict(_setting(text) for text in own["sets"])
    if twice := settings.keys() & ({"recipe", "width"} | ({"k"} if own["k"] is not None else set())):
        raise UsageError(f"--set {min(twice)}=… repeats an option of the command: leave it out")
    entry = {"recipe": what, "width": own["width"], "seed": options["seed"] or 0} | settings
    if own["k"] is not None:
        entry["k"] = own["k"]
    asked = {name: value for name, value in options.items() if value is not None}
    if options["planted"] or options["activations"]:
        asked["max_norm"] = None
    return [TrainRequest(saes=tuple(expand(entry)), **asked)]


def _fill_source(options: dict[str, Any]) -> None:
    """Let a planted model or a file stand for model and hook point.

    Raises:
        UsageError: both are given, or an option of a language model.
    """
    sources = [name for name in ("planted", "activations") if options[name]]
    clash = [name for name in ("model", "hook", "data", "context_length", "bos") if options[name] is not None]
    if len(sources) > 1 or clash:
        raise UsageError(
            f"--{sources[0]} and --{(sources[1:] or clash)[0].replace('_', '-')} do not go together: leave one out"
        )
    value = options[sources[0]]
    options["model"] = value.name if isinstance(value, Path) else value.rpartition("/")[2].removesuffix(".toml")
    options["hook"] = "activations"


def _setting(text: str) -> tuple[str, Any]:
    """('lr', 0.001) of 'lr=0.001'; the value as JSON has it, else as text."""
    name, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"--set {text}: write it as NAME=VALUE, like lr=0.001")
    try:
        return name.strip(), json.loads(value)
    except ValueError:
        return name.strip(), value


def _dry_run(requests: list[TrainRequest], as_json: bool) -> None:
    from saebench.models import load_config
    from saebench.training.budget import budget
    from saebench.training.estimate import estimate
    from saebench.training.shapes import check_shapes

    found = []
    if sourced := [request for request in requests if request.planted or request.activations]:
        raise UsageError(
            f"--dry-run estimates runs on a language model, and {sourced[0].model} is none: run it without"
        )
    for request in requests:
        check_shapes(request, load_config(request.model, request.revision))  # before text is read, which takes a while
    for request in requests:
        tokens, steps, text = budget(request)
        found.append((estimate(request, tokens, steps, None if text is None else text.length), text))
    if as_json:
        plain = [run.to_json() | ({} if text is None else {"text": text.facts()}) for run, text in found]
        echo(json.dumps(plain[0] if len(plain) == 1 else plain, indent=1))
        return
    for run, text in found:
        for line in [*run.lines(), *([] if text is None else text.describe())]:
            echo(line)


def _train(requests: list[TrainRequest], out: Path, command: str) -> None:
    from saebench import ranks
    from saebench.models import default_device, load_config
    from saebench.training.run import train as run_training
    from saebench.training.shapes import check_shapes

    console = console_on()
    rank, _ = ranks.start(ranks.own_device(requests[0].device or default_device()))
    for request in requests:  # before the first of them trains
        if not (request.planted or request.activations):
            check_shapes(request, load_config(request.model, request.revision))
    folders = [out] if len(requests) == 1 else [out / request.hook for request in requests]
    paths: list[Path] = []
    for request, folder in zip(requests, folders, strict=True):
        paths += run_training(request, folder, TrainProgress(console, quiet=rank > 0), command)
    if rank > 0:
        return
    for path in paths:
        console.print(f"SAE: {path}", markup=False, soft_wrap=True)
    measured = paths if len(paths) == 1 else folders  # a folder stands for the SAEs in it
    saes = " ".join(f"--sae {shlex.quote(str(path))}" for path in measured)
    console.print(f"measure: saebench run {saes}", markup=False, soft_wrap=True)


def _toy(name: str, out: Path | None, dry_run: bool, options: dict[str, Any]) -> None:
    from saebench.recipe import make_settings
    from saebench.registry import registry
    from saebench.training.request import require_whole
    from saebench.training.toy import toy

    given = [key for key, value in options.items() if key not in _OF_A_TOY and value is not None]
    if given or dry_run:
        option = given[0].replace("_", "-") if given else "dry-run"
        raise UsageError(f"--{option} does not go with --toy, which takes a recipe, --seed, --k, --set and --out")
    seed = options["seed"] or 0
    require_whole("--seed", seed, 0)
    recipe = registry().get("recipes", name)
    settings = dict(_setting(text) for text in options["sets"])
    if options["k"] is not None:
        settings["k"] = options["k"]
    make_settings(recipe, settings)  # a setting that the recipe lacks must not pass as the toy's own
    found = toy(recipe, seed=seed, **settings)
    picture = (out or Path()) / "toy.png"
    try:
        picture.parent.mkdir(parents=True, exist_ok=True)
        found.figure().savefig(picture, dpi=110)
    except OSError as error:
        raise SaebenchError(f"{picture} could not be written: {one_line(error)}") from error
    echo(f"{name}: mean max cosine to the planted features {found.mean_max_cosine:.3f}, matched {found.mcc:.3f}")
    console_on().print(f"latents against features: {picture}", markup=False, soft_wrap=True)


class TrainProgress:
    """A live table on a terminal; elsewhere a line per SAE every twentieth of the run, and at least every half minute."""

    _SILENCE = 30.0  # seconds

    _COLUMNS = (("loss", ".4f"), ("explained_variance", ".4f"), ("l0", ".1f"), ("dead_fraction", ".4f"))

    def __init__(self, console: "Console", quiet: bool) -> None:
        self.console, self.quiet = console, quiet
        self.live: Any = None
        self.steps = self.printed = 0
        self.spoke = time.monotonic()

    def message(self, text: str) -> None:
        if not self.quiet:
            self.console.print(text, markup=False, style="dim")

    def capturing(self, done: int, total: int) -> None:
        if not self.quiet and self.live is None and time.monotonic() - self.spoke >= self._SILENCE:
            self.spoke = time.monotonic()
            self.message(f"activations: {done} of {total} forward passes")

    def begin(self, steps: int, done: int) -> None:
        from rich.live import Live

        self.steps, self.printed = steps, done
        if not self.quiet and self.console.is_terminal:
            self.live = Live(console=self.console, refresh_per_second=2)
            self.live.start()

    def stepped(self, step: int) -> None:
        if not self.quiet and self.live is None and time.monotonic() - self.spoke >= self._SILENCE:
            self.spoke = time.monotonic()
            self.message(f"step {step:,} of {self.steps:,}")

    def progress(self, step: int, tokens_per_second: float, lines: list[dict[str, Any]]) -> None:
        from rich.table import Table

        if self.quiet:
            return
        title = f"step {step:,} of {self.steps:,}, {tokens_per_second:,.0f} tokens/s"
        if self.live is None:
            silent = time.monotonic() - self.spoke >= self._SILENCE
            if silent or step - self.printed >= self.steps / 20 or step == self.steps:
                self.printed, self.spoke = step, time.monotonic()
                for line in lines:
                    figures = ", ".join(f"{key} {line[key]:{form}}" for key, form in self._COLUMNS if key in line)
                    said = ": ".join(filter(None, (title, line["sae"], figures)))  # a baseline has no figures
                    self.console.print(said, markup=False, soft_wrap=True)
            return
        table = Table(title=title, title_justify="left")
        table.add_column("SAE")
        for key, _ in self._COLUMNS:
            table.add_column(key, justify="right")
        for line in lines:
            table.add_row(line["sae"], *(f"{line[key]:{form}}" if key in line else "" for key, form in self._COLUMNS))
        self.live.update(table)

    def end(self) -> None:
        if self.live is not None:
            self.live.stop()
            self.live = None

    def logged(self, folder: "RunFolder") -> None:
        from saebench.training.curves import draw

        picture = folder.path / "curves.png"
        if draw(folder.read_log(), picture):
            self.console.print(f"curves: {picture}", markup=False, soft_wrap=True)
