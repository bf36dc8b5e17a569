"""Putting right, seen from the daemon: a change becomes a request for edgeguard-act, its reply a record and a look.

The daemon only asks. What is done, and whether, is decided by `edgeguard-act` from the signed baseline and from the
ledger on disk; so the ledger is saved before a request leaves, once for all requests of a loop's turn.
"""

from __future__ import annotations

from collections.abc import Callable

from edgeguard.daemon.keeping import Keeping
from edgeguard.daemon.loop import Loop
from edgeguard.daemon.telling import Telling
from edgeguard.model import Change, Mode, Severity
from edgeguard.remediations import ActRequest, Reply
from edgeguard.remediations.client import Client, OnReply
from edgeguard.remediations.plan import plan


class Remedying:
    """Asks edgeguard-act, and tells what it said. `look_at` looks again at what a finding is about."""

    def __init__(
        self,
        loop: Loop,
        client: Client,
        keeping: Keeping,
        telling: Telling,
        mode: Callable[[], Mode],
        look_at: Callable[[str], None],
        changed: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._client = client
        self._keeping = keeping
        self._telling = telling
        self._mode = mode
        self._look_at = look_at
        self._changed = changed
        self._nonce = 0
        self._planned: list[ActRequest] = []  # in this turn of the loop

    def remedy(self, change: Change) -> None:
        """Ask for what the rule wants done, if it is to be done."""
        request = plan(change, self._mode(), self._next_nonce())
        if request is not None:
            self._plan(request)

    def recover(self) -> None:
        """What a power cut left half done is finished or taken back before anything new is begun."""
        self._client.send(ActRequest("recover", "", self._next_nonce()), lambda _request, _reply: None)

    def undo(self, finding: str, on_reply: OnReply) -> None:
        self._keeping.save()
        self._client.send(ActRequest("undo", finding, self._next_nonce()), on_reply)

    def undone(self, finding: str, reply: Reply, owner: str) -> None:
        text = f"undo by {owner}: {reply.state}" + (f", {reply.detail}" if reply.detail else "")
        self._telling.state("undo", text, finding=finding)
        if reply.ok:
            self._keeping.ledger.annotate(finding, f"undone: {reply.detail}")
            self._keeping.plan(urgent=True)
        self._look_at(finding)

    def _next_nonce(self) -> int:
        self._nonce += 1
        return self._nonce

    def _plan(self, request: ActRequest) -> None:
        """A burst of findings makes one write of the ledger, not one for each."""
        if not self._planned:
            self._loop.later(0, self._send)
        self._planned.append(request)

    def _send(self) -> None:
        self._keeping.save()  # edgeguard-act reads the findings there
        requests, self._planned = self._planned, []
        for request in requests:
            self._client.send(request, self._acted)

    def _acted(self, request: ActRequest, reply: Reply) -> None:
        text = f"{request.verb}: {reply.state}" + (f", {reply.detail}" if reply.detail else "")
        self._keeping.ledger.annotate(request.finding, text)
        severity = Severity.INFORMATIONAL if reply.ok else Severity.MEDIUM
        self._telling.state("remediation", text, finding=request.finding, severity=severity)
        self._keeping.plan(urgent=True)
        if reply.retry_s:
            self._loop.later(reply.retry_s, lambda: self._try_again(request))
        self._look_at(request.finding)
        self._changed()

    def _try_again(self, request: ActRequest) -> None:
        if any(finding.id == request.finding for finding in self._keeping.ledger.open()):
            self._plan(request._replace(nonce=self._next_nonce()))
