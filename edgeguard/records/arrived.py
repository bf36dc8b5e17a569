"""What came from collectors: the receipts that are followed, and what the uplink says of segments they refused.

Whoever fills the inbox is not trusted. A receipt counts if it has its collector's signature, says no less than the one
before and names no segment that is another one here. The latest good one is kept in the spool.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import NamedTuple

from edgeguard.codec import cose
from edgeguard.errors import DecodeError, SegmentRefused, SignatureError
from edgeguard.linux import durable
from edgeguard.records import confirmed, outbox, receipts
from edgeguard.records.outbox import Name
from edgeguard.records.receipts import Receipt
from edgeguard.settings import Settings

NUMBER_MAX = 10**15  # of a segment; a device that seals ten a second for a million years comes to less
COLLECTOR_KEY_MAX = 256  # bytes of a file that holds 64 hex digits
STATUS_MAX = 64 * 1024

Genuine = Callable[[Name], bool]  # is a segment ours and whole?


class Arrived(NamedTuple):
    """The receipts in force."""

    receipt: Receipt | None  # of two collectors, what counts of both
    each: tuple[Receipt, ...]  # of every collector

    def covers(self, name: Name) -> bool:
        return self.receipt is not None and self.receipt.covers(name)

    def head(self, stream: int) -> receipts.Head | None:
        """The highest that any collector has: a number is used once, whoever has it."""
        heads = [head for receipt in self.each if (head := receipt.head(stream)) is not None]
        return max(heads, key=lambda head: head.sequence, default=None)


class Inbox:
    """`spool`, `outbox_`: the sealer's; `problems` gets a line for each receipt or key that is of no use."""

    def __init__(self, settings: Settings, spool: str, outbox_: str, device: bytes, problems: list[str]) -> None:
        self._directory = os.path.join(settings.paths.exchange, "inbox")
        self._spool = spool
        self._outbox = outbox_
        self._device = device
        self._problems = problems
        key = settings.uplink.collector_key  # also without a network: a receipt may be carried here
        self._key = key if settings.uplink.url or os.path.exists(key) else ""
        second = settings.uplink.second
        self._second_key = second.collector_key if second.url else ""
        self._copy = second.mode == "copy"

    @property
    def awaits(self) -> bool:
        """Is there a collector whose receipts can be known?"""
        return bool(self._key)

    def take(self, genuine: Genuine) -> Arrived:
        """The latest of each collector, each by its own key. Raises OSError where a new one cannot be kept."""
        first = self._take(receipts.FILE, self._key, genuine)
        second = self._take(receipts.SECOND_FILE, self._second_key, genuine)
        both = confirmed.together(first, second, copy=self._copy) if self._second_key else first
        return Arrived(both, tuple(receipt for receipt in (first, second) if receipt is not None))

    def suspects(self) -> set[Name]:
        """What the uplink says the collector refused. It may say anything: we only look at those files ourselves."""
        try:
            status = json.loads(receipts.read(os.path.join(self._directory, "status.json"), STATUS_MAX))
        except (OSError, ValueError, RecursionError, DecodeError):
            return set()
        refused = status.get("refused") if isinstance(status, dict) else None
        items = refused if isinstance(refused, list) else []
        names = (outbox.parse_name(str(item.get("name"))) for item in items if isinstance(item, dict))
        return {name for name in names if name is not None}

    def _take(self, file: str, key: str, genuine: Genuine) -> Receipt | None:
        """The stored one, or one in the inbox if it is good and says no less."""
        publics = self._publics(key)
        stored = self._read(os.path.join(self._spool, file), publics)
        came = self._read(os.path.join(self._directory, file), publics)
        if came is None or (stored is not None and came[1] == stored[1]):
            return stored[0] if stored else None
        receipt, data = came
        problem = self._objection(receipt, stored[0] if stored else None, genuine)
        if problem:
            self._problems.append(f"{file}: {problem}")
            return stored[0] if stored else None
        durable.write(os.path.join(self._spool, file), data, 0o600)
        with contextlib.suppress(OSError):  # a comfort: it tells the uplink a time that it may believe
            durable.put(os.path.join(self._outbox, file), data, 0o640)
        return receipt

    def _read(self, path: str, publics: Sequence[bytes]) -> tuple[Receipt, bytes] | None:
        if not publics:
            return None
        try:
            data = receipts.read(path)
            return receipts.verified(data, publics, self._device), data
        except FileNotFoundError:
            return None
        except (OSError, DecodeError, SignatureError) as error:
            self._problems.append(f"{os.path.basename(path)}: {error}")
            return None

    def _objection(self, receipt: Receipt, stored: Receipt | None, genuine: Genuine) -> str:
        """Why a well-signed receipt is not followed: "" if it is."""
        for old in stored.heads if stored else ():
            new = receipt.head(old.stream)
            if new is None or new.sequence < old.sequence or (new.sequence == old.sequence and new.hash != old.hash):
                return f"says less about stream {old.stream} than the one before: an old one, sent again?"
        for head in receipt.heads:
            if head.sequence > NUMBER_MAX:
                return f"names segment {head.stream}-{head.sequence}, which no device reaches"
            try:
                own = sha256(outbox.read(self._outbox, Name(head.stream, head.sequence))).digest()
            except FileNotFoundError:
                continue
            except (OSError, SegmentRefused):
                own = b""
            if own != head.hash and genuine(Name(head.stream, head.sequence)):
                return f"names another segment {head.stream}-{head.sequence} than ours: is this device cloned?"
        return ""

    def _publics(self, path: str) -> list[bytes]:
        if not path:
            return []
        try:
            public = bytes.fromhex(receipts.read(path, COLLECTOR_KEY_MAX).decode("ascii").strip())
        except (OSError, DecodeError, ValueError) as error:
            self._problems.append(f"the collector's key {path}: {error}")
            return []
        return [public] if len(public) == cose.PUBLIC_SIZE else []
