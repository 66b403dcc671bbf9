"""Token ids -> text that can be shown to a judge: corpus text is data, and nothing in it may pass for a mark of ours."""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

# A mark around highlighted tokens, and the characters that are written with a backslash when they are only text.
OPEN, CLOSE = "<<", ">>"
_LITERAL = re.compile(r"[\\<>]")
_BROKEN = "�"
# An ordinary character in front of a token, so that tokenizers that drop a leading space keep it.
_ANCHOR = "a"


class Decoder:
    """Tokens as pieces of text that join to the text, one piece a token.

    A character that is spread over several tokens stands with the last of them; special tokens are no text.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.anchor: list[int] = tokenizer(_ANCHOR, add_special_tokens=False).input_ids[-1:]
        self.before = self._decode(self.anchor)
        self.special = set(tokenizer.all_special_ids) | {
            i for i, token in tokenizer.added_tokens_decoder.items() if token.special
        }
        self.known: dict[int, str] = {}

    def pieces(self, tokens: Iterable[int]) -> list[str]:
        ids = [int(i) for i in tokens]
        out = [self._piece(i) for i in ids]
        begin = None
        for i in range(len(out) + 1):
            broken = i < len(out) and _BROKEN in out[i]
            if broken and begin is None:
                begin = i
            elif not broken and begin is not None:
                out[begin:i] = [""] * (i - begin - 1) + [self._text(ids[begin:i])]
                begin = None
        return [clean(piece) for piece in out]

    def _piece(self, token: int) -> str:
        if token < 0 or token in self.special:
            return ""
        if token not in self.known:
            self.known[token] = self._text([token])
        return self.known[token]

    def _text(self, ids: list[int]) -> str:
        return self._decode(self.anchor + ids).removeprefix(self.before)

    def _decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, clean_up_tokenization_spaces=False))


def clean(text: str) -> str:
    """Without control characters (line breaks and tabs stay) and without what is invisible or turns the direction of text."""
    return "".join(c for c in text if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Zl", "Zp"))


def escaped(text: str) -> str:
    r"""Text in which `<`, `>` and `\` are only text: each with a backslash before it."""
    return _LITERAL.sub(r"\\\g<0>", text)


def runs(flags: np.ndarray) -> list[tuple[int, int]]:
    """[begin, end) of each stretch of set flags."""
    edges = np.flatnonzero(np.diff(np.r_[0, flags.astype(np.int8), 0]))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]


def plain(pieces: Sequence[str]) -> str:
    return escaped("".join(pieces))


def highlighted(pieces: Sequence[str], flags: np.ndarray) -> str:
    """The text with each run of flagged tokens between << and >>."""
    out, last = "", 0
    for begin, end in runs(flags):
        out += plain(pieces[last:begin]) + OPEN + plain(pieces[begin:end]) + CLOSE
        last = end
    return out + plain(pieces[last:])
