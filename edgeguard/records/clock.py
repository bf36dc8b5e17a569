"""What time it is when the clock cannot be believed: a board without a battery starts in the past.

Certificates are then judged at the newest moment that this device has reason to believe in: its clock, the day on which
this release was made, the day from which its own certificate and its CA are valid, or the time in the newest receipt
that the sealer has verified. A moment that is too early lets an expired certificate pass a little longer; nothing else
hangs on it.
"""

from __future__ import annotations

BUILT = 1_795_564_800_000  # ms since 1970: 2026-11-25, the date of the newest release in CHANGELOG.md; a test compares
HORIZON = 10 * 365 * 86_400_000  # ms; what tells of a time beyond it tells of none


def judged_at(now: int, *heard: int) -> int:
    """When to judge certificates; all in ms. Greater than `now` where the clock is behind what we know."""
    return max(now, BUILT, *(moment for moment in heard if moment <= BUILT + HORIZON))
