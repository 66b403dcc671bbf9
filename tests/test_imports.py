"""Who imports what: plugins keep to the modules that CONTRIBUTING.md names, and the harness names no plugin."""

import ast
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from tests.conftest import REPOSITORY

PLUGINS = sorted((REPOSITORY / "plugins").rglob("*.py"))
HARNESS = sorted((REPOSITORY / "saebench").rglob("*.py"))
EXAMPLES = [
    *sorted(p for p in (REPOSITORY / "saebench/templates").glob("*.txt") if p.read_text().startswith('"""')),
    *sorted(p for p in (REPOSITORY / "tests/example_plugin").rglob("*.py") if "build" not in p.parts),
]


def imports(path: Path) -> Iterator[str]:
    """Every saebench module that a file names anywhere in it, for types alone too."""
    text = path.read_text()
    if path.suffix == ".txt":
        text = re.sub(r"\$\{?(\w+)\}?", r"the_\1", text)  # a template's names
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.split(".")[0] == "saebench")
        elif (
            isinstance(node, ast.ImportFrom)
            and node.level == 0
            and node.module
            and node.module.split(".")[0] == "saebench"
        ):
            for name in node.names:
                whole = f"{node.module}.{name.name}"
                yield whole if node.module == "saebench" and find_spec(whole) else node.module


def public() -> set[str]:
    text = (REPOSITORY / "CONTRIBUTING.md").read_text()
    [sentence] = re.findall(r"plugins import only these modules.*?:\n(.*?)\.\n", text, re.DOTALL)
    return set(re.findall(r"`([a-z_.]+)`", sentence))


def allowed(module: str, listed: set[str]) -> bool:
    parts = module.split(".")
    return module in listed or any(".".join(parts[:i]) in listed for i in range(2, len(parts)))


def test_plugins_import_what_contributing_names_and_nothing_else() -> None:
    listed, used = public(), {(str(p.relative_to(REPOSITORY)), m) for p in [*PLUGINS, *EXAMPLES] for m in imports(p)}
    own = {(path, m) for path, m in used if m.startswith("saebench.plugins.")}
    assert len(used) > 100
    assert not {(path, m) for path, m in used - own if not allowed(m, listed)}
    unused = {m for m in listed if not any(n == m or n.startswith(f"{m}.") for _, n in used)}
    assert not unused, "named, and nobody imports it"
    assert all(find_spec(m) for m in listed)


def test_the_harness_imports_no_plugin() -> None:
    found = {(p.name, m) for p in HARNESS for m in imports(p) if m.startswith("saebench.plugins")}
    assert not found


def test_what_is_not_named_is_not_allowed() -> None:
    listed = public()
    assert allowed("saebench.loading.readers", listed)
    assert allowed("saebench.recipe", listed)
    for module in (
        "saebench.loading.checkpoint",
        "saebench.loading.archives",
        "saebench.running.plan",
        "saebench.runner",
    ):
        assert not allowed(module, listed)
