"""Preset DEFLATE dictionaries: what segments have in common, known to both sides before the first byte.

Dictionary n is the file dictionaries/n.dict, in the device's package and in the collector's. A number is never given
twice and a file never changes: a collector reads the segments of every earlier release. A device uses one only when a
receipt has said that the collector has it. `packaging/tools/train_dictionary.py` makes them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import lru_cache
from hashlib import sha256

from edgeguard.errors import DecodeError, UnknownDictionary

DIRECTORY = os.path.join(os.path.dirname(__file__), "presets")
SIZE_MAX = 32 * 1024  # bytes: DEFLATE looks no further back
SHA256 = {
    1: "79844851738288add4828946682783af01e387b7d026a77e1fdaa9199d1a5c43",
}
"""Every dictionary of this release. Append only."""


def numbers() -> tuple[int, ...]:
    """What a collector of this release can read; 0 is none at all."""
    return (0, *SHA256)


def best(offered: Iterable[int]) -> int:
    """The newest of those that a receipt offers and that are here, 0 if there is none."""
    return max((number for number in offered if number in SHA256), default=0)


@lru_cache(maxsize=4)
def read(number: int) -> bytes:
    """The dictionary of this number. UnknownDictionary: a later release's; DecodeError: its file is damaged."""
    if number not in SHA256:
        raise UnknownDictionary(f"dictionary {number} is not here")
    path = os.path.join(DIRECTORY, f"{number}.dict")
    try:
        with open(path, "rb") as file:
            data = file.read(SIZE_MAX + 1)
    except OSError as error:
        raise DecodeError(f"dictionary {number}: {error}") from error
    if sha256(data).hexdigest() != SHA256[number]:
        raise DecodeError(f"dictionary {number}: {path} is damaged")
    return data
