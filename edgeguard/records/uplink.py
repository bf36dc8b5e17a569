"""`edgeguard-uplink`: sends sealed segments, brings back receipts, and exits when nothing waits.

Its own user, no capability, no key that signs anything: it reads the outbox and writes the inbox. It cannot verify a
receipt; the sealer does, before anything is deleted. What it needs to tell the daemon is in inbox/status.json: how it
went, what was refused, when a retry makes sense. When to try again is the daemon's decision.
`delivery` knows one collector, `link` the connection to it; here is a run over one or two of them.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from edgeguard.errors import SettingsError
from edgeguard.records import memory, receipts
from edgeguard.records.allowance import Allowance
from edgeguard.records.delivery import Delivery, now
from edgeguard.records.link import Target, UplinkError
from edgeguard.records.outbox import replace
from edgeguard.settings import DEFAULT_FILE, Settings, load, transport

STATUS_MAX = 4096  # bytes of status.json: the daemon reads no more
REFUSED_SHOWN = 16
ERROR_MAX = 300  # letters

EX_TEMPFAIL = 75  # sysexits.h: something waits and could not be sent


class Uplink:
    """One run over outbox and inbox."""

    def __init__(self, settings: Settings) -> None:
        uplink = settings.uplink
        self._url = uplink.url
        outbox = os.path.join(settings.paths.exchange, "outbox")
        self._inbox = os.path.join(settings.paths.exchange, "inbox")
        self._memory_file = os.path.join(self._inbox, memory.FILE)
        self._memory = memory.load(self._memory_file)
        self._allowance = Allowance(uplink.day_bytes, uplink.rate_bytes, self._memory.books, now())
        renewed = os.path.join(self._inbox, "client.pem")
        target = Target(uplink.url, uplink.ca, uplink.certificate, uplink.key, renewed)
        receipt = os.path.join(self._inbox, receipts.FILE)
        self.first = Delivery(outbox, receipt, target, self._memory.first, self._allowance)
        self.second: Delivery | None = None
        self._copy = uplink.second.mode == "copy"
        if uplink.second.url:
            second, renewed = uplink.second, os.path.join(self._inbox, "client-2.pem")
            target = Target(second.url, second.ca, second.certificate, second.key, renewed)
            receipt = os.path.join(self._inbox, receipts.SECOND_FILE)
            self.second = Delivery(outbox, receipt, target, self._memory.second, self._allowance)

    def run(self) -> int:
        """Send until nothing waits. Exit code: 0, or EX_TEMPFAIL when something does that could not be sent."""
        trouble: UplinkError | None = None
        try:
            self.first.drain()
        except UplinkError as error:
            trouble = error
        if self.second is not None:
            trouble = self._second(self.second, trouble)
        self._remember()
        self._report(trouble)
        return 0 if trouble is None else EX_TEMPFAIL

    def _second(self, second: Delivery, trouble: UplinkError | None) -> UplinkError | None:
        """A copy gets everything; a fallback what waits while the first does not answer, and is else only asked
        whether it is there."""
        try:
            if self._copy or trouble is not None:
                second.drain()
            else:
                second.introduce()
        except UplinkError as error:
            if trouble is None:
                return UplinkError(error.name, f"second collector: {error}", error.retry_after if self._copy else None)
            rests = [rest for rest in (trouble.retry_after, error.retry_after) if rest is not None]
            rest = min(rests) if len(rests) == 2 else None  # who did not ask for rest is tried before
            return UplinkError(trouble.name, f"{trouble}; second collector: {error}", rest)
        if trouble is None:
            return None
        return UplinkError(trouble.name, f"{trouble}; the second collector answers")  # no rest: it may be rung

    def _remember(self) -> None:
        second = self.second.known() if self.second is not None else self._memory.second
        kept = memory.Memory(self.first.known(), second, self._allowance.books)
        if kept != self._memory:
            replace(self._memory_file, memory.encode(kept))

    def _report(self, error: UplinkError | None) -> None:
        deliveries = [self.first, *([self.second] if self.second is not None else [])]
        refused = {name: reason for delivery in deliveries for name, reason in delivery.refused.items()}
        rest = max(delivery.rest for delivery in deliveries)
        status: dict[str, Any] = {
            "v": 1,
            "transport": transport(self._url),
            "ok": error is None,
            "name": error.name if error else "",
            "error": str(error)[:ERROR_MAX] if error else "",
            "retry_after": error.retry_after if error else rest or None,
            "waiting": max(len(delivery.waiting()) for delivery in deliveries if self._copy or delivery is self.first),
            "sent": self.first.sent,
            "last_sent": self.first.known().last_sent,
            "refused": [
                {"name": name, "reason": reason[: receipts.REASON_MAX]}
                for name, reason in sorted(refused.items())[:REFUSED_SHOWN]
            ],
            "at": now(),
        }
        if self.second is not None:
            waiting, sent, last = len(self.second.waiting()), self.second.sent, self.second.known().last_sent
            status["second"] = {"waiting": waiting, "sent": sent, "last_sent": last}
        while len(json.dumps(status)) > STATUS_MAX:  # reasons that take six bytes a letter
            status["refused"].pop()
        replace(os.path.join(self._inbox, "status.json"), json.dumps(status).encode())


def main(argv: list[str]) -> int:
    """`edgeguard-uplink [uplink] [--settings FILE]`; the daemon, where it starts us itself, names the verb."""
    path = DEFAULT_FILE
    argv = argv[1:] if argv[:1] == ["uplink"] else argv
    if argv[:1] == ["--settings"] and len(argv) == 2:
        path = argv[1]
    elif argv:
        sys.stderr.write("usage: edgeguard-uplink [--settings FILE]\n")
        return 64
    try:
        settings = load(path)
    except SettingsError as error:
        sys.stderr.write(f"edgeguard-uplink: {error!s}\n")
        return 64
    if not settings.uplink.url:
        sys.stderr.write("edgeguard-uplink: no [uplink] url in the settings: records stay on this device\n")
        return 0
    try:
        return Uplink(settings).run()
    except OSError as error:  # outbox or inbox: nothing was lost, but somebody must look at the permissions
        sys.stderr.write(f"edgeguard-uplink: {error.filename or ''}: {error.strerror or error}\n")
        return EX_TEMPFAIL
