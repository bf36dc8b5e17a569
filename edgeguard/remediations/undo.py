"""Undo records: what is about to be changed and what was there, on disk before it is changed.

One JSON file an act, replaced whole with every step of its life:

    intended ──▶ done ──▶ reverting ──▶ reverted
        └──▶ failed (put back at once)

A record found as "intended" or "reverting" belongs to a crash; `carry.recover` finishes it. The records are also
what the rate limits count, because edgeguard-act forgets everything else between two acts.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from typing import Any, NamedTuple

from edgeguard.errors import RemediationRefused
from edgeguard.remediations import Plan

RECORD_MAX = 256 * 1024  # bytes; the largest part is a file's extended attributes (64 KiB, in hex)
RECORDS_MAX = 2_000  # files; beyond, the oldest that are finished go
HOUR_MS = 3_600_000

PER_VERB_HOUR = 30  # acts an hour with one verb: a wrong baseline must not turn a device inside out
PER_SUBJECT_HOUR = 6  # acts an hour on one subject: who puts it back faster is stronger than we are; a person must look
UNDO_HOLD_MS = 24 * HOUR_MS  # after a person's undo the same act is not repeated for so long

INTENDED = "intended"
DONE = "done"
REVERTING = "reverting"
REVERTED = "reverted"
FAILED = "failed"
STATES = (INTENDED, DONE, REVERTING, REVERTED, FAILED)


class Record(NamedTuple):
    """One act."""

    id: str  # F-7K2M-1763880000000: finding and time
    finding: str
    verb: str
    subject: str
    at: int
    state: str
    plan: Plan
    detail: str = ""
    changed: int = 0  # when the state was last changed


class UndoStore:
    """The records on disk, in a directory that only root can enter."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        os.makedirs(directory, mode=0o700, exist_ok=True)

    def write(self, record: Record) -> None:
        """Durable when this returns: content, then name, then the directory."""
        data = json.dumps(record._asdict() | {"v": 1}, sort_keys=True, indent=1).encode()
        if len(data) > RECORD_MAX:
            raise RemediationRefused(f"the undo record would be larger than {RECORD_MAX} bytes")
        directory = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            write_whole(directory, record.id + ".json", data)
        finally:
            os.close(directory)

    def all(self) -> list[Record]:
        """Every readable record, oldest first. A file that is not a record is left alone and not counted."""
        records = []
        for name in os.listdir(self._directory):
            if name.endswith(".json") and not name.startswith("."):
                record = self._read(os.path.join(self._directory, name))
                if record is not None:
                    records.append(record)
        return sorted(records, key=lambda record: (record.at, record.id))

    def newest(self, finding: str) -> Record | None:
        """The last act for a finding that can be taken back."""
        found = [item for item in self.all() if item.finding == finding and item.state in (DONE, REVERTING)]
        return found[-1] if found else None

    def trim(self, keep: int = RECORDS_MAX) -> None:
        """Forget the oldest finished records; what a crash left is never forgotten."""
        records = self.all()
        surplus = len(records) - keep
        for record in records:
            if surplus <= 0:
                return
            if record.state in (REVERTED, FAILED, DONE):
                os.unlink(os.path.join(self._directory, record.id + ".json"))
                surplus -= 1

    @staticmethod
    def _read(path: str) -> Record | None:
        try:
            with open(path, "rb") as file:
                document = json.loads(file.read(RECORD_MAX + 1))
        except (OSError, ValueError, RecursionError):
            return None
        return _record(document)


def _record(document: Any) -> Record | None:
    """A record if the document is one in every field."""
    if not isinstance(document, dict) or document.pop("v", None) != 1:
        return None
    try:
        record = Record(**document)
    except TypeError:
        return None
    texts = (record.id, record.finding, record.verb, record.subject, record.detail)
    sound = all(isinstance(text, str) for text in texts) and isinstance(record.plan, dict)
    return record if sound and record.state in STATES and isinstance(record.at, int) else None


def write_whole(directory: int, name: str, data: bytes, mode: int = 0o600) -> None:
    """A file that is there whole or not at all: temporary, fsync, rename, fsync of the directory."""
    temporary = f".{name}.new"
    fd = os.open(
        temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, mode, dir_fd=directory
    )
    with open(fd, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
    os.fsync(directory)


def refusal(records: Iterable[Record], verb: str, subject: str, now: int) -> str:
    """Why this act may not be done now by the rate limits, "" if it may.

    A record from the future (the clock was set back) counts as recent: a wrong clock never loosens a limit.
    """
    recent_verb = recent_subject = 0
    for record in records:
        if record.verb != verb:
            continue
        if record.subject == subject and record.state == REVERTED and record.changed > now - UNDO_HOLD_MS:
            return "it was undone by a person; it is not done again within 24 h"
        if record.at > now - HOUR_MS:
            recent_verb += 1
            recent_subject += record.subject == subject
    if recent_subject >= PER_SUBJECT_HOUR:
        return f"done {recent_subject} times within the hour and it always came back; a person must look"
    if recent_verb >= PER_VERB_HOUR:
        return f"{verb} was done {recent_verb} times within the hour; a person must look"
    return ""
