"""A judge that only repeats what another one has said."""

from typing import Any

from saebench import hookimpl
from saebench.judge import Judge
from saebench.judging.choose import make_judge


class Replay(Judge):
    """Replays what another judge has answered: replay:openai:MODEL; it needs no key, no network and no model in memory."""

    name = "replay"
    sends = False
    replays = True

    def __init__(self, model: str, url: str | None = None) -> None:
        super().__init__(model, url)
        self._original = make_judge(model, url)
        self.capabilities = self._original.capabilities

    @property
    def identity(self) -> dict[str, Any]:
        return self._original.identity


@hookimpl
def saebench_judges() -> list[type[Judge]]:
    return [Replay]
