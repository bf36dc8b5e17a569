"""Verbs that change something: scan, accept, undo, reload."""

from __future__ import annotations

import time
from typing import Any

from edgeguard.cli.jsonform import finding_document, mark
from edgeguard.cli.text import escape
from edgeguard.codec.values import columns_to_plain, to_plain
from edgeguard.control_server.client import Request
from edgeguard.daemon.guard import Guard
from edgeguard.daemon.sensing import now_ms
from edgeguard.daemon.sweeps import Request as SweepRequest
from edgeguard.daemon.verbs.shared import one, passing, person
from edgeguard.errors import ControlError
from edgeguard.model import Change, Finding, Origin, State
from edgeguard.remediations import ActRequest, Reply


class Acting:
    """Each is recorded under the name of the person who asked."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard

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
                cached=request.parameters["cached"],
                on_progress=passing(request),
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
        owner = person(self._guard, request)
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
        finding = one(self._guard, text)
        if finding.state is State.RESOLVED:
            raise ControlError("NoSuchFinding", f"{finding.id} is resolved already")
        return finding

    def undo(self, request: Request) -> None:
        finding = one(self._guard, request.parameters["id"])
        ledger = self._guard.river.ledger
        if finding.state is State.RESOLVED and ledger.is_accepted(finding.id):
            self._take_back(request, finding)
            return
        if finding.state is State.SUPPRESSED:
            change = self._retract(finding.id)
            if change is not None:
                self._keep_retracted()
                who = person(self._guard, request)
                self._guard.telling.state("undo", f"{who}: acceptance taken back", finding=finding.id)
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
            self._guard.remedying.undone(finding.id, reply, person(self._guard, request))
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
        owner = person(self._guard, request)

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
                self._guard.showing.publish()  # whoever asks for the status next sees this revision
                request.reply({name: answer[name] for name in ("revision", "rules", "waivers")})

        note = f"policy reloaded by {person(self._guard, request)}"
        if not self._guard.judging.rebase({"policy": True, "note": note}, done):
            raise ControlError("Busy", "a baseline is being signed; try again")
