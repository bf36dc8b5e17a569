"""The baseline's comings and goings, seen from the daemon: load, learn, recompile, accept, install.

Signatures are checked and made in a helper (cryptography stays out of the resident process). The helper hands back
the very bytes that it verified; the daemon decodes them and swaps the baseline as a whole, or keeps the old one and
says why.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NamedTuple

from edgeguard.baseline.document import Baseline, for_judging
from edgeguard.daemon.helpers import Helpers
from edgeguard.errors import DecodeError
from edgeguard.upgrades.overlay import Account, Notable, accounts

LOAD_S = 120.0  # seconds; an armhf board imports cryptography in ten
LEARN_S = 4 * 3600.0  # a slow card with a million files
SIGN_S = 600.0

OnReply = Callable[[dict[str, Any]], None]


class InForce(NamedTuple):
    """A baseline that was verified and is to come into force."""

    baseline: Baseline
    trust: str  # "local" or "fleet"
    signer: str  # hex kid, or "this device"
    digest: bytes  # SHA-256 of the signed bytes
    counts: dict[str, int]  # reference values by kind, also of kinds that are not kept in memory
    upgraded: Upgraded | None = None
    image: Running | None = None


class Running(NamedTuple):
    """Where baselines for images are known: which image runs."""

    name: str  # "" where none that the baseline is for
    problem: str  # why it is not the image that the device was updated to, "" if it is
    switched: bool  # another one ran before, and nothing was told of that yet


class Upgraded(NamedTuple):
    """What packages brought since the baseline was signed, by the device's own signature."""

    base: bytes  # SHA-256 of the baseline's file manifest
    sha256: bytes  # of the file manifest that lies over the baseline's
    size: int
    notable: tuple[Notable, ...]
    superseded: dict[str, bytes]  # accepted files that a package has changed since, with what was accepted
    accounts: dict[str, Account] = {}  # noqa: RUF012 - never changed; that came or went with packages


def upgraded(plain: Any) -> Upgraded | None:
    """As a helper says it."""
    if plain is None:
        return None
    base, digest, size, notable, superseded, people = plain
    accepted = {os.fsdecode(path): value for path, value in superseded}
    return Upgraded(base, digest, size, tuple(Notable(*row) for row in notable), accepted, accounts(people))


class Refusal(NamedTuple):
    """A baseline that must not come into force."""

    name: str  # of the file
    code: str  # EG-BASE-00x
    text: str


class Baselines:
    """Asks the helper and tells the daemon: `on_baseline` with what is in force, `on_refusals` with what is not."""

    def __init__(
        self,
        helpers: Helpers,
        on_baseline: Callable[[InForce], None],
        on_refusals: Callable[[list[Refusal]], None],
        on_none: Callable[[bool], None],  # may this device learn by itself?
        on_failure: Callable[[str, str], None],
        on_handed: Callable[[Refusal], None] = lambda _refusal: None,  # by an image update, and refused
    ) -> None:
        self._helpers = helpers
        self._on_baseline = on_baseline
        self._on_refusals = on_refusals
        self._on_none = on_none
        self._on_failure = on_failure
        self._on_handed = on_handed

    def load(self, after: Callable[[], None] = lambda: None) -> bool:
        """Verify what the store holds; the newest that is valid comes into force. `after`: that is over."""
        answer: dict[str, Any] = {}

        def done(error: str) -> None:
            self._loaded(answer, error)
            after()

        return self._helpers.start("load", {}, answer.update, done, timeout_s=LOAD_S)

    def _loaded(self, answer: dict[str, Any], error: str) -> None:
        if error:
            self._on_failure("load", error)
            return
        self._on_refusals([Refusal(*map(str, row)) for row in answer.get("refusals", [])])
        for row in answer.get("handed", []):
            self._on_handed(Refusal(*map(str, row)))
        payload = answer.get("baseline")
        if payload is None:
            self._on_none(answer.get("learn") is True)
            return
        try:
            baseline = Baseline.from_cbor(payload)
        except DecodeError as problem:  # the helper has just decoded the same bytes: a bug, said aloud
            self._on_failure("load", str(problem))
            return
        counts = {kind: len(table) for kind, table in baseline.references.items()}
        trust, signer, digest = answer["trust"], answer["signer"], answer["digest"]
        over, image = upgraded(answer.get("overlay")), answer.get("image")
        runs = None if image is None else Running(*image)
        self._on_baseline(InForce(for_judging(baseline), trust, signer, digest, counts, over, runs))

    def make(
        self,
        verb: str,
        request: dict[str, Any],
        on_progress: OnReply,
        on_done: OnReply,
        after: Callable[[], None] = lambda: None,
    ) -> bool:
        """Run `learn`, `rebase` or `install`; then load what it wrote.

        `on_done` gets {"error": text} or the helper's last words ({"revision": n} or {"problems": [...]}).
        `after` follows where a revision was written: it is in force, or that was tried.
        """
        last: dict[str, Any] = {}

        def message(words: dict[str, Any]) -> None:
            if "progress" in words:
                on_progress(words["progress"])
            else:
                last.update(words)

        def done(error: str) -> None:
            if error:
                if last.get("code", "EG-HLTH-007") == "EG-HLTH-007":
                    self._on_failure(verb, error)  # not what was asked for was wrong, but the helper
                on_done({**last, "error": error})
                return
            loading = "revision" in last and self.load(after)
            on_done(last)
            if "revision" in last and not loading:
                after()

        return self._helpers.start(
            verb, request, message, done, timeout_s=LEARN_S if verb == "learn" else SIGN_S, low=False
        )
