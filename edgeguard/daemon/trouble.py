"""EdgeGuard's own troubles: what failed becomes a report to `health`, and what works again takes it back.

Here stands which event is which report, and under which subject. What to do about it (ask again, ring again) is with
whoever heard of it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

from edgeguard.daemon.baselines import Refusal
from edgeguard.daemon.loop import Loop
from edgeguard.daemon.sensing import now_ms
from edgeguard.model import Severity
from edgeguard.records.registry import Stream
from edgeguard.sensors.health import Health, Reason

STREAMS = tuple(stream.name.lower() for stream in Stream)
GAP_S = 90  # seconds; status.json is written once a minute, so less says nothing


class Trouble:
    """Reports to `health`. `tell` lets the reports flow on; `record` writes a state record."""

    def __init__(self, loop: Loop, health: Health, record: Callable[..., object], tell: Callable[[], None]) -> None:
        self._loop = loop
        self._health = health
        self._record = record
        self.tell = tell
        self.lost = 0  # times that the kernel dropped events of files
        self._refused_subjects: set[str] = set()
        self._let_go: set[int] = set()  # streams of which segments are let go undelivered, as told
        self._refused_installs: set[str] = set()

    def report(self, reason: Reason, subject: str, text: str) -> None:
        """Report only; whoever has several says `tell` after the last."""
        self._health.report(reason, subject, text, now=now_ms())

    def _tell_later(self) -> None:
        """For what is heard in the middle of other work: its observations come after it."""
        self._loop.later(0, self.tell)

    def bug(self, where: str, error: Exception) -> None:
        """A defect of ours, told in full where an engineer looks."""
        import traceback

        text = "".join(traceback.format_exception(error))
        sys.stderr.write(f"edgeguardd: bug in {where}: {text}\n")

    # -- the time before this start

    def started(self, gap: int | None, damaged: Iterable[str]) -> None:
        """What the time before this start left to tell. A device that was switched off was not unwatched."""
        if gap is not None and GAP_S < gap < time.clock_gettime(time.CLOCK_BOOTTIME):
            text = f"nothing was watched for up to {gap} s, while the device was on"
            self.report(Reason.NOT_RUNNING, "gap", text)
        for name in damaged:
            text = "it could not be read; the records in it are lost"
            self.report(Reason.SEGMENT_SET_ASIDE, f"spool {name}", text)

    # -- baseline and policy

    def no_baseline(self) -> None:
        self._health.report(Reason.BASELINE_REFUSED, "baseline", "no valid baseline: this device is not judged")

    def judged(self) -> None:
        """A valid baseline came into force, with its manifest."""
        self._health.clear("baseline")

    def manifest(self, error: Exception) -> None:
        self.report(Reason.BASELINE_REFUSED, "baseline", f"file manifest: {error}")

    def refused(self, refusals: list[Refusal]) -> None:
        """What the store refused at this load; a file that is not refused any more is no problem any more."""
        standing = {f"baseline {refusal.name}" for refusal in refusals}
        for subject in self._refused_subjects - standing:
            self._health.clear(subject)
        self._refused_subjects = standing
        for refusal in refusals:
            self._refuse(refusal)
        self.tell()

    def _refuse(self, refusal: Refusal) -> None:
        subject = f"baseline {refusal.name}"
        self._health.report(Reason.BASELINE_REFUSED, subject, refusal.text, code=refusal.code, now=now_ms())
        self._record("baseline refused", f"{refusal.name}: {refusal.text}", severity=Severity.HIGH)
        self.tell()

    def install_refused(self, refusal: Refusal) -> None:
        self._refuse(refusal)
        self._refused_installs.add(refusal.name)

    def installed(self) -> None:
        """Whoever was to install one that was refused has installed one."""
        for refused in self._refused_installs:
            self._health.clear(f"baseline {refused}")
        self._refused_installs.clear()
        self.tell()

    def image(self, text: str) -> None:
        """The device does not run what it was updated to; "" as text: it does."""
        if text:
            self.report(Reason.OTHER_IMAGE, "image", text)
        else:
            self._health.clear("image")
        self.tell()

    def policy_wrong(self, problems: list[str]) -> None:
        text = problems[0] if len(problems) == 1 else f"{problems[0]} (and {len(problems) - 1} more)"
        self.report(Reason.POLICY_WRONG, "policy", text)
        self.tell()

    def policy_right(self) -> None:
        self._health.clear("policy")
        self.tell()

    # -- sensors

    def sensor_blind(self, name: str, text: str) -> None:
        self.report(Reason.SENSOR_BLIND, f"sensor {name}", text)

    def sensor_sees(self, name: str) -> None:
        self._health.clear(f"sensor {name}")

    def sensor_failed(self, name: str, error: Exception) -> None:
        """Something that a sensor cannot cope with: told, and the others go on."""
        if not isinstance(error, OSError):
            self.bug(f"sensor {name}", error)
        self.report(Reason.SENSOR_FAILED, f"sensor {name}", f"{type(error).__name__}: {error}")
        self._tell_later()

    def events_lost(self, count: int) -> None:
        """`count`: how often the kernel dropped some; it does not say how many."""
        self.lost += count
        times = "once" if count == 1 else f"{count} times"
        self.report(Reason.EVENTS_LOST, "events", f"the queue for events of files overflowed {times}")
        self._tell_later()

    # -- helpers, spool, uplink

    def helper_failed(self, verb: str, error: str) -> None:
        reason = Reason.HELPER_TIMEOUT if "too long" in error else Reason.HELPER_FAILED
        self.report(reason, f"helper {verb}", error)
        self._record("helper failed", f"{verb}: {error}", severity=Severity.MEDIUM)
        self.tell()

    def helper_well(self, verb: str) -> None:
        self._health.clear(f"helper {verb}")
        self.tell()

    def spool(self, subject: str, detail: str) -> None:
        """ "" as detail: all is well again."""
        if detail:
            self.report(Reason.SPOOL_ERROR, subject, detail)
        else:
            self._health.clear(subject)
        self._tell_later()

    def fleeting(self, why: str) -> None:
        """Whoever reads the records later must know that a restart may have taken some without a trace."""
        if why:
            self._record("spool", f"EdgeGuard's own state is {why}", severity=Severity.MEDIUM)

    def _room(self, answer: dict[str, Any]) -> None:
        """Segments were let go for want of room. Of the two streams that tell what happened that is a finding."""
        lost: dict[int, int] = {}
        for first, last, stream in answer["lost"]:
            lost[stream] = lost.get(stream, 0) + last - first + 1
        told = ", ".join(f"{count} of {STREAMS[stream]}" for stream, count in sorted(lost.items()))
        if lost.keys() - self._let_go:
            text = f"sealed records have {answer['limit']} bytes; segments let go undelivered: {told}"
            self._record("spool", text, severity=Severity.LOW)
        self._let_go = set(lost)
        if answer.get("awaited") and any(stream <= Stream.SECURITY for stream in lost):
            self.report(Reason.RECORDS_LET_GO, "spool room", f"segments let go before they were delivered: {told}")
        else:
            self._health.clear("spool room")

    def uplink(self, detail: str) -> None:
        """ "" as detail: all is well again."""
        if detail:
            self.report(Reason.UPLINK_FAILING, "uplink", detail)
        else:
            self._health.clear("uplink")
        self.tell()

    def sealed(self, answer: dict[str, Any]) -> None:
        """The sealer ended: what it refused is reported by name."""
        unstored = "error" in answer and bool(answer.get("storage"))
        if unstored:  # the disk's fault, and what an operator can mend
            self.report(Reason.SPOOL_ERROR, "outbox", f"sealing: {answer['error']}")
        elif "error" in answer:
            self.helper_failed("seal", answer["error"])
        else:
            self.helper_well("seal")
        if answer.get("key"):
            self.report(Reason.SPOOL_ERROR, "epoch key", str(answer["key"]))
        elif "error" not in answer:
            self._health.clear("epoch key")
        for row in answer.get("quarantined", []):
            self.report(Reason.SEGMENT_SET_ASIDE, f"segment {row['name']}", str(row["why"]))
        if answer.get("spoiled"):
            text = f"the disk lost {answer['spoiled']} records out of it; signed records stand in their places"
            self.report(Reason.SEGMENT_SET_ASIDE, "spool journal", text)
        if answer.get("aside"):
            self.report(Reason.SEGMENT_SET_ASIDE, "spool losses", str(answer["aside"]))
        if "lost" in answer:
            self._room(answer)
        if answer.get("full"):
            self.report(Reason.SPOOL_FULL, "outbox", "sealed records do not fit into their room")
        elif not unstored:
            self._health.clear("outbox")
        for problem in answer.get("problems", []):
            self.report(Reason.UPLINK_FAILING, "receipts", str(problem))
        if not answer.get("problems") and answer.get("receipt"):
            self._health.clear("receipts")
        self._tell_later()
