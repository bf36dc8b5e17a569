"""From a change in the ledger to a request for edgeguard-act, or none. Pure.

This is the daemon's half of the gate: it spares requests that would be refused. The other half, which does not
trust the daemon, is in `edgeguard.daemon.act`.
"""

from __future__ import annotations

from edgeguard.model import Change, Mode, Origin, Outcome, State, Transition
from edgeguard.remediations import TABLE, ActRequest

_TRANSITIONS = (Transition.OPENED, Transition.CHANGED)

KINDS = {
    "restore-file": ("file",),
    "quarantine-file": ("file",),
    "stop-process": ("process",),
    "block-port": ("listener",),
    "deauthorise-usb": ("usb",),
    "set-sysctl": ("sysctl",),
}


def plan(change: Change, mode: Mode, nonce: int = 0) -> ActRequest | None:
    """What to ask for: both the device and the rule must say enforce, and the finding must be open and certain."""
    finding, rule = change.finding, change.rule
    if rule is None or mode is not Mode.ENFORCE or rule.mode is not Mode.ENFORCE:
        return None
    if rule.remediation not in TABLE or finding.kind not in KINDS[rule.remediation]:
        return None
    if change.transition not in _TRANSITIONS or finding.state is not State.OPEN:
        return None
    if finding.outcome is not Outcome.FAIL or finding.origin is Origin.LEARN:
        return None
    return ActRequest(rule.remediation, finding.id, nonce)
