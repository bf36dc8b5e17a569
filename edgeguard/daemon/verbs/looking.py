"""Verbs that only look: status, findings, explain, why, log, doctor, version."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from edgeguard import __version__
from edgeguard.cli.jsonform import finding_document, watch_document, why_document
from edgeguard.cli.text import escape
from edgeguard.control_server.client import Request
from edgeguard.daemon.guard import Guard
from edgeguard.daemon.logview import record_document
from edgeguard.daemon.sensing import now_ms
from edgeguard.daemon.sensors import SENSOR_OF
from edgeguard.daemon.verbs.shared import one
from edgeguard.errors import ControlError
from edgeguard.model import Finding, Observation, Origin, State, Status

EXIT_CODES = {"OK": 0, "WARN": 1, "CRIT": 2}
NEAR_MS = 5 * 60_000
NEAR_MAX = 5
ANSWERS_MAX = 20  # of `why`


class Looking:
    """Answers from what the guard holds in memory; `why` looks at the one subject that is asked about."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard

    def status(self, request: Request) -> None:
        asked = request.parameters
        status = self._guard.showing.status()
        code = EXIT_CODES.get(status["verdict"], 0 if status["learning"] else 3)
        if asked["format"] == "json":
            text = json.dumps(status, separators=(",", ":")) + "\n"
        else:
            from edgeguard.cli import render  # 1 MB of words that nobody needs until somebody asks

            text = render.status(
                status,
                asked["width"],
                asked["color"],
                asked["unicode"],
                asked["height"],
            )
        request.reply({"code": code, "text": text})

    def findings(self, request: Request) -> None:
        request.stream(self._findings(everything=request.parameters["all"]))

    def _findings(self, *, everything: bool) -> Iterator[Mapping[str, Any]]:
        ledger = self._guard.river.ledger
        found = ledger.all()
        for finding in found if everything else ledger.open():
            yield {"finding": finding_document(finding)}
        states = [finding.state for finding in found]
        yield {
            "open": states.count(State.OPEN),
            "suppressed": states.count(State.SUPPRESSED),
            "resolved": states.count(State.RESOLVED),
            "overflow": dict(ledger.overflow),
            "verdict": self._guard.showing.status()["verdict"],
        }

    def explain(self, request: Request) -> None:
        finding = one(self._guard, request.parameters["id"])
        engine = self._guard.river.engine
        rule = engine.rules.get(finding.rule) if engine else None
        request.reply(
            {
                "finding": finding_document(finding),
                "near": [finding_document(other) for other in self._near(finding)],
                "rule": None
                if rule is None
                else {
                    "id": escape(rule.id),
                    "title": escape(rule.title),
                    "source": escape(rule.source),
                    "mode": rule.mode.value,
                    "remediation": rule.remediation,
                },
            }
        )

    def _near(self, finding: Finding) -> list[Finding]:
        """What else happened about that time, oldest first: facts, no conclusion."""
        others = [
            other
            for other in self._guard.river.ledger.all()
            if other.id != finding.id and abs(other.first_seen - finding.first_seen) <= NEAR_MS
        ]
        others.sort(key=lambda other: abs(other.first_seen - finding.first_seen))
        return sorted(others[:NEAR_MAX], key=lambda other: other.first_seen)

    def why(self, request: Request) -> None:
        subject = request.parameters["subject"]
        engine = self._guard.river.engine
        if engine is None:
            raise ControlError("NoBaseline", "no baseline is in force yet")
        seen = list(self._named(subject))[:ANSWERS_MAX]
        if not seen:
            raise ControlError("NoSuchSubject", f"nothing here is called {escape(subject)}")
        ledger = self._guard.river.ledger
        request.reply(
            {
                "answers": [
                    why_document(engine.why(item, now_ms()), ledger.of_subject(item.kind, item.subject))
                    | self._deciding(item)
                    for item in seen
                ]
            }
        )

    def _deciding(self, seen: Observation) -> dict[str, Any]:
        """For a file, the line that says whether it is watched."""
        files: Any = self._guard.sensing.sensor("files")
        if seen.kind != "file" or files is None:
            return {}
        from edgeguard.sensors.deciding import decision  # only when somebody asks

        return {"watch": watch_document(decision(files.plan, seen.subject))}

    def _named(self, text: str) -> Iterator[Observation]:
        """What is there now under this name: a path, a port, a process id, or any subject."""
        text = os.fsdecode(text.encode("utf-8", "surrogateescape"))
        if text.startswith("/"):
            files: Any = self._guard.sensing.sensor("files")
            if files is not None:
                yield self._guard.differing.told(files.observe_path(files.real(text), now_ms()), asked=True)
        for name in {name for names in SENSOR_OF.values() for name in names}:
            sensor = self._guard.sensing.sensor(name)
            for seen in sensor.observe(now_ms()) if sensor else ():
                if _is_named(seen, text):
                    yield seen
        references = self._guard.river.references
        if text.startswith("/") or references is None:
            return
        for kind, table in (
            self._guard.judging.in_force.baseline.references.items() if self._guard.judging.in_force else ()
        ):
            if text in table and kind != "file":
                yield Observation(kind, text, {}, now_ms(), Status.ABSENT, Origin.SWEEP)

    def log(self, request: Request) -> None:
        asked = request.parameters
        telling = self._guard.telling
        newest = list(telling.recent)[-asked["lines"] :] if asked["lines"] else []
        replies = [{"record": record_document(*row)} for row in newest]
        if not asked["follow"]:
            request.stream(iter([*replies, {"count": len(replies)}]))
            return

        def follow(stream: int, sequence: int, record: Any) -> None:
            if not request.reply({"record": record_document(stream, sequence, record)}, continues=True):
                stop()

        def stop() -> None:
            if follow in telling.followers:
                telling.followers.remove(follow)

        request.on_close = stop
        for reply in replies:
            request.reply(reply, continues=True)
        telling.followers.append(follow)

    def doctor(self, request: Request) -> None:
        from edgeguard.daemon.checkup import checks

        request.reply({"checks": checks(self._guard)})

    def version(self, request: Request) -> None:
        python = ".".join(map(str, sys.version_info[:3]))
        request.reply(
            {"version": __version__, "pid": os.getpid(), "started": self._guard.showing.started, "python": python}
        )


def _is_named(seen: Observation, text: str) -> bool:
    if seen.subject == text:
        return True
    if seen.kind == "process":
        return text.isdigit() and seen.columns.get("pid") == int(text)
    if seen.kind != "listener":
        return False
    port, _, protocol = text.removeprefix(":").partition("/")
    return (
        port.isdigit()
        and (text.startswith(":") or bool(protocol))
        and seen.columns.get("port") == int(port)
        and protocol in ("", seen.columns.get("protocol"))
    )
