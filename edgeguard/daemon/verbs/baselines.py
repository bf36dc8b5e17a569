"""Verbs about what this device is judged by: show, diff, history, learn, install."""

from __future__ import annotations

import time
from typing import Any

from edgeguard.cli.text import escape
from edgeguard.codec.values import to_plain
from edgeguard.control_server.client import Request
from edgeguard.daemon.guard import Guard
from edgeguard.daemon.verbs.shared import passing, person
from edgeguard.errors import ControlError

INSTALLED = ("revision", "previous", "signer", "image", "waits", "again")


def escaped(value: Any) -> Any:
    return escape(value) if isinstance(value, str) else value


class BaselineVerbs:
    """Whatever reads or makes a signature goes on in a helper, and the answer follows."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard

    def show(self, request: Request) -> None:
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
                    "contents": self._guard.judging.algorithm.value,
                    "references": force.counts,
                    "digest": force.digest.hex(),
                    "image": escape(force.image.name) or None if force.image is not None else None,
                }
            }
        )

    def diff(self, request: Request) -> None:
        self._ask(request, "diff", {"against": request.parameters["against"]}, stream="changes")

    def history(self, request: Request) -> None:
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

    def learn(self, request: Request) -> None:
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

        note = f"{person(self._guard, request)}: {request.parameters['reason']}"
        if not self._guard.judging.learn(note, passing(request), done):
            raise ControlError("Busy", "learning is going on already")

    def install(self, request: Request) -> None:
        asked = request.parameters

        def done(answer: dict[str, Any]) -> None:
            if "error" in answer:
                request.fail(ControlError(answer.get("name", "Failed"), escape(answer["error"])))
            else:
                request.reply({name: escaped(answer[name]) for name in INSTALLED})

        question = {"path": to_plain(asked["path"]), "manifest": to_plain(asked["manifest"])}
        if not self._guard.judging.install(question, asked["path"], done):
            raise ControlError("Busy", "a baseline is being installed; try again")
