"""HTML pages from templates: escaped by default, self-contained, in the reader's own colours."""

from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import ChoiceLoader, Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from saebench.text import clean, interval_text, value_text

_HOME = "saebench.board"


def render_page(package: str, template: str, **values: Any) -> str:
    """Render a template of a package's folder `templates`; it may extend `page.html`, the frame of every page.

    Every value is escaped where it is not `Markup`. Filters beside Jinja's own: `clean` (one harmless line), `value` and
    `interval` (of a cell), `resource` (a file of the package, inlined as it is: a style sheet, a script).

    Args:
        package: of the template, such as "saebench.plugins.reports".
        template: its file name.
        values: what the template names; a missing one is an error.
    """
    return _environment(package).get_template(template).render(values)


@cache
def _environment(package: str) -> Environment:
    made = Environment(
        loader=ChoiceLoader([FunctionLoader(_reader(package)), FunctionLoader(_reader(_HOME))]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False, "ensure_ascii": False}
    made.filters |= {
        "clean": clean,
        "value": value_text,
        "interval": interval_text,
        "resource": lambda name: Markup(files(package).joinpath(name).read_text(encoding="utf-8")),
    }
    return made


def _reader(package: str) -> Any:
    def read(name: str) -> str | None:
        found = files(package).joinpath("templates", name)
        return found.read_text(encoding="utf-8") if found.is_file() else None

    return read
