"""A page for each SAE: every score of every task, with curves, and where each number comes from. Plain HTML, no script."""

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from saebench.board.html_page import render_page
from saebench.board.plots import architecture
from saebench.board.tables import caption
from saebench.report import Board, Cell, Column, Row
from saebench.results import Record, RecordError, slug
from saebench.text import clean

_ARROWS = {"higher": " ↑", "lower": " ↓", None: ""}


def page_names(boards: Sequence[Board]) -> dict[str, str]:
    """The file's name of each SAE's page, by the SAE's sha256: the same SAE on several boards has one page."""
    names: dict[str, str] = {}
    for row in (row for board in boards for row in board.rows):
        sha = str(row.record.sae["sha256"])
        if sha not in names:
            name = f"{slug(str(row.record.sae['name']))}-{slug(sha)[:8]}".lower()
            taken = name in {other.removesuffix(".html") for other in names.values()}
            names[sha] = f"{name}-{len(names)}.html" if taken else f"{name}.html"
    return names


def kept_names(row: Row) -> dict[str, str]:
    """The names under which the HTML pages that metrics left beside the record are copied, by metric."""
    entries = row.record.metrics
    return {
        metric: f"{slug(metric)}-{slug(row.record.fingerprint)[:16]}-{slug(str(row.record.sae['sha256']))[:8]}.html".lower()
        for metric in entries
        if "html" in entries[metric].get("files", {}) and _source(row, metric).path is not None
    }


def _source(row: Row, metric: str) -> Record:
    """The record of the row that the metric is taken from."""
    return next((p for p in row.parts if p.metrics.get(metric) is row.record.metrics[metric]), row.record)


def _kept(row: Row, metric: str) -> str:
    """A page that a metric left, forbidden to run or fetch anything; why not, where it cannot be read."""
    try:
        text = _source(row, metric).files(metric)["html"].decode(errors="replace")
    except RecordError:
        text = f"<title>{escape(clean(metric))}</title><p>It cannot be read, or is not the one that the record was made with."
    return _HARMLESS + text


# Whoever wrote the record wrote the page: what stands before it holds for it.
_HARMLESS = """<!doctype html><meta http-equiv="Content-Security-Policy"
content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
"""


def sae_pages(boards: Sequence[Board], home: str) -> dict[str, str]:
    """Each SAE's page by its file's name, and copies of the pages that its metrics left beside its records.

    Args:
        home: where its link to the leaderboard leads.
    """
    rows: dict[str, list[tuple[Board, Row]]] = {}
    for board in boards:
        for row in board.rows:
            rows.setdefault(str(row.record.sae["sha256"]), []).append((board, row))
    pages = {name: _page(rows[sha], home) for sha, name in page_names(boards).items()}
    for row in (row for board in boards for row in board.rows):
        pages |= {name: _kept(row, metric) for metric, name in kept_names(row).items()}
    return pages


def _page(found: Sequence[tuple[Board, Row]], home: str) -> str:
    first = found[0][1].record
    return render_page(
        __package__,
        "sae.html",
        title=clean(first.sae["name"]),
        home=home,
        checkpoint=_checkpoint(first),
        sections=[_section(board, row) for board, row in found],
        arrows=_ARROWS,
    )


def _section(board: Board, row: Row) -> dict[str, Any]:
    """The values that the template needs of one task of the SAE."""
    return {
        "caption": caption(board),
        "kept": kept_names(row),
        "scores": [(c, cell) for c, cell in row.cells.items() if c.at is None and cell.state != "missing"],
        "curves": _curves(row),
        "errors": row.record.errors,
        "provenance": provenance(row.record),
    }


def _curves(row: Row) -> dict[str, list[tuple[float, Cell]]]:
    """The points of each curve, in the order of their places."""
    curves: dict[tuple[str, str, int], list[Column]] = {}
    for column in row.cells:
        if column.at is not None and row.cells[column].value is not None:
            curves.setdefault((column.metric, column.key, column.version), []).append(column)
    found = {}
    for (metric, key, version), columns in curves.items():
        places = sorted(columns, key=lambda c: c.at or 0.0)
        found[f"{clean(metric, 40)}.{clean(key, 40)} v{version}"] = [(c.at or 0.0, row.cells[c]) for c in places]
    return found


# --- provenance -----------------------------------------------------------------------------------------


def about(row: Row) -> dict[str, str]:
    """What a reader asks first of an SAE's numbers: what it is, and what made them."""
    record = row.record
    facts = {
        "architecture": architecture(row),
        "latents": record.sae.get("d_sae"),
        "commit": ", ".join(dict.fromkeys(_commits(record))),
        "measured": ", ".join(dict.fromkeys(str(run["timings"].get("finished", ""))[:10] for run in _runs(record))),
        "device": ", ".join(dict.fromkeys(_device(run["provenance"]) for run in _runs(record))),
        "text": f"{record.corpus.get('contexts', '?')} contexts, {str(record.corpus['fingerprint'])[:12]}",
        "format": record.sae.get("format"),
        "weights (sha256)": str(record.sae["sha256"])[:16],
        "fingerprint": record.fingerprint[:16],
    }
    return {name: clean(value) for name, value in facts.items() if value not in (None, "")}


def provenance(record: Record) -> dict[str, object]:
    """What was measured on what, and by which runs."""
    facts: dict[str, object] = {
        "fingerprint": record.fingerprint,
        "model": f"{record.model['id']}, weights {str(record.model['sha256'])[:16]}",
        "revision": record.model.get("revision"),
        "hook point": record.hook if record.hook == record.hook_out else f"{record.hook} to {record.hook_out}",
        "task": f"{record.task_label}, definition {str(record.task['sha256'])[:16]}",
        "text": f"{record.corpus.get('contexts', '?')} contexts of {record.corpus.get('documents', '?')} documents, "
        f"{str(record.corpus['fingerprint'])[:16]}",
        "tokens": _pairs(record.corpus.get("tokens")),
        "settings": _pairs(record.settings),
        "calibration": _pairs(record.calibration),
    }
    commits = list(_commits(record))
    for i, run in enumerate(_runs(record)):
        made, libraries = run["provenance"], run["provenance"].get("libraries")
        metrics = run.get("metrics")
        facts[f"run {i + 1}"] = "; ".join(
            text
            for text in (
                ", ".join(map(str, metrics)) if isinstance(metrics, list) else "",
                f"commit {commits[i]}" if commits[i] else "",
                f"saebench {made.get('saebench')}",
                _device(made),
                _pairs(libraries),
                str(run["timings"].get("finished") or ""),
            )
            if text
        )
    return facts


def _checkpoint(record: Record) -> dict[str, object]:
    sae = record.sae
    plain = ("architecture", "format", "path", "d_in", "d_sae", "model", "hook", "declared_l0", "training_tokens",
             "context_length", "prepend_bos", "sha256")  # fmt: skip
    facts: dict[str, object] = {name.replace("_", " "): sae.get(name) for name in plain}
    stated = sae.get("facts")
    for fact in stated if isinstance(stated, list) else []:
        if isinstance(fact, dict):
            facts[str(fact.get("name"))] = f"{fact.get('value')} ({fact.get('source')})"
    warnings = sae.get("warnings")
    if isinstance(warnings, list):
        facts["warnings"] = "; ".join(map(str, warnings))
    return facts


def _runs(record: Record) -> list[dict[str, Any]]:
    """The runs of a record, with the parts that are read here there, whatever a stranger wrote."""
    found = []
    for run in record.runs:
        if isinstance(run, dict):
            parts = {name: run.get(name) for name in ("provenance", "timings")}
            found.append(run | {name: part if isinstance(part, dict) else {} for name, part in parts.items()})
    return found


def _commits(record: Record) -> Iterator[str]:
    for run in _runs(record):
        commit, dirty = run["provenance"].get("commit"), run["provenance"].get("dirty")
        yield "" if commit is None else str(commit)[:12] + (" (with uncommitted changes)" if dirty else "")


def _device(made: Mapping[str, Any]) -> str:
    chip, device = made.get("chip"), made.get("device")
    return "" if device is None else f"{device} ({chip})" if chip else str(device)


def _pairs(value: object) -> str:
    return ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else ""
