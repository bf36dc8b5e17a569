"""What two collectors have confirmed, as one receipt to go by.

As a copy, the second counts like the first: a segment leaves when both have it. As a fallback it never lets one go:
what it took while the first did not answer is sent to the first as well, so that the first's chain has no hole that
only an operator could close. In both cases a segment is written so that both can read it.
"""

from __future__ import annotations

from edgeguard.records.receipts import Head, Receipt


def together(first: Receipt | None, second: Receipt | None, *, copy: bool) -> Receipt | None:
    """Heads that let segments go, and dictionaries and baselines that may be used. A collector that has not spoken
    yet has confirmed nothing and is known to read nothing."""
    if first is None or (copy and second is None):
        return None
    if second is None:
        return first._replace(dictionaries=tuple(item for item in first.dictionaries if item == 0), baselines=())
    heads = first.heads
    if copy:
        heads = tuple(
            min(head, other, key=_sequence) for head in heads if (other := second.head(head.stream)) is not None
        )
    return first._replace(
        heads=heads,
        dictionaries=tuple(item for item in first.dictionaries if item in second.dictionaries),
        baselines=tuple(item for item in first.baselines if item in second.baselines),
    )


def _sequence(head: Head) -> int:
    return head.sequence
