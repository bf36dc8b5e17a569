"""Remediations put right what a finding says is wrong: isolate, evict, restore, harden.

Every verb is `prepare`, `apply`, `verify`, `revert` over a plan: plain values that say what will be changed and what
was there before. The plan is on disk before anything is touched (`undo`), so that a crash at any point can be
finished or taken back. Who may order what is decided before (`edgeguard.daemon.act`): nothing here trusts a request.
A new verb is one file here and one line in TABLE.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, NamedTuple, Protocol

from edgeguard.model import Columns

Plan = dict[str, Any]
"""What a verb will do and what was there: JSON values only (names as `str` by os.fsdecode, bytes as hex)."""

CAPABILITY = "security.capability"


class ActRequest(NamedTuple):
    """All that may be said to edgeguard-act: which verb, for which finding. Everything else it looks up itself."""

    verb: str
    finding: str
    nonce: int = 0


class Reply(NamedTuple):
    """What edgeguard-act answers. `retry_s`: above 0 where the same request may succeed after that time."""

    ok: bool
    state: str  # "done", "refused", "failed"
    detail: str
    retry_s: int = 0


def _unknown(_path: bytes) -> Columns | None:
    return None


class World(NamedTuple):
    """Where things are, so that a test has a world of its own."""

    root: str = "/"
    proc: str = "/proc"
    sys: str = "/sys"
    vault: str = "/var/lib/edgeguard/vault"
    quarantine: str = "/var/lib/edgeguard-act/quarantine"
    undo: str = "/var/lib/edgeguard-act/undo"
    nft: str = "/usr/sbin/nft"
    trusted_uids: frozenset[int] = frozenset((0,))
    lookup: Callable[[bytes], Columns | None] = _unknown  # a path's reference values in the verified manifest


class Order(NamedTuple):
    """One act, with every value taken from the open finding and from the verified baseline."""

    verb: str
    finding: str
    code: str
    kind: str
    subject: str
    observed: Columns  # all columns of the finding's observation
    reference: Columns | None  # the subject's reference value, None where the baseline does not know it
    ports: frozenset[tuple[str, int]] = frozenset()  # (protocol, port) of every listener in the baseline
    setid_only: bool = False  # of this file's place the policy watches only programs that run with other rights


class Remediation(Protocol):
    """The contract. `apply` and `revert` may be called again after a crash and then end in the same state."""

    verb: str
    kinds: tuple[str, ...]

    def prepare(self, order: Order, world: World) -> Plan:
        """Look, check that the subject is still what the finding says, preflight. Raises RemediationRefused."""

    def apply(self, plan: Plan, world: World) -> str:
        """Do it; returns one line for people. Raises RemediationFailed or OSError."""

    def verify(self, plan: Plan, world: World) -> bool:
        """Is it as the plan wants it?"""

    def revert(self, plan: Plan, world: World) -> str:
        """Put back what was there; returns one line for people."""


TABLE: Mapping[str, str] = {
    "restore-file": "edgeguard.remediations.files:RestoreFile",
    "quarantine-file": "edgeguard.remediations.files:QuarantineFile",
    "stop-process": "edgeguard.remediations.process:StopProcess",
    "block-port": "edgeguard.remediations.network:BlockPort",
    "deauthorise-usb": "edgeguard.remediations.usb:DeauthoriseUsb",
    "set-sysctl": "edgeguard.remediations.sysctl:SetSysctl",
}


def remediation(verb: str) -> Remediation:
    """The object that knows one verb, imported now: the daemon, which only plans, never loads it."""
    module, _, attribute = TABLE[verb].partition(":")
    found: Remediation = getattr(import_module(module), attribute)()
    return found
