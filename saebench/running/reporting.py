"""Progress and results of a run, as its caller sees them."""

from dataclasses import dataclass, field
from typing import Protocol

from saebench.errors import SaebenchError, one_line
from saebench.results import Record


class Reporter(Protocol):
    """Receives the progress of a run; the command line shows it."""

    def message(self, text: str) -> None: ...

    def begin(self, label: str, total: int, done: int, unit: str = "contexts") -> None: ...

    def advance(self, contexts: int) -> None: ...

    def end(self) -> None: ...


class Silent:
    """A reporter that shows nothing."""

    def message(self, text: str) -> None: ...

    def begin(self, label: str, total: int, done: int, unit: str = "contexts") -> None: ...

    def advance(self, contexts: int) -> None: ...

    def end(self) -> None: ...


@dataclass(frozen=True)
class Failure:
    """An SAE without a record, and the error that prevented it."""

    name: str
    error: SaebenchError


@dataclass
class Outcome:
    """Records and failures of a run.

    Attributes:
        records: in the order of the request.
        failures: in the order in which they occurred.
        several: whether the request holds several SAEs, so that the others continue where one fails.
    """

    records: list[Record] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    several: bool = False

    def fail(self, failure: Failure, reporter: Reporter) -> None:
        """Add a failure; report it at once where other SAEs continue."""
        self.failures.append(failure)
        if self.several:
            reporter.message(f"left out: {failure.name}: {one_line(failure.error, 1000)}")
