"""A language model of this machine as a judge: it fills in a form, so that every reply has the shape that was asked for.

The fixed parts of the reply are written for it; the model only chooses between true and false, by its own probabilities, and
writes strings greedily up to their closing quote. One request is answered at a time, its system text from a kept state: the
same request gives the same bits, independent of other requests.
"""

import json
from collections import OrderedDict
from copy import deepcopy
from typing import Any

import torch

from saebench import hookimpl
from saebench.judge import Capabilities, Judge, JudgeError, Reply, Request, Usage
from saebench.models import default_device, default_dtype, load_model, model_sha256, model_title

# System texts whose state is kept; a metric has a few prompts.
_KEPT = 4


class Local(Judge):
    """A language model of this machine (an alias, a folder, a GGUF file or a hub id), held to the form of the reply."""

    name = "local"
    concurrency = 1
    sends = False
    capabilities = Capabilities(structured=True, probabilities=True, temperature=True)

    def __init__(self, model: str, url: str | None = None) -> None:
        super().__init__(model, url)
        if url is not None:
            raise JudgeError(
                "judge local answers on this machine: leave --judge-url out, or name openai:MODEL for a server"
            )
        self._device = default_device()
        self._dtype = default_dtype(self._device)
        self._title = model_title(model)
        self._sha256: str | None = None
        self._states: OrderedDict[str, tuple[Any, int]] = OrderedDict()

    @property
    def identity(self) -> dict[str, Any]:
        if self._sha256 is None:
            self._sha256 = model_sha256(self.model)
        return {"provider": self.name, "model": self._title, "sha256": self._sha256, "dtype": self._dtype}

    def open(self) -> None:
        loaded = load_model(self.model, dtype=self._dtype, device=self._device)
        if loaded.tokenizer is None:
            raise JudgeError(f"model '{self.model}' has no tokenizer, so it cannot judge")
        self._model, self._tokenizer = loaded.model, loaded.tokenizer
        self._longest = getattr(loaded.model.config, "max_position_embeddings", None) or 2**31
        self._pair = self._choice()

    def close(self) -> None:
        self._states.clear()
        self._model = None

    # --- one request --------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def complete(self, request: Request) -> Reply:
        before, after = self._prompt(request)
        state, known = self._state(before)
        ids = self._ids(after)
        total = known + len(ids)
        if total + request.max_tokens + 8 * len(request.fields) > self._longest:
            return Reply("failed", problem=f"the prompt has {total} tokens; {self.model} takes {self._longest}")
        return self._fill(request, _Writer(self._model, deepcopy(state), known, ids, self._device), total)

    def _fill(self, request: Request, writer: "_Writer", total: int) -> Reply:
        """Write the form after the prompt of `total` tokens, field by field."""
        data: dict[str, bool | str] = {}
        likely: dict[str, float] = {}
        state, problem = "ok", ""
        for i, (name, kind) in enumerate(request.fields.items()):
            writer.write(self._ids(f"{', ' if i else '{'}{json.dumps(name, ensure_ascii=False)}:"))
            if kind == "boolean":
                shared, yes, no = self._pair
                writer.write(shared)
                logits = writer.logits()[[yes[0], no[0]]].double()
                likely[name] = float(logits.softmax(0)[0])
                data[name] = bool(logits[0] > logits[1])
                writer.write(yes if data[name] else no)
                continue
            writer.write(self._ids(' "'))
            text, whole = self._string(writer, request.max_tokens)
            data[name] = text
            if not whole:
                state, problem = "truncated", f"cut at {request.max_tokens} tokens"
                break
        usage = Usage(total, writer.length - total)
        text = json.dumps(data, ensure_ascii=False)
        if state == "truncated":
            return Reply("truncated", text=text, problem=problem, model=self._title, usage=usage)
        return Reply("ok", data, text, model=self._title, usage=usage, probabilities=likely)

    def _string(self, writer: "_Writer", most: int) -> tuple[str, bool]:
        """A string's text, greedily up to its closing quote or the end of the line; whether it ended."""
        ids: list[int] = []
        for _ in range(most):
            token = int(writer.logits().argmax())
            text = self._tokenizer.decode([*ids, token], skip_special_tokens=True)
            if token in self._ends() or '"' in text or "\n" in text:
                return text.split('"')[0].split("\n")[0].strip(), True
            ids.append(token)
            writer.write([token])
        return self._tokenizer.decode(ids, skip_special_tokens=True).strip(), False

    # --- prompts and tokens -------------------------------------------------------------------------------------------

    def _prompt(self, request: Request) -> tuple[str, str]:
        """The prompt's text before the user's words and from there on; the first part is the same for every call of a prompt."""
        form = ", ".join(
            f'"{name}": {"true or false" if kind == "boolean" else "..."}' for name, kind in request.fields.items()
        )
        user = f"{request.user}\n\nAnswer with one JSON object of this form: {{{form}}}"
        mark = "\N{OBJECT REPLACEMENT CHARACTER}"
        before, _, after = self._render(request.system, mark).partition(mark)
        return before, user + after

    def _render(self, system: str, user: str) -> str:
        if not self._tokenizer.chat_template:
            return f"{system}\n\n{user}\n\n"
        both = [{"role": "system", "content": system}, {"role": "user", "content": user}]
        options = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": False}
        try:
            return str(self._tokenizer.apply_chat_template(both, **options))
        except Exception:  # a template that knows no system message
            one = [{"role": "user", "content": f"{system}\n\n{user}"}]
            return str(self._tokenizer.apply_chat_template(one, **options))

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _ends(self) -> set[int]:
        return {self._tokenizer.eos_token_id, *self._tokenizer.all_special_ids}

    def _choice(self) -> tuple[list[int], list[int], list[int]]:
        """(tokens that ` true` and ` false` begin with alike, the rest of the one, the rest of the other)."""
        yes, no = self._ids(" true"), self._ids(" false")
        same = next((i for i, (a, b) in enumerate(zip(yes, no, strict=False)) if a != b), None)
        if same is None:
            raise JudgeError(
                f"the tokenizer of '{self.model}' has one first token for true and false, so the model cannot judge"
            )
        return yes[:same], yes[same:], no[same:]

    def _state(self, text: str) -> tuple[Any, int]:
        """The model's state after a text, and its length in tokens."""
        from transformers import DynamicCache

        if text not in self._states:
            ids = self._ids(text)
            state = DynamicCache()
            _read(self._model, ids, state, self._device)
            self._states[text] = state, len(ids)
            if len(self._states) > _KEPT:
                self._states.popitem(last=False)
        self._states.move_to_end(text)
        return self._states[text]


class _Writer:
    """A text that grows token by token behind a kept state; reads the model only when its opinion is asked for."""

    def __init__(self, model: Any, state: Any, known: int, ids: list[int], device: str) -> None:
        self.model, self.state, self.device = model, state, device
        self.pending = list(ids)
        self.length = known + len(ids)

    def write(self, ids: list[int]) -> None:
        self.pending += ids
        self.length += len(ids)

    def logits(self) -> torch.Tensor:
        """[vocabulary] of the next token."""
        ids, self.pending = self.pending, []
        return _read(self.model, ids, self.state, self.device)


def _read(model: Any, ids: list[int], state: Any, device: str) -> torch.Tensor:
    """Let the model read on behind a state, which grows; the logits [vocabulary] of the next token."""
    out = model(input_ids=torch.tensor([ids], device=device), past_key_values=state, use_cache=True, logits_to_keep=1)
    last: torch.Tensor = out.logits[0, -1].float()
    return last


@hookimpl
def saebench_judges() -> list[type[Judge]]:
    return [Local]
