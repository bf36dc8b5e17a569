"""Several readers on the same bytes: an expected error of one does not spare the others."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from edgeguard.errors import EdgeGuardError


def each(data: Any, *readers: Callable[[Any], object]) -> None:
    """Call every reader with `data`; iterators are read to their end."""
    for reader in readers:
        with contextlib.suppress(EdgeGuardError):
            drain(reader(data))


def drain(result: object) -> None:
    if isinstance(result, Iterator):
        deque(result, maxlen=0)
