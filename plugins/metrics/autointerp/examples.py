"""From what the pass left: which windows the explainer and the judge of each latent see.

Nothing here asks anybody anything, so what is lacking is known before any money is spent.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from .collect import EXPLAINER, JUDGE, start_of
from .hashing import Purpose, hashed
from .settings import Settings
from .tables import Table, rows, size


@dataclass(frozen=True)
class Window:
    """Tokens that stand one after the other, all of them scored.

    Attributes:
        context, document, start: where it begins.
        tokens: [W] ids.
        z: [W] the latent's activations.
        quantile: 1 for the weakest peaks … quantiles for the strongest; 0 for a window without a peak.
    """

    context: int
    document: int
    start: int
    tokens: np.ndarray
    z: np.ndarray
    quantile: int = 0

    @property
    def fires(self) -> np.ndarray:
        """[W] where the latent fires."""
        found: np.ndarray = self.z != 0
        return found


@dataclass(frozen=True)
class Twins:
    """Two windows on one activating place that hold the same firing tokens, each at another distance from its beginning.

    The first with its own highlights is right and with the second's is wrong, and the other way round: the wrong ones are
    the right ones moved onto tokens where the latent is silent. So right and wrong highlights are equal in number, run lengths
    and positions, and each text comes once with either: only what is highlighted can tell.
    """

    first: Window
    second: Window

    def silent_where_moved(self) -> bool:
        """Whether each one's highlights fall on silent tokens of the other, and both hold the same firing tokens."""
        a, b = self.first.fires, self.second.fires
        shift = self.second.start - self.first.start
        same = np.array_equal(np.flatnonzero(a) - shift, np.flatnonzero(b))
        return same and bool(a.any()) and not bool((a & b).any())


@dataclass
class Examples:
    """What is asked about one latent.

    Attributes:
        explained: windows for the explainer.
        judged: activating windows for detection.
        random: silent windows around a random place.
        hard: silent windows, each with the token at which one of the judged windows peaks at the same place.
        matched: which judged window that is, for each of `hard`.
        twins: for fuzzing.
        silent: for fuzzing on silent windows, two for each pair of twins; empty where there are too few.
        top: the strongest windows of all, to look at.
        lacks: why detection or fuzzing cannot be measured, by name.
    """

    latent: int
    explained: list[Window] = field(default_factory=list)
    judged: list[Window] = field(default_factory=list)
    random: list[Window] = field(default_factory=list)
    hard: list[Window] = field(default_factory=list)
    matched: list[int] = field(default_factory=list)
    twins: list[Twins] = field(default_factory=list)
    silent: list[Window] = field(default_factory=list)
    top: list[Window] = field(default_factory=list)
    lacks: dict[str, str] = field(default_factory=dict)


class Pool:
    """The contexts in which silent windows are looked for, and where each latent fires in them."""

    def __init__(self, contexts: Table, firing: Table, window: int, seed: int) -> None:
        order = np.argsort(contexts["context"])
        self.contexts, self.window, self.seed = rows(contexts, order), window, seed
        self.firing = rows(firing, np.argsort(firing["latent"], kind="stable"))
        self._not_ok = _sums(~self.contexts["ok"])
        self._known, self._counts = np.unique(self.contexts["tokens"][self.contexts["ok"]], return_counts=True)

    def rarity(self, tokens: np.ndarray) -> np.ndarray:
        """-log frequency of each token in the pool, in nats; an unseen token counts as half a token."""
        at = np.searchsorted(self._known, tokens).clip(max=max(len(self._known) - 1, 0))
        seen = self._known[at] == tokens if len(self._known) else np.zeros(tokens.shape, dtype=bool)
        counts = np.where(seen, self._counts[at], 0.5) if len(self._known) else np.full(tokens.shape, 0.5)
        found: np.ndarray = -np.log(counts / max(self._counts.sum(), 1))
        return found

    def fires(self, latent: int) -> np.ndarray:
        """[contexts, T] where it fires."""
        out = np.zeros(self.contexts["tokens"].shape, dtype=bool)
        begin, end = np.searchsorted(self.firing["latent"], [latent, latent + 1])
        context = np.searchsorted(self.contexts["context"], self.firing["context"][begin:end])
        out[context, self.firing["position"][begin:end]] = True
        return out

    def silent(self, fires: np.ndarray, row: np.ndarray, start: np.ndarray) -> np.ndarray:
        """Whether every token of these windows is scored and silent."""
        sums, end = _sums(fires), start + self.window
        found: np.ndarray = (sums[row, end] == sums[row, start]) & (self._not_ok[row, end] == self._not_ok[row, start])
        return found

    def random(self, latent: int, fires: np.ndarray) -> list[Window]:
        """Silent windows around a random place, at most one a context, smallest hash first."""
        c = self.contexts
        row = np.arange(size(c))
        length = (c["high"] - c["low"]).astype(np.uint64)
        place = c["low"] + (hashed(self.seed, Purpose.SILENT_PLACE, latent, c["context"]) % length).astype(np.int64)
        start = start_of(place, c["low"], c["high"], self.window)
        found = self.silent(fires, row, start)
        order = np.argsort(hashed(self.seed, Purpose.SILENT, latent, c["context"]), kind="stable")
        return [self._at(i, start[i]) for i in order if found[i]]

    def hard(self, latent: int, fires: np.ndarray, token: int, offset: int, taken: set[int]) -> Window | None:
        """The silent window with the smallest hash that has this token at this distance from its beginning; None: there is none.

        Args:
            taken: contexts that it must not be in.
        """
        c = self.contexts
        row, place = np.nonzero((c["tokens"] == token) & c["ok"])
        start = place - offset
        fits = (start >= c["low"][row]) & (start + self.window <= c["high"][row])
        fits &= ~np.isin(c["context"][row], list(taken))
        row, place, start = row[fits], place[fits], start[fits]
        found = self.silent(fires, row, start)
        if not found.any():
            return None
        row, place, start = row[found], place[found], start[found]
        first = int(hashed(self.seed, Purpose.HARD, latent, c["context"][row], place).argmin())
        return self._at(row[first], start[first])

    def _at(self, row: int, start: int) -> Window:
        c = self.contexts
        tokens = c["tokens"][row, start : start + self.window]
        return Window(
            int(c["context"][row]), int(c["document"][row]), int(start), tokens, np.zeros(self.window, np.float32)
        )


def _sums(flags: np.ndarray) -> np.ndarray:
    """[n, T + 1] how many are set before each position."""
    return np.pad(flags.cumsum(1), ((0, 0), (1, 0)))


def choose(latents: np.ndarray, windows: Table, pool: Pool, settings: Settings) -> list[Examples]:
    """Examples of each sampled latent, in their order."""
    windows = rows(windows, np.lexsort((windows["hash"], windows["latent"])))
    found = []
    for latent in latents.tolist():
        begin, end = np.searchsorted(windows["latent"], [latent, latent + 1])
        found.append(_of_latent(latent, rows(windows, np.arange(begin, end)), pool, settings))
    return found


def _of_latent(latent: int, mine: Table, pool: Pool, s: Settings) -> Examples:
    out = Examples(latent)
    strongest = np.lexsort((mine["hash"], -mine["magnitude"]))[: s.top]
    out.top = [_centred(mine, i, s.window) for i in strongest]
    half = {which: _reservoir(mine, which, s) for which in (EXPLAINER, JUDGE)}
    explained = _spread(half[EXPLAINER], s.explained, s.quantiles)
    judged = _spread(half[JUDGE], s.judged, s.quantiles)
    for name, places, wanted in (("explainer", explained, s.explained), ("judge", judged, s.judged)):
        if len(places) < wanted:
            have = size(half[EXPLAINER if name == "explainer" else JUDGE])
            out.lacks |= dict.fromkeys(
                ("detection", "fuzzing"), f"{have} activating windows for the {name}, {wanted} needed"
            )
    if out.lacks:
        return out
    out.explained = [_centred(half[EXPLAINER], i, s.window, q) for i, q in explained]
    out.judged = [_centred(half[JUDGE], i, s.window, q) for i, q in judged]
    _add_silent(out, half[JUDGE], [i for i, _ in judged], pool, s)
    out.twins = _all_twins(half[JUDGE], s, pool)
    if len(out.twins) < s.places:
        out.lacks["fuzzing"] = (
            f"{len(out.twins)} places where highlights can be moved onto silent tokens, {s.places} needed"
        )
        out.twins, out.silent = [], []
    return out


def _add_silent(out: Examples, half: Table, judged: list[int], pool: Pool, s: Settings) -> None:
    """Silent windows: for detection as many as activating ones, half of them hard where there are enough; for fuzzing.

    Each hard one has its own activating window, whose peak's token it holds at the same place: drawn from all places of those
    tokens together, the commonest would stand in most, and how rare a token is would tell the windows apart.
    """
    fires = pool.fires(out.latent)
    # The judged windows lie quantile by quantile: take them in turns.
    for i in np.arange(len(judged)).reshape(s.quantiles, -1).T.ravel().tolist():
        row = judged[i]
        token, offset = int(half["tokens"][row, s.window - 1]), int(half["peak"][row] - half["start"][row])
        hard = pool.hard(out.latent, fires, token, offset, {w.context for w in out.hard})
        if hard is not None:
            out.hard.append(hard)
            out.matched.append(i)
        if len(out.hard) == s.judged // 2:
            break
    everywhere = pool.random(out.latent, fires)
    taken = {w.context for w in out.hard}
    out.random = [w for w in everywhere if w.context not in taken][: s.judged - len(out.hard)]
    if len(out.hard) + len(out.random) < s.judged:
        out.lacks["detection"] = f"{len(out.hard) + len(out.random)} silent windows, {s.judged} needed"
        out.hard, out.matched, out.random = [], [], []
    out.silent = everywhere[: 2 * s.places] if len(everywhere) >= 2 * s.places else []


def _reservoir(mine: Table, which: int, s: Settings) -> Table:
    """The random sample of one side: the smallest hashes (the table is in their order)."""
    return rows(mine, np.flatnonzero(mine["side"] == which)[: s.reservoir])


def _bins(half: Table, s: int) -> list[np.ndarray]:
    """Row numbers by quantile of the peak's magnitude, the weakest first; in each, smallest hash first."""
    order = np.lexsort((half["hash"], half["magnitude"]))
    return [np.sort(part) for part in np.array_split(order, s)]


def _spread(half: Table, wanted: int, quantiles: int) -> list[tuple[int, int]]:
    """(row, quantile) of as many windows from each quantile; empty where one has too few."""
    each = wanted // quantiles
    bins = _bins(half, quantiles)
    if min(map(len, bins)) < each:
        return []
    return [(int(i), q) for q, part in enumerate(bins, 1) for i in part[:each]]


def _all_twins(half: Table, s: Settings, pool: Pool) -> list[Twins]:
    """Twins at as many places of each quantile; where one has too few, the others fill up."""
    by_bin = [
        [t for i in part if (t := _twins(half, int(i), q, s.window, pool))]
        for q, part in enumerate(_bins(half, s.quantiles), 1)
    ]
    each = s.places // s.quantiles
    first = [t for part in by_bin for t in part[:each]]
    spare = list(_rounds([part[each:] for part in by_bin]))
    return (first + spare)[: s.places]


def _rounds(parts: Sequence[Sequence[Twins]]) -> Iterator[Twins]:
    for i in range(max(map(len, parts), default=0)):
        yield from (part[i] for part in parts if i < len(part))


def _twins(half: Table, i: int, quantile: int, w: int, pool: Pool) -> Twins | None:
    """The pair of windows on the place of row i whose moved highlights fall on tokens about as rare as the right ones.

    Rightly highlighted tokens are rarer than most, so that highlights moved at random give themselves away (AUROC .57 to .63 of
    a rule that ranks by rarity). Equal pairs are ordered by hash. None if there is no pair.

    Column c of a stretch is position peak − (w − 1) + c; a window that begins at column s ≤ w − 1 holds the peak.
    """
    z, ok = half["z"][i], half["ok"][i]
    sliding = np.lib.stride_tricks.sliding_window_view
    fires: np.ndarray = sliding(z != 0, w)  # [w, w]: every window that holds the peak
    whole: np.ndarray = np.all(sliding(ok, w), axis=1)
    count, first = fires.sum(1), np.arange(w) + fires.argmax(1)
    a, b = np.nonzero(np.triu(whole[:, None] & whole, 1))
    same = (count[a] == count[b]) & (first[a] == first[b])
    a, b = a[same], b[same]
    clash: np.ndarray = np.any(fires[a] & fires[b], axis=1)
    a, b = a[~clash], b[~clash]
    where = int(half["context"][i]), int(half["peak"][i])
    rarity = sliding(pool.rarity(half["tokens"][i]), w)  # [w, w]
    right, moved_a, moved_b = ((rarity[row] * fires[marks]).sum(1) for row, marks in ((a, a), (a, b), (b, a)))
    unlike = np.round(np.abs(moved_a - right) + np.abs(moved_b - right), 9)
    order = hashed(pool.seed, Purpose.TWINS, int(half["latent"][i]), *where, a, b)
    for pair in np.lexsort((order, unlike)):
        twins = Twins(*(_window(half, i, int(column[pair]), w, quantile) for column in (a, b)))
        if twins.silent_where_moved():
            return twins
    return None


def _centred(table: Table, i: int, w: int, quantile: int = 0) -> Window:
    """The window around the peak of row i."""
    return _window(table, i, int(table["start"][i] - table["peak"][i]) + w - 1, w, quantile)


def _window(table: Table, i: int, column: int, w: int, quantile: int) -> Window:
    part = slice(column, column + w)
    start = int(table["peak"][i]) - (w - 1) + column
    return Window(
        int(table["context"][i]),
        int(table["document"][i]),
        start,
        table["tokens"][i, part],
        table["z"][i, part],
        quantile,
    )
