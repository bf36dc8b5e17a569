"""What a broker brings, by the same ingest as what comes by HTTPS: same transaction, same receipts.

TLS ends at the broker, so here nobody has shown a certificate. Who a device is says the topic, and each segment's
signature must agree. A topic without a new segment that the device signed is nobody's word: it does not count as a sign
of life, and a stranger's name makes no incident. Whose certificates were revoked is refused until it enrols again, for
the broker does not say when the certificate was made that it was shown. Used by the thread that stores.
"""

from __future__ import annotations

from collections.abc import Callable

from edgeguard.collector import authority, store
from edgeguard.collector.enrolment import Enrolment
from edgeguard.collector.ingest import Device, Ingest, Verdict
from edgeguard.errors import DecodeError, SegmentRefused
from edgeguard.records import mqttwire, wire
from edgeguard.records.mqttwire import RENEW, Answer

STRANGERS_MAX = 256  # unknown devices that are named in the log
RETRY_S = 60

Log = Callable[[str], None]
Stored = Callable[[str, list[Verdict]], None]


class Relayed:
    """`stored`: called with a device's name and what became of each segment."""

    def __init__(self, directory: str, ingest: Ingest, enrolment: Enrolment, log: Log, stored: Stored) -> None:
        self._directory = directory
        self._ingest = ingest
        self._enrolment = enrolment
        self._log = log
        self._stored = stored
        self._strangers: set[bytes] = set()

    def answer(self, identity: bytes, kind: str, payload: bytes) -> Answer:
        """Never raises what a message could cause."""
        of = mqttwire.mark(payload)
        try:
            device = self._known(identity)
            return self._renew(device, payload, of) if kind == RENEW else self._take(device, payload, of)
        except LookupError as error:
            if error.args[0]:
                self._log(str(error.args[0]))
            return Answer(of, 403, None, b"unknown device\n")
        except store.FAILURES as error:
            # Full disk, I/O error: nothing was committed, so nothing is confirmed and the device keeps it.
            self._log(f"database: {error}")
            return Answer(of, 503, RETRY_S, b"cannot store now\n")

    def _known(self, identity: bytes) -> Device:
        device = self._ingest.device(identity)
        if device is None:
            told = identity in self._strangers or len(self._strangers) >= STRANGERS_MAX
            if not told:
                self._strangers.add(identity)
            last = "; no more of them are named" if len(self._strangers) == STRANGERS_MAX else ""
            raise LookupError("" if told else f"unknown device {identity.hex()} by MQTT{last}")
        if self._enrolment.barred(device.id):
            raise LookupError(f"{device.name} was revoked, and sends by MQTT")
        return device

    def _take(self, device: Device, payload: bytes, of: bytes) -> Answer:
        if len(payload) > wire.SEGMENT_MAX:
            return Answer(of, 413, None, b"too large\n")
        try:
            verdicts, receipt = self._ingest.take(payload, device, vouched=False)
        except SegmentRefused as error:
            self._log(f"{device.name}: {error}")
            return Answer(of, 400, None, b"not a sequence of segments\n")
        self._stored(device.name, verdicts)
        return Answer(of, 200, None, receipt)

    def _renew(self, device: Device, der: bytes, of: bytes) -> Answer:
        """A new certificate for the key of the one that is shown. Nobody proves here to have that key; without it the
        new certificate is as useless as the old one."""
        try:
            issued = authority.issued(self._directory, device.id.hex(), der)
            if self._enrolment.revoked(device.id, issued):
                raise DecodeError("certificate: revoked")
            fresh = authority.renewed(self._directory, device.id.hex(), der)
        except DecodeError as error:
            self._log(f"{device.name}: renewal refused: {error}")
            return Answer(of, 403, None, b"no\n")
        self._log(f"{device.name}: certificate renewed")
        return Answer(of, 200, None, fresh)
