"""Two texts, line by line: a unified diff of bounded size and bounded work. Pure.

The standard library's difflib is quadratic on texts that somebody made for it, and a quarter of a megabyte that the
resident daemon has no other use for. Here the work is bounded by the number of edits (Myers' greedy algorithm, stopped
at EDITS_MAX): texts that differ by more are shown as "these lines became those", which is what they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from edgeguard.sensors.changes.secrets import Line

CONTEXT = 3  # lines around a change
EDITS_MAX = 48  # lines taken out or put in; more do not fit on a page. 97 diagonals x LINES_MAX steps at worst
RUN_MAX = 16  # lines of one kind in a row that are shown, so that what was there leaves room for what came
SHOWN_MAX = 48  # lines of a diff
WIDE_MAX = 160  # characters of one of them
BYTES_MAX = 4096  # of all of them together, in UTF-8
CUT = "…"


class _Row(NamedTuple):
    sign: str  # " ", "-" or "+"
    old: int  # lines before it, on both sides
    new: int
    line: Line


def unified(old: Sequence[Line], new: Sequence[Line]) -> tuple[str, ...]:
    """The difference, a line each, () if there is none. Numbers of lines count a secret of several lines as one."""
    rows = list(_rows(old, new))
    return tuple(_bounded(_hunks(rows)))


def _rows(old: Sequence[Line], new: Sequence[Line]) -> Iterator[_Row]:
    head = 0
    while head < len(old) and head < len(new) and old[head].key == new[head].key:
        head += 1
    tail = 0
    room = min(len(old), len(new)) - head
    while tail < room and old[-1 - tail].key == new[-1 - tail].key:
        tail += 1
    for at in range(head):
        yield _Row(" ", at, at, new[at])
    x, y = head, head
    middles = ([item.key for item in side[head : len(side) - tail]] for side in (old, new))
    for sign in _script(*middles):
        yield _Row(sign, x, y, new[y] if sign == "+" else old[x])
        x += sign != "+"
        y += sign != "-"
    for at in range(tail):
        yield _Row(" ", x + at, y + at, new[y + at])


def _script(old: Sequence[str], new: Sequence[str]) -> str:
    """What to do with each line, one letter: "-" take from the old, "+" from the new, " " both."""
    trace = _search(old, new)
    if trace is None:
        return "-" * len(old) + "+" * len(new)
    x, y = len(old), len(new)
    letters: list[str] = []
    for depth in range(len(trace) - 1, 0, -1):
        down = trace[depth][x - y].down
        from_k = x - y + (1 if down else -1)
        from_x = trace[depth - 1][from_k].x
        letters += [" " * (x - from_x - (not down)), "+" if down else "-"]
        x, y = from_x, from_x - from_k
    letters.append(" " * x)
    return "".join(reversed(letters))


class _Place(NamedTuple):
    x: int  # lines of the old text that are behind us; of the new one x - diagonal
    down: bool  # the last edit put a line in


def _search(old: Sequence[str], new: Sequence[str]) -> list[dict[int, _Place]] | None:
    """The furthest places that 0, 1, 2, ... edits reach, by diagonal. None: more than EDITS_MAX are needed."""
    trace = [{0: _Place(_slide(old, new, 0, 0), False)}]
    while trace[-1].get(len(old) - len(new), (-1,))[0] != len(old):
        depth = len(trace)
        if depth > EDITS_MAX:
            return None
        before, now = trace[-1], dict[int, _Place]()
        for k in range(-depth, depth + 1, 2):
            left, above = before.get(k - 1), before.get(k + 1)
            right = left.x + 1 if left is not None and left.x < len(old) else -1
            below = above.x if above is not None and above.x - k <= len(new) else -1
            if (x := max(right, below)) >= 0:
                now[k] = _Place(_slide(old, new, x, x - k), below >= right)
        trace.append(now)
    return trace


def _slide(old: Sequence[str], new: Sequence[str], x: int, y: int) -> int:
    while x < len(old) and y < len(new) and old[x] == new[y]:
        x, y = x + 1, y + 1
    return x


def _hunks(rows: Sequence[_Row]) -> Iterator[str]:
    changed = [at for at, row in enumerate(rows) if row.sign != " "]
    at = 0
    while at < len(changed):
        last = at
        while last + 1 < len(changed) and changed[last + 1] - changed[last] <= 2 * CONTEXT:
            last += 1
        start, end = max(0, changed[at] - CONTEXT), min(len(rows), changed[last] + CONTEXT + 1)
        part = rows[start:end]
        olds, news = sum(row.sign != "+" for row in part), sum(row.sign != "-" for row in part)
        yield f"@@ -{_range(part[0].old, olds)} +{_range(part[0].new, news)} @@"
        yield from _runs(part)
        at = last + 1


def _range(before: int, count: int) -> str:
    start = before + 1 if count else before
    return str(start) if count == 1 else f"{start},{count}"


def _runs(part: Sequence[_Row]) -> Iterator[str]:
    at = 0
    while at < len(part):
        end = at
        while end < len(part) and part[end].sign == part[at].sign:
            end += 1
        shown = min(end, at + RUN_MAX)
        for row in part[at:shown]:
            yield row.sign + _narrow(row.line.shown)
        if shown < end:
            yield f"{part[at].sign}{CUT} ({end - shown} more lines)"
        at = end


def _narrow(text: str) -> str:
    text = text.expandtabs(4).rstrip("\r")
    return text if len(text) <= WIDE_MAX else text[: WIDE_MAX - 1] + CUT


def _bounded(shown: Iterator[str]) -> Iterator[str]:
    left = BYTES_MAX
    for count, text in enumerate(shown):
        left -= len(text.encode("utf-8", "surrogatepass"))
        if count >= SHOWN_MAX or left < 0:
            yield f"{CUT} (there is more of this difference)"
            return
        yield text
