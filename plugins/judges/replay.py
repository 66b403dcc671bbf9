"""A judge that replays another judge's cached replies."""

from typing import Any

from saebench import hookimpl
from saebench.judge import Judge
from saebench.judging.choose import make_judge


class Replay(Judge):
    """Replays another judge's cached replies, as replay:openai:MODEL, without a key, a network or a model."""

    name = "replay"
    sends = False
    replays = True

    def __init__(self, model: str, url: str | None = None) -> None:
        super().__init__(model, url)
        self._original = make_judge(model, url)
        self.capabilities = self._original.capabilities

    def allow_thinking(self, tokens: int) -> None:
        super().allow_thinking(tokens)
        self._original.allow_thinking(tokens)

    @property
    def identity(self) -> dict[str, Any]:
        return self._original.identity


@hookimpl
def saebench_judges() -> list[type[Judge]]:
    return [Replay]
