"""Answers on the control socket, one function a verb, in the order of control.VERBS.

Handlers answer from memory and return at once. What takes time (learning, a scan, signing, an act) goes on in a
helper, and the answer follows when it is done, whether or not the client is still there.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from edgeguard import __version__
from edgeguard.cli.jsonform import finding_document, mark, why_document
from edgeguard.cli.text import escape
from edgeguard.codec.values import columns_to_plain, to_plain
from edgeguard.control_server import Handler, Request
from edgeguard.daemon.guard import Guard
from edgeguard.daemon.logview import record_document
from edgeguard.daemon.sensing import now_ms
from edgeguard.daemon.sensors import SENSOR_OF
from edgeguard.daemon.sweeps import Request as SweepRequest
from edgeguard.errors import ControlError
from edgeguard.model import Change, Finding, Observation, Origin, State, Status
from edgeguard.remediations import ActRequest, Reply

EXIT_CODES = {"OK": 0, "WARN": 1, "CRIT": 2}
NEAR_MS = 5 * 60_000
NEAR_MAX = 5
ANSWERS_MAX = 20  # of `why`


class Verbs:
    """The handlers. They know the guard; it does not know them."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard

    def table(self) -> Mapping[str, Handler]:
        return {
            "Status": self.status,
            "Findings": self.findings,
            "Explain": self.explain,
            "Why": self.why,
            "Log": self.log,
            "Scan": self.scan,
            "Accept": self.accept,
            "Undo": self.undo,
            "BaselineShow": self.baseline_show,
            "BaselineDiff": self.baseline_diff,
            "BaselineHistory": self.baseline_history,
            "BaselineLearn": self.baseline_learn,
            "BaselineInstall": self.baseline_install,
            "Doctor": self.doctor,
            "Reload": self.reload,
            "Version": self.version,
        }

    # -- looking

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
        finding = self._one(request.parameters["id"])
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

    def _one(self, text: str) -> Finding:
        found = self._guard.river.ledger.find(text)
        if not found:
            raise ControlError("NoSuchFinding", f"no finding {escape(text)}")
        if len(found) > 1:
            names = ", ".join(finding.id for finding in found[:5])
            raise ControlError("Ambiguous", f"{escape(text)} could be {names}")
        return found[0]

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
                    for item in seen
                ]
            }
        )

    def _named(self, text: str) -> Iterator[Observation]:
        """What is there now under this name: a path, a port, a process id, or any subject."""
        text = os.fsdecode(text.encode("utf-8", "surrogateescape"))
        if text.startswith("/"):
            files: Any = self._guard.sensing.sensor("files")
            if files is not None:
                yield files.observe_path(os.path.normpath(text), now_ms())
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

    # -- acting

    def scan(self, request: Request) -> None:
        if self._guard.judging.in_force is None:
            raise ControlError("Busy", "there is no baseline to compare with yet")
        if self._guard.rounds.sweeps.running is not None:
            raise ControlError("Busy", "a sweep is running already; `edgeguard status` shows when it ended")
        started = time.monotonic()

        def done(answer: dict[str, Any]) -> None:
            if "error" in answer:
                request.fail(ControlError("Failed", answer["error"]))
                return
            status = self._guard.showing.status()
            request.reply(
                {
                    "verdict": status["verdict"],
                    "open": status["open"],
                    "files": answer.get("summary", {}).get("files", 0),
                    "seconds": int(time.monotonic() - started),
                }
            )

        self._guard.sensing.look_again()
        self._guard.rounds.sweeps.ask(
            SweepRequest(
                Origin.SWEEP,
                full=not request.parameters["quick"],
                on_progress=_passing(request),
                on_done=done,
            )
        )

    def accept(self, request: Request) -> None:
        asked = request.parameters
        reason, until = asked["reason"].strip(), asked["until"]
        if not reason:
            raise ControlError("InvalidParameter", "a reason is needed: it is recorded with your name")
        found = [self._open(text) for text in asked["ids"]]
        for finding, shown in zip(found, asked["marks"] or (), strict=False):
            if shown and shown != mark(finding):
                raise ControlError("Moved", f"{finding.id} is not what was shown any more; look at it again")
        owner = self._owner(request)
        if until is None and self._guard.judging.in_force is not None and self._guard.judging.in_force.trust == "local":
            self._accept_in_baseline(request, found, owner, reason)
            return
        accepted = []
        for finding in found:
            change = self._guard.river.ledger.accept(finding.id, owner, reason, now_ms(), until)
            self._guard.told(change)
            accepted.append(finding_document(change.finding))
        self._keep_accepted(found)
        self._guard.telling.state("accepted", f"{owner}: {reason}", subject=", ".join(f.id for f in found))
        request.reply({"accepted": accepted, "revision": None, "undo": f"edgeguard undo {found[0].id}"})

    def _accept_in_baseline(self, request: Request, found: list[Finding], owner: str, reason: str) -> None:
        """What can be a reference value goes into the next revision of the local baseline; the rest into the ledger."""
        changes = [row for finding in found if (row := self._reference_of(finding)) is not None]
        if changes and "rebase" in self._guard.helpers.running:
            raise ControlError("Busy", "a baseline is being signed; try again")
        for finding in found:
            change = self._guard.river.ledger.accept(finding.id, owner, reason, now_ms(), None)
            self._guard.told(change)
        self._keep_accepted(found)
        self._guard.telling.state("accepted", f"{owner}: {reason}", subject=", ".join(f.id for f in found))
        documents = [finding_document(finding) for finding in found]
        undo = f"edgeguard undo {found[0].id}"
        if not changes:
            request.reply({"accepted": documents, "revision": None, "undo": undo})
            return

        def done(answer: dict[str, Any]) -> None:
            if "error" in answer:
                for finding in found:
                    if self._guard.river.ledger.is_accepted(finding.id):
                        self._retract(finding.id)
                request.fail(ControlError("Failed", escape(answer["error"])))
            else:
                request.reply({"accepted": documents, "revision": answer.get("revision"), "undo": undo})

        note = f"accepted by {owner}: {reason}"[:500]
        if not self._guard.judging.rebase({"accept": changes, "note": note}, done):
            raise ControlError("Busy", "a baseline is being signed; try again")

    def _keep_accepted(self, found: list[Finding]) -> None:
        """A word that a power cut could take back is not answered with yes."""
        if self._guard.keeping.save(durable=True):
            return
        for finding in found:
            self._retract(finding.id)
        raise ControlError("Failed", "the disk does not take it, so nothing was accepted; see: edgeguard doctor")

    def _keep_retracted(self) -> None:
        if not self._guard.keeping.save(durable=True):
            raise ControlError("Failed", "taken back until the next restart only: the disk does not take it")

    def _reference_of(self, finding: Finding) -> list[Any] | None:
        """[kind, subject, reference columns | None (accepted as absent)], None for what no reference value covers."""
        from edgeguard.sensors import TABLE, sensor_class

        details = dict(finding.details or {})
        for name in TABLE:
            columns = sensor_class(name).kinds.get(finding.kind)
            if columns is None:
                continue
            kept = {n: details[n] for n, column in columns.items() if column.reference and n in details}
            if not any(column.reference for column in columns.values()):
                return None
            gone = details.get("status") == "absent" and finding.kind != "package"
            if not gone and not kept:
                return None
            return [finding.kind, to_plain(finding.subject), None if gone else columns_to_plain(kept)]
        return None

    def _open(self, text: str) -> Finding:
        finding = self._one(text)
        if finding.state is State.RESOLVED:
            raise ControlError("NoSuchFinding", f"{finding.id} is resolved already")
        return finding

    def _owner(self, request: Request) -> str:
        """The person behind `sudo`, as far as the login tells."""
        peer = request.peer
        uid = peer.login_uid if peer.login_uid is not None else peer.uid
        return self._guard.actors.user(uid) or f"uid {uid}"

    def undo(self, request: Request) -> None:
        finding = self._one(request.parameters["id"])
        ledger = self._guard.river.ledger
        if finding.state is State.RESOLVED and ledger.is_accepted(finding.id):
            self._take_back(request, finding)
            return
        if finding.state is State.SUPPRESSED:
            change = self._retract(finding.id)
            if change is not None:
                self._keep_retracted()
                self._guard.telling.state("undo", f"{self._owner(request)}: acceptance taken back", finding=finding.id)
                request.reply(
                    {
                        "undone": [f"{finding.id}: the acceptance was taken back"],
                        "finding": finding_document(change.finding),
                    }
                )
                return
        if not finding.remediation:
            raise ControlError("NothingToUndo", f"nothing was done about {finding.id}")

        def replied(_request: ActRequest, reply: Reply) -> None:
            self._guard.remedying.undone(finding.id, reply, self._owner(request))
            if reply.ok:
                found = ledger.find(finding.id)
                request.reply(
                    {"undone": [escape(reply.detail)], "finding": finding_document(found[0]) if found else None}
                )
            else:
                name = "RemediationRefused" if reply.state == "refused" else "RemediationFailed"
                request.fail(ControlError(name, escape(reply.detail)))

        self._guard.remedying.undo(finding.id, replied)

    def _retract(self, finding_id: str) -> Change | None:
        change = self._guard.river.ledger.retract(finding_id, now_ms())
        if change is not None:
            self._guard.told(change)
        return change

    def _take_back(self, request: Request, finding: Finding) -> None:
        """It was accepted into the baseline: the next revision expects again what was expected before."""
        owner = self._owner(request)

        def done(answer: dict[str, Any]) -> None:
            if "error" in answer:
                request.fail(ControlError(answer.get("name", "Failed"), escape(answer["error"])))
                return
            self._guard.river.ledger.withdraw(finding.id)
            self._guard.keeping.save(durable=True)
            self._guard.telling.state("undo", f"{owner}: acceptance taken back", finding=finding.id)
            undone = f"{finding.id}: the acceptance was taken back (r{answer['revision']})"
            request.reply({"undone": [undone], "finding": finding_document(finding)})

        question = {
            "forget": [[finding.kind, to_plain(finding.subject)]],
            "note": f"{finding.id} taken back by {owner}"[:500],
        }
        if not self._guard.judging.rebase(question, done, look_at=finding.id):
            raise ControlError("Busy", "a baseline is being signed; try again")

    def reload(self, request: Request) -> None:
        def done(answer: dict[str, Any]) -> None:
            if "problems" in answer:
                request.fail(ControlError("PolicyError", "\n".join(escape(line) for line in answer["problems"])))
            elif "error" in answer:
                request.fail(ControlError("Failed", escape(answer["error"])))
            else:
                request.reply({name: answer[name] for name in ("revision", "rules", "waivers")})

        if not self._guard.judging.rebase({"policy": True, "note": f"policy reloaded by {self._owner(request)}"}, done):
            raise ControlError("Busy", "a baseline is being signed; try again")

    # -- baseline

    def baseline_show(self, request: Request) -> None:
        force = self._guard.judging.in_force
        if force is None:
            request.reply({"baseline": None})
            return
        baseline = force.baseline
        request.reply(
            {
                "baseline": {
                    "revision": baseline.revision,
                    "trust": force.trust,
                    "signer": force.signer,
                    "name": escape(baseline.target),
                    "mode": self._guard.judging.mode.value,
                    "not_before": baseline.not_before,
                    "expires": baseline.expires,
                    "rules": len(baseline.policy.rules),
                    "waivers": len(baseline.policy.waivers),
                    "files": baseline.files.entries if baseline.files else 0,
                    "references": force.counts,
                    "digest": force.digest.hex(),
                }
            }
        )

    def baseline_diff(self, request: Request) -> None:
        self._ask(request, "diff", {"against": request.parameters["against"]}, stream="changes")

    def baseline_history(self, request: Request) -> None:
        self._ask(request, "history", {}, stream="")

    def _ask(self, request: Request, verb: str, question: dict[str, Any], *, stream: str) -> None:
        """A question that a helper answers: it reads old baselines, whose signatures must be checked."""
        answer: dict[str, Any] = {}

        def done(error: str) -> None:
            if error:
                request.fail(ControlError(answer.get("name", "Failed"), escape(error)))
            elif stream:
                request.stream(iter([*({"change": row} for row in answer.pop(stream, [])), answer]))
            else:
                request.reply(answer)

        if not self._guard.helpers.start(verb, question, answer.update, done, timeout_s=120.0):
            raise ControlError("Busy", "that is being looked up already; try again")

    def baseline_learn(self, request: Request) -> None:
        started = time.monotonic()

        def done(answer: dict[str, Any]) -> None:
            if "problems" in answer:
                request.fail(ControlError("PolicyError", "\n".join(escape(line) for line in answer["problems"])))
            elif "error" in answer:
                request.fail(ControlError(answer.get("name", "Failed"), escape(answer["error"])))
            else:
                seconds = int(time.monotonic() - started)
                request.reply(
                    {
                        "revision": answer["revision"],
                        "files": answer["files"],
                        "seconds": seconds,
                        "trust": answer["trust"],
                    }
                )

        note = f"{self._owner(request)}: {request.parameters['reason']}"
        if not self._guard.judging.learn(note, _passing(request), done):
            raise ControlError("Busy", "learning is going on already")

    def baseline_install(self, request: Request) -> None:
        asked = request.parameters

        def done(answer: dict[str, Any]) -> None:
            if "error" in answer:
                request.fail(ControlError(answer.get("name", "Failed"), escape(answer["error"])))
            else:
                request.reply({name: answer[name] for name in ("revision", "previous", "signer")})

        question = {"path": to_plain(asked["path"]), "manifest": to_plain(asked["manifest"])}
        if not self._guard.judging.install(question, asked["path"], done):
            raise ControlError("Busy", "a baseline is being installed; try again")


def _passing(request: Request) -> Callable[[dict[str, Any]], None]:
    """Pass progress on to whoever asked."""

    def progress(words: dict[str, Any]) -> None:
        request.reply({"progress": words}, continues=True)

    return progress


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
