"""Boards mix nothing that is not comparable, lose nothing in silence, and hostile names stay text."""

import csv
import io
import json
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console
from rich.text import Text

import saebench
from saebench.board.compare import compare
from saebench.board.leaderboard import boards, select
from saebench.board.tables import board_tables, caption, comparison_table, notes
from saebench.cli import main
from saebench.errors import SaebenchError, UsageError
from saebench.registry import registry
from saebench.report import Cell, Report
from saebench.results import load_records
from saebench.stats import Ratio
from saebench.text import clean, interval_text, value_text
from tests.raising import raises
from tests.synthetic import Make, declared, make_record, plain, units


@pytest.fixture
def make(tmp_path: Path) -> Make:
    return partial(make_record, tmp_path)


def render(name: str, found: list[Any]) -> str:
    report: Report = registry().get("reports", name)
    return report.render(found)


def terminal(*tables: Any, width: int = 200) -> str:
    console = Console(width=width, file=io.StringIO(), force_terminal=True)
    console.print(*tables)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


# --- boards ----------------------------------------------------------------------------------------------------------


def test_ranks_with_ties_and_values_as_recorded(make: Make) -> None:
    records = [make("good", 0.0, 1), make("twin", 0.0, 2), make("bad", 0.05, 3)]
    [board] = boards(records)
    ev = next(c for c in board.columns if c.key == "explained_variance")
    assert [row.cells[ev].rank for row in board.rows] == [1, 1, 3]
    assert [row.cells[ev].value for row in board.rows] == [r.score("explained_variance")["value"] for r in records]
    l0 = next(c for c in board.columns if c.key == "l0")
    dead = next(c for c in board.columns if c.key == "dead_fraction")
    assert all(row.cells[c].rank is None for row in board.rows for c in (l0, dead))
    assert [c.key for c in select(board, ())] == ["explained_variance", "dead_fraction"]


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("model", {"model": {"id": "tiny", "sha256": "other", "revision": "r2"}}),
        ("hook", {"hook_out": "blocks.0.hook_resid_post"}),
        ("task", {"task": {"name": "fidelity", "version": 2, "sha256": "t"}}),
        ("definition", {"task": {"name": "fidelity", "version": 1, "sha256": "u"}}),
        ("text", {"corpus": {"fingerprint": "d"}}),
        ("dtypes", {"settings": {"model_dtype": "bfloat16", "sae_dtype": "float32", "max_norm": 10.0, "seed": 0,
                                 "limit": None}}),
    ],
)  # fmt: skip
def test_nothing_else_is_mixed(make: Make, what: str, change: dict[str, Any]) -> None:
    one, other = make("a"), make("b", 0.01, **change)
    assert [len(b.rows) for b in boards([one, other])] == [1, 1]
    with raises(SaebenchError, "not comparable: they differ in", what):
        compare([one, other])


def test_partial_missing_failed_are_told_apart(make: Make) -> None:
    whole = make("whole")
    only = {"fidelity": {"version": 1, "units": None}}
    missing = make("missing", 0.01, metrics=dict(only), scores=whole.scores[:2])
    failed = make("failed", 0.02, scores=whole.scores[:2], errors={"use": "out of\nmemory"})
    partial = make("partial", 0.03, partial=True)
    [board] = boards([whole, missing, failed, partial])
    dead = next(c for c in board.columns if c.key == "dead_fraction")
    assert [(row.name, row.cells[dead].state) for row in board.rows] == [
        ("whole", "scored"), ("missing", "missing"), ("failed", "failed"),
    ]  # fmt: skip
    assert board.partial == 1
    assert notes(board) == [
        "1 partial record(s), made with --limit, are left out; show with --partial",
        "failed: use failed: out of memory",
    ]
    for text in (terminal(*board_tables(board, 200)), render("markdown", [board]), render("csv", [board])):
        assert "failed" in text
        assert "missing" in text
    with raises(SaebenchError, "partial"):
        compare([whole, partial])


def test_only_partial_records_make_an_empty_board_that_says_so(make: Make) -> None:
    [board] = boards([make("a", partial=True)])
    assert (board.rows, board.partial) == ([], 1)
    for name in ("markdown", "csv", "json"):
        render(name, [board])
    [note] = notes(board)
    assert "1 is partial" in note
    assert "--partial" in note
    assert "|" not in render("markdown", [board])
    terminal(*board_tables(board, 200))
    assert boards([]) == []


def test_versions_of_a_metric_are_columns_of_their_own(make: Make) -> None:
    one = make("a")
    newer = [row | {"version": 2} for row in one.scores]
    metrics = {"fidelity": {"version": 2, "units": None}, "use": {"version": 2, "units": None}}
    [board] = boards([one, make("b", 0.01, scores=newer, metrics=metrics)])
    ev = [c for c in board.columns if c.key == "explained_variance"]
    assert [c.version for c in ev] == [1, 2]
    assert [[row.cells[c].state for c in ev] for row in board.rows] == [["scored", "missing"], ["missing", "scored"]]
    assert board.rows[1].cells[ev[0]].reason == "measured with fidelity version 2, not 1"
    assert "explained_variance v2" in render("markdown", [board]).replace("\\", "")


def test_duplicates_are_merged_and_conflicts_refused(make: Make) -> None:
    one = make("a", folder="mine")
    only = {"fidelity": {"version": 1, "units": None}}
    theirs = make("a", folder="theirs", metrics=only, scores=one.scores[:2])
    [board] = boards([theirs, one])
    assert len(board.rows) == 1
    assert board.rows[0].record is one, "the fuller record is kept"
    rounded = [row | {"value": row["value"] * (1 + 1e-6)} for row in one.scores]
    assert len(boards([one, replace(one, scores=rounded)])[0].rows) == 1

    forged = [one.scores[0] | {"value": 0.99}, *one.scores[1:]]
    [board] = boards([one, replace(one, scores=forged), make("b", 0.01)])
    assert [row.name for row in board.rows] == ["b"]
    assert re.match(
        r"a: refused, two records of one fingerprint disagree: explained_variance is 0\.\d+", board.notes[0]
    )


def test_what_two_records_of_one_measurement_have_is_put_together(make: Make) -> None:
    """One has fidelity, the other has it too and more, a third failed where the second did not."""
    whole, rival = make("a"), make("b", 0.05)
    fidelity = make("a", folder="one", metrics={"fidelity": {"version": 1, "units": None}}, scores=whole.scores[:2])
    only_use = make("a", folder="two", metrics={"use": {"version": 1, "units": None}}, scores=whole.scores[2:])
    failed = replace(only_use, scores=[], errors={"use": "out of memory"})
    for found in ([fidelity, only_use, rival], [only_use, rival, fidelity], [failed, fidelity, only_use, rival]):
        [board] = boards(found)
        row = next(row for row in board.rows if row.name == "a")
        assert {c.key for c in board.columns if row.cells[c].value is not None} == {s["key"] for s in whole.scores}
        ev = next(c for c in board.columns if c.key == "explained_variance")
        assert row.cells[ev].rank == 1, "its units were found beside the record that it came from"
        assert board.notes == []


@pytest.mark.parametrize(("key", "by"), [("dead_fraction", 0.1), ("auroc", 0.03)])
def test_scores_that_are_no_ratio_of_sums_can_contradict_too(make: Make, key: str, by: float) -> None:
    one = make("a", scores=[plain("use", key, 0.25, "lower"), plain("use", "l0_p50", 32.0)])
    near = replace(one, scores=[one.scores[0] | {"value": 0.251}, one.scores[1] | {"value": 33.0}])
    assert boards([one, near])[0].notes == []
    far = replace(one, scores=[one.scores[0] | {"value": 0.25 + by}, one.scores[1]])
    for found in ([one, far], [one, near, far]):
        [board] = boards(found)
        assert board.rows == []
        assert f"disagree: {key} is 0.25" in board.notes[0]


def test_boards_that_would_look_alike_say_in_what_they_differ(make: Make) -> None:
    settings = {"model_dtype": "float32", "sae_dtype": "float32", "max_norm": None, "seed": 0, "limit": None}
    found = boards([make("a"), make("b", corpus={"fingerprint": "elsewhere"}), make("c", settings=settings)])
    titles = [caption(board) for board in found]
    assert len(set(titles)) == 3
    assert [board.variant for board in found] == [
        "text c, max_norm 10.0", "text elsewher, max_norm 10.0", "text c, max_norm None",
    ]  # fmt: skip
    assert boards([make("a")])[0].variant == ""
    judge = {"provider": "local", "model": "small", "prompts": ["detection@1", "explain@1"]}
    for other in ({"prompts": ["detection@2", "explain@1"]}, {"url": "http://localhost"}, {"model": "sm\u200ball"}):
        judged = [make(str(i), settings=settings | {"judge": judge | more}) for i, more in enumerate(({}, other))]
        titles = [caption(board) for board in boards(judged)]
        assert len(set(titles)) == 2, other
    assert "judge prompts detection@2" in caption(
        boards(
            [
                make("a", settings=settings | {"judge": judge}),
                make("b", settings=settings | {"judge": judge | {"prompts": ["detection@2", "explain@1"]}}),
            ]
        )[1]
    )
    long = [make("a", corpus={"fingerprint": "c" * 300 + end}) for end in "xy"]
    assert len({caption(board) for board in boards(long)}) == 2, "even where the values differ at their very end"
    for name in ("markdown", "html"):
        assert "text elsewher" in render(name, found)


def test_a_score_that_was_not_defined_failed(make: Make) -> None:
    one = make("a")
    less = make("b", 0.01, scores=one.scores[:3], errors={"use.dead_fraction_curve": "column 'n' sums to 0"})
    [board] = boards([one, less])
    column = next(c for c in board.columns if c.key == "dead_fraction_curve")
    cell = board.rows[1].cells[column]
    assert (cell.state, cell.reason) == ("failed", "column 'n' sums to 0")


def test_units_that_are_not_the_records_own_cost_the_rank_and_nothing_else(make: Make) -> None:
    records = [make("a", 0.0, 1), make("b", 0.0, 2), make("c", 0.05, 3)]
    path = records[1].path
    assert path is not None
    (path.parent / records[1].metrics["fidelity"]["units"]["file"]).write_bytes(b"PAR1")
    [board] = boards(records)
    ev = next(c for c in board.columns if c.key == "explained_variance")
    assert [row.cells[ev].rank for row in board.rows] == [1, None, 2]
    assert all(row.cells[ev].value is not None for row in board.rows)
    assert "b: no ranks in fidelity" in board.notes[0]


def test_one_name_twice_is_told_apart(make: Make) -> None:
    [board] = boards([make("trainer_0", 0.0), make("trainer_0", 0.01), make("x")])
    names = [row.name for row in board.rows]
    assert len(set(names)) == 3
    assert all(re.fullmatch(r"trainer_0 [0-9a-f]{8}", name) for name in names[:2])
    assert names[2] == "x"
    [board] = boards([replace(make("a"), fingerprint=f"seed {i}") for i in range(3)])
    assert len({row.name for row in board.rows}) == 3, "the same weights with another seed"


def test_scores_are_chosen_by_key_metric_or_both(make: Make) -> None:
    [board] = boards([make("a")])
    assert [c.key for c in select(board, ["l0", "use"])] == ["l0", "dead_fraction", "dead_fraction_curve"]
    assert [c.key for c in select(board, ["use.dead_fraction"])] == ["dead_fraction"]
    with raises(UsageError, "did you mean 'explained_variance'"):
        select(board, ["explaned_variance"])


def test_a_strangers_metric_is_on_the_table_and_ranked(make: Make) -> None:
    records = []
    for name, shift, seed in (("a", 0.0, 1), ("b", 0.05, 2)):
        score = declared("theirs", "surprise", units(shift, seed), Ratio("sse", "variance"), "lower")
        record = make(name, shift, seed)
        records.append(replace(record, scores=[*record.scores, score]))
        entry = record.metrics["fidelity"]
        records[-1].metrics["theirs"] = entry
    [board] = boards(records)
    [surprise] = [c for c in select(board, ()) if c.metric == "theirs"]
    assert [row.cells[surprise].rank for row in board.rows] == [1, 2]
    assert "surprise" in terminal(*board_tables(board, 200))


# --- compare ---------------------------------------------------------------------------------------------------------


def test_compare_names_the_better_sae_its_margin_and_what_else_differs(make: Make) -> None:
    a, b = make("a", 0.03, 1), make("b", 0.0, 2)
    [found] = compare([a, b], ["explained_variance", "l0", "dead_fraction"])
    by_key = {line.column.key: line for line in found.lines}
    line = by_key["explained_variance"]
    assert line.difference is not None
    assert line.difference.value == pytest.approx(
        b.score("explained_variance")["value"] - a.score("explained_variance")["value"]
    )
    assert line.verdict == "better"
    assert line.difference.low is not None
    assert 0.02 < line.difference.low < 0.03
    assert by_key["dead_fraction"].verdict == "unknown"
    assert re.fullmatch(
        r"b is better than a in explained_variance by 0\.02\d+ to 0\.03\d+; "
        r"they differ in l0 \(33 and 30\), so compare them at equal l0\.",
        found.sentence,
    )
    [back] = compare([b, a])
    assert back.sentence.startswith("b is better in explained_variance by 0.02")
    assert "B is better" in terminal(comparison_table(found))
    assert len(compare([a, b, make("c", 0.0, 3)])) == 2


def test_a_comparison_fits_into_80_columns_with_no_number_split(make: Make) -> None:
    long = "smollm2-135m-layer15-some-recipe-with-a-long-name-k32"
    [found] = compare([make(f"{long}-seed0", 0.03, 1), make(f"{long}-seed1", 0.0, 2)])
    text = terminal(comparison_table(found), width=80)
    for line in found.lines:
        shown = [value_text(line.a), value_text(line.b)]
        if line.difference is not None:
            shown.append(
                interval_text(Cell("scored", line.difference.value, line.difference.low, line.difference.high))
            )
        elif line.reason is not None:
            assert "[1]" in text
        assert all(number in text for number in shown)
    assert f"{long}-seed0" in text
    assert f"{long}-seed1" in text


def test_names_on_a_board_are_folded_after_a_hyphen(make: Make) -> None:
    [board] = boards([make("smollm2-135m-layer15-matryoshka-k32", 0.0, 1), make("b", 0.0, 2)])
    text = terminal(*board_tables(board, 60), width=60)
    assert "matryoshka" in text
    assert "layer15" in text


def test_compare_sees_no_difference_between_twins(make: Make) -> None:
    [found] = compare([make("a", 0.0, 1), make("b", 0.0, 2)], ["explained_variance"])
    assert found.sentence == "no difference was seen in explained_variance."


def test_compare_refuses_one_record_and_itself(make: Make) -> None:
    one = make("a")
    with raises(UsageError, "two records"):
        compare([one])
    with raises(SaebenchError, "the same measurement twice"):
        compare([one, one])


@pytest.mark.parametrize("name", ["\x1b[31mred\x1b[0m\u202etxt\x00", "x" * 10_000_000, "[bold red]x[/]"])
def test_hostile_names_stay_text_in_comparisons_and_errors(tmp_path: Path, name: str) -> None:
    name = name.replace("\0", "")[:1000]  # longer ones and NUL are refused with the record
    for i in range(2):
        about = {"name": name, "sha256": f"{i}" * 64, "architecture": name, "d_sae": 64}
        make_record(tmp_path, f"sae-{i}", 0.05 * i, i, sae=about)
    make_record(tmp_path / "other", "x", 0.0, 3, sae=about, corpus={"fingerprint": name})
    paths = [str(p) for p in sorted(tmp_path.glob("*.json"))]
    shown = CliRunner().invoke(main, ["compare", *paths])
    assert shown.exit_code == 0, shown.stderr
    [stranger] = (tmp_path / "other").glob("*.json")
    refused = CliRunner().invoke(main, ["compare", paths[0], str(stranger)])
    assert refused.exit_code == 1
    unknown = CliRunner().invoke(main, ["compare", "red", name, "--results", str(tmp_path)])
    assert unknown.exit_code in (1, 2)
    for text in (shown.output, refused.output, unknown.output):
        assert "\x1b" not in text
        assert "\u202e" not in text
        assert len(text) < 20_000


# --- reports ---------------------------------------------------------------------------------------------------------

HOSTILE = [
    "<script>alert(1)</script>",
    "| a | b |\n\n# heading",
    "[x](https://example.org) ![y](z)",
    "=cmd|' /C calc'!A0",
    "@SUM(1+1)",
    "\x1b[31mred\x1b[0m\u202etxt\x00",
    "[bold red]markup[/] [link=https://example.org]x[/link]",
    "../../etc/passwd",
    "x" * 10_000_000,
]


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_names_stay_text(make: Make, name: str) -> None:
    record = make("plain")
    record.sae |= {"name": name, "architecture": name}
    record.errors["use"] = name
    [board] = boards([record])

    shown = terminal(*board_tables(board, 200))
    assert "\x1b[31m" not in shown
    assert "\x1b]8" not in shown
    assert "\u202e" not in shown
    assert len(shown) < 20_000

    markdown = render("markdown", [board])
    rows = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in rows}) == 1, "no cell was added"
    assert "<script" not in markdown
    assert "https://" not in markdown
    assert not re.search(r"(?<!\\)\]\(", markdown)
    assert markdown.count("# heading") == markdown.count("\\# heading")
    assert len(markdown) < 20_000

    table = list(csv.DictReader(io.StringIO(render("csv", [board]))))
    assert len(table) == len(board.columns)
    assert not any(str(v).startswith(("=", "+", "@", "\t")) for line in table for v in line.values())
    assert not any(line["sae"].startswith("-") for line in table)

    [again] = json.loads(render("json", [board]))
    assert again["rows"][0]["sae"]["name"] == name[:1000]
    assert not any(ord(c) < 32 and c != "\n" for c in render("json", [board]))


def test_csv_and_json_carry_every_number_in_full(make: Make) -> None:
    record = make("a")
    [board] = boards([record])
    table = list(csv.DictReader(io.StringIO(render("csv", [board]))))
    assert [float(line["value"]) for line in table] == [row["value"] for row in record.scores]
    assert [line["at"] for line in table] == ["", "", "", "1000.0"]
    [again] = json.loads(render("json", [board]))
    assert [s["low"] for s in again["rows"][0]["scores"]] == [row["low"] for row in record.scores]


def test_clean_keeps_a_name_and_drops_what_moves_the_cursor() -> None:
    assert clean("modèle 文 x²") == "modèle 文 x²"
    assert clean("a\r\n\tb\x07\u200b\u2066c") == "a bc"
    assert clean("") == clean("\x00") == "unnamed"
    assert clean("y" * 100, 10) == "y" * 9 + "…"


# --- terminals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [60, 80, 140])
def test_no_table_splits_a_number_or_a_heading(make: Make, width: int) -> None:
    """Every value, interval and heading stands whole in one cell, and no line is longer than the terminal."""
    measured = {"fidelity": {"version": 1, "units": None, "presentation": {}}}
    scores = [
        plain("fidelity", f"a_rather_long_score_{i}", 0.123456 * i, "higher")
        | {"low": 0.12345 * i, "high": 0.12347 * i}
        for i in range(1, 8)
    ]
    name = "smollm2-135m-layer15-matryoshka-k32-seed1"
    records = [make(f"{name}-{i}", 0.01 * i, i, metrics=measured, scores=scores) for i in range(3)]
    [board] = boards(records)
    console = Console(width=width, file=io.StringIO())
    console.print(*board_tables(board, width))
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    cells = {cell.strip() for line in lines for cell in re.split("[│┃]", line)}
    for column in board.columns:
        cell = board.rows[0].cells[column]
        assert value_text(cell) in cells
        assert interval_text(cell) in cells
    assert {"a_rather_", "long_score_7 ↑"} <= cells or {f"{c.key} ↑" for c in board.columns} <= cells


@pytest.mark.parametrize("value", [-0.0, -1e-9, -0.0004])
def test_zero_has_no_sign(value: float) -> None:
    shown = value_text(Cell("scored", value, -0.02, 0.03))
    assert shown == "0.000"
    assert interval_text(Cell("scored", value, -0.0004, 0.03)).startswith("0.000 …")
    assert value_text(Cell("scored", -0.02, -0.03, -0.01)) == "-0.020"


def test_partial_records_are_shown_marked_when_asked_for(make: Make, tmp_path: Path) -> None:
    """Left out without --partial, and never in silence; with it marked in every format and in a comparison."""
    for i in range(2):
        make(f"cut-{i}", 0.05 * i, i, partial=True, corpus={"fingerprint": "less text"})
    for format_ in ("csv", "html", "json", "parquet"):
        empty = CliRunner().invoke(main, ["leaderboard", str(tmp_path), "--format", format_])
        assert empty.exit_code == 0
        assert "--partial" in empty.stderr, format_
    for format_ in ("table", "markdown", "csv", "html", "json"):
        shown = CliRunner().invoke(main, ["leaderboard", str(tmp_path), "--format", format_, "--partial"])
        assert "cut-0 (partial)" in shown.stdout, (format_, shown.stderr)
    lines = list(csv.DictReader(io.StringIO(CliRunner().invoke(
        main, ["leaderboard", str(tmp_path), "--format", "csv", "--partial"]).stdout)))  # fmt: skip
    assert {line["partial"] for line in lines} == {"True"}
    compared = CliRunner().invoke(main, ["compare", *map(str, sorted(tmp_path.glob("*.json")))])
    assert compared.exit_code == 0, compared.stderr
    assert "cut-0 (partial)" in compared.stdout
    whole = make("whole")
    [board] = [b for b in boards(load_records(tmp_path)) if b.rows]
    assert [row.name for row in board.rows] == [whole.sae["name"]]


ESCAPES = "\x1b[31m\x1b]8;;https://x\x07red\x1b]0;title\x07\u202e\x9b2J"


def test_no_escape_sequence_reaches_the_terminal(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through a score's key, a unit, a metric's name, an SAE's name, a path, an option, and messages of any console."""
    from saebench.commands.shell import console_on, echo

    folder = tmp_path / f"r{ESCAPES.replace('/', '')}"
    for i in range(2):
        score = plain("fidelity", f"key{ESCAPES}", 0.5, "higher") | {"unit": ESCAPES, "no_interval": ESCAPES}
        make_record(folder, f"sae{ESCAPES}", 0.1 * i, i, scores=[score], errors={f"use{ESCAPES}": ESCAPES})
    paths = [str(p) for p in sorted(folder.glob("*.json"))]
    commands: list[list[str]] = [
        ["compare", *paths], ["compare", *paths, "--score", ESCAPES], ["compare", ESCAPES, "b"], [ESCAPES],
        ["leaderboard", str(folder)], ["leaderboard", str(folder), "--plots", str(folder / "plots")],
        ["leaderboard", ESCAPES], ["leaderboard", str(folder), "--sort", ESCAPES], ["leaderboard", "--format", ESCAPES],
        ["leaderboard", f"--{ESCAPES}"], [f"--{ESCAPES}"], ["leaderboard", "--width", ESCAPES], ["compare"], ["plugins", ESCAPES],
        ["submit", *paths], ["inspect", str(folder)], ["list", ESCAPES], ["run", "--sae", str(folder), "--name", ESCAPES],
    ]  # fmt: skip
    for command in commands:
        done = CliRunner().invoke(main, command, env={"COLUMNS": "80"})
        assert not re.search("[\x1b\x07\x9b\u202e]", done.output), (command, done.output)
    out = io.StringIO()
    console = console_on(out)
    console.print(ESCAPES, markup=False)
    console.print(Text(ESCAPES, style="red"))
    assert not re.search("[\x1b\x07\x9b\u202e]", out.getvalue())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("click.echo", lambda text, err: out.write(text))
        echo(f"a\tb\n{ESCAPES}")
    assert "a\tb\n" in out.getvalue()
    assert not re.search("[\x1b\x07\x9b\u202e]", out.getvalue())


# --- Python and papers -----------------------------------------------------------------------------------------------


def test_compare_from_python_is_what_the_command_shows(make: Make, tmp_path: Path) -> None:
    a, b = make("a", 0.03, 1), make("b", 0.0, 2)
    [expected] = compare([a, b])
    for pair in ((a, b), ("a", "b"), (a.path, b), ("a", b)):
        found = saebench.compare(*pair, results=tmp_path)  # type: ignore[arg-type]
        assert found.to_json() == expected.to_json()
    assert len(repr(found)) < 300
    assert found.sentence in repr(found)
    evil = replace(found, a="<script>alert(1)</script>")
    assert "<script" not in evil._repr_html_()
    assert all(value_text(line.a) in evil._repr_html_() for line in found.lines)
    [board] = boards([a, b])
    assert repr(board).startswith("<Board tiny")
    assert len(repr(board)) < 200


def test_latex_has_a_cell_for_every_headline_and_no_command_of_a_strangers(make: Make) -> None:
    record = make("a")
    record.sae["name"] = r"\\input{/etc/passwd} 50% & $x_1^2$ #{~}"
    [board] = boards([record, make("b", 0.01)])
    text = render("latex", [board])
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 3
    assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {2 + len(board.headlines)}
    assert r"\input" not in text
    assert "\\textbackslash{}" in text
    ev = board.headlines[0]
    assert f"{value_text(board.rows[1].cells[ev])} [" in rows[2]
