"""How much the uplink may send now: bytes a day, and a rate, of which the backlog gets at most half.

Kept from run to run by `memory`; time comes from outside. What is sent may bring a level below zero, by one segment and
what the connection costs, and nothing more goes before it is above zero again: so that an average holds also where one
segment is larger than the rest of a budget. The rate is a token bucket of a minute. A day begins when its first byte is
sent. A clock that was set back, or on by a day, begins a new one: a budget is no reason to be silent for years.
"""

from __future__ import annotations

from typing import NamedTuple

DAY_MS = 86_400_000
BURST_S = 60  # seconds of the rate that may go at once
FREE = 1 << 62  # bytes, where there is no bound


class Books(NamedTuple):
    """What is remembered. Bytes; milliseconds since 1970."""

    day: int = 0  # when it began
    used: int = 0
    used_backlog: int = 0
    at: int = 0  # when the two levels below were right
    level: int = FREE
    level_backlog: int = FREE


class Allowance:
    """`day_bytes` and `rate_bytes` (a second); 0: no bound. `now` in milliseconds since 1970."""

    def __init__(self, day_bytes: int, rate_bytes: int, books: Books, now: int) -> None:
        self._day, self._rate = day_bytes, rate_bytes
        self.books = books
        self.tick(now)

    def tick(self, now: int) -> None:
        """Time has passed."""
        books = self.books
        if not 0 <= now - books.day < DAY_MS:
            books = books._replace(day=now, used=0, used_backlog=0)
        earned = max(0, now - books.at) * self._rate // 1000
        bucket = self._rate * BURST_S
        self.books = books._replace(
            at=now,
            level=min(bucket, books.level + earned),
            level_backlog=min(bucket // 2, books.level_backlog + earned // 2),
        )

    def left(self, *, backlog: bool) -> int:
        """Bytes that may go now; with any at all, a whole segment may."""
        books, left = self.books, FREE
        if self._rate:
            left = min(left, books.level, books.level_backlog if backlog else FREE)
        if self._day:
            left = min(left, self._day - books.used, self._day // 2 - books.used_backlog if backlog else FREE)
        return max(0, left)

    def spend(self, size: int, backlog: int) -> None:
        """So many bytes went on the wire, so many of them for the backlog."""
        books = self.books
        self.books = books._replace(
            used=books.used + size,
            used_backlog=books.used_backlog + backlog,
            level=books.level - size,
            level_backlog=books.level_backlog - backlog,
        )

    def wait(self, *, backlog: bool) -> int:
        """Seconds until it makes sense to go on. Half a bucket: a start for each segment costs more than it sends."""
        books, seconds = self.books, 0.0
        if self._rate:
            seconds = BURST_S / 2 - books.level / self._rate
            if backlog:
                seconds = max(seconds, BURST_S / 2 - books.level_backlog / (self._rate / 2))
        if self._day and (books.used >= self._day or (backlog and books.used_backlog >= self._day // 2)):
            seconds = max(seconds, (books.day + DAY_MS - books.at) / 1000)
        return max(1, int(seconds) + 1)
