"""Which images this device may run: the one before, and the newest that was handed over.

    STATE/baseline/slots    a line each, the one that is expected last: SHA-256 of os-release, revision, boot id, name

A device with two slots can fall back to one image, and to no other: the update overwrote it. So the baseline of that
one image may come back into force although its revision is below the floor, and none that is older. Each image has
its own floor, which is the revision here. The file is the store's; nothing is decided here about signatures.
"""

from __future__ import annotations

from typing import NamedTuple

from edgeguard.baseline.image import Image

SLOTS_MAX = 2
SIZE_MAX = 4096  # bytes; two lines have 300


class Slot(NamedTuple):
    """An image that may run."""

    image: Image
    revision: int  # of the newest baseline for it that was accepted here
    boot: str  # boot id of the system that ran when it was handed over


Slots = tuple[Slot, ...]


def handed_over(slots: Slots, image: Image, revision: int, boot: str, runs: bytes | None) -> Slots:
    """The slots after a baseline for `image` was accepted. `runs`: os-release's SHA-256 of the system that runs.

    A new image took the slot of whatever does not run. One that is known stays where it is and is expected from now on
    if it does not run: it was installed again.
    """
    slot = Slot(image, revision, boot)
    known = next((item for item in slots if item.image.sha256 == image.sha256), None)
    if known is not None and image.sha256 == runs:  # the policy of the image that runs was renewed
        kept = known._replace(revision=max(revision, known.revision), image=image)
        return tuple(kept if item is known else item for item in slots)
    if known is not None:
        slot = slot._replace(revision=max(revision, known.revision))
    # What runs keeps its slot, and where the new image runs already, the last one is in the other slot.
    keeps = known is not None or image.sha256 == runs
    others = [item for item in slots if item is not known and (item.image.sha256 == runs or keeps)]
    return (*others[-(SLOTS_MAX - 1) :], slot)


def to_text(slots: Slots) -> bytes:
    rows = (f"{image.sha256.hex()} {revision} {boot or '-'} {image.name}\n" for image, revision, boot in slots)
    return "".join(rows).encode()


def from_text(data: bytes) -> Slots:
    """A file that is damaged gives what is whole in it: then an image is missed that could have come back."""
    found = []
    for line in data.decode("utf-8", "replace").splitlines():
        words = line.split(" ", 3)
        if len(words) != 4 or not (words[1].isascii() and words[1].isdigit() and len(words[1]) <= 10):
            continue
        try:
            digest = bytes.fromhex(words[0])
        except ValueError:
            continue
        if len(digest) == 32 and words[3]:
            found.append(Slot(Image(words[3], digest), int(words[1]), "" if words[2] == "-" else words[2]))
    return tuple(found[-SLOTS_MAX:])
