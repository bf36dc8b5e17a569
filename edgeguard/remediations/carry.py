"""Carrying out one order, taking it back, and finishing what a crash interrupted.

The order of steps is the whole point: prepare (looks only), record with the prior value on disk, apply, verify,
record again. What does not hold is put back at once.
"""

from __future__ import annotations

from collections.abc import Callable

from edgeguard.errors import RemediationFailed, RemediationRefused
from edgeguard.remediations import Order, Remediation, Reply, World, remediation
from edgeguard.remediations.undo import (
    DONE,
    FAILED,
    INTENDED,
    REVERTED,
    REVERTING,
    Record,
    UndoStore,
    refusal,
)

Find = Callable[[str], Remediation]


def carry_out(order: Order, world: World, store: UndoStore, now: int, find: Find = remediation) -> Reply:
    """One act from beginning to end. Never raises for what the world refuses: that is a reply."""
    verb = find(order.verb)
    try:
        if order.kind not in verb.kinds:
            raise RemediationRefused(f"{order.verb} does not apply to a {order.kind}")
        reason = refusal(store.all(), order.verb, order.subject, now)
        if reason:
            raise RemediationRefused(reason)
        plan = verb.prepare(order, world)
        record = Record(
            f"{order.finding}-{now}", order.finding, order.verb, order.subject, now, INTENDED, plan, changed=now
        )
        store.write(record)
    except (RemediationRefused, RemediationFailed) as error:
        return Reply(ok=False, state="refused", detail=str(error))
    except OSError as error:
        return Reply(ok=False, state="failed", detail=f"nothing was changed: {_words(error)}")
    reply = _apply(record, verb, world, store, now)
    store.trim()
    return reply


def _apply(record: Record, verb: Remediation, world: World, store: UndoStore, now: int) -> Reply:
    """Apply and verify; on any failure put back what was there."""
    try:
        detail = verb.apply(record.plan, world)
        if not verb.verify(record.plan, world):
            raise RemediationFailed("done, but it did not hold")
    except (OSError, RemediationFailed, RemediationRefused) as error:
        detail = f"{_words(error)}; {_put_back(record, verb, world)}"
        store.write(record._replace(state=FAILED, detail=detail, changed=now))
        return Reply(ok=False, state="failed", detail=detail)
    store.write(record._replace(state=DONE, detail=detail, changed=now))
    return Reply(ok=True, state="done", detail=detail)


def _put_back(record: Record, verb: Remediation, world: World) -> str:
    try:
        return verb.revert(record.plan, world)
    except (OSError, RemediationFailed, RemediationRefused) as error:
        return f"it could not be put back: {_words(error)}"


def take_back(finding: str, world: World, store: UndoStore, now: int, find: Find = remediation) -> Reply:
    """Undo the last act for a finding."""
    record = store.newest(finding)
    if record is None:
        return Reply(ok=False, state="refused", detail=f"nothing was done for {finding} that could be undone")
    return _take_back(record, world, store, now, find)


def _take_back(record: Record, world: World, store: UndoStore, now: int, find: Find) -> Reply:
    record = record._replace(state=REVERTING, changed=now)
    try:
        store.write(record)
        detail = find(record.verb).revert(record.plan, world)
    except RemediationRefused as error:
        store.write(record._replace(state=DONE, changed=now))
        return Reply(ok=False, state="refused", detail=str(error))
    except (OSError, RemediationFailed) as error:
        return Reply(ok=False, state="failed", detail=_words(error))
    store.write(record._replace(state=REVERTED, detail=detail, changed=now))
    return Reply(ok=True, state="done", detail=detail)


def recover(world: World, store: UndoStore, now: int, find: Find = remediation) -> list[tuple[Record, Reply]]:
    """Finish what a crash left, before anything new is done: forward where it holds already, else back."""
    done = []
    for record in store.all():
        if record.state == INTENDED:
            done.append((record, _recover_one(record, find(record.verb), world, store, now)))
        elif record.state == REVERTING:
            done.append((record, _take_back(record, world, store, now, find)))
    return done


def _recover_one(record: Record, verb: Remediation, world: World, store: UndoStore, now: int) -> Reply:
    try:
        holds = verb.verify(record.plan, world)
    except (OSError, RemediationFailed, RemediationRefused):
        holds = False
    if holds:
        detail = "was interrupted, and is complete"
        store.write(record._replace(state=DONE, detail=detail, changed=now))
        return Reply(ok=True, state="done", detail=detail)
    detail = f"was interrupted; {_put_back(record, verb, world)}"
    store.write(record._replace(state=FAILED, detail=detail, changed=now))
    return Reply(ok=False, state="failed", detail=detail)


def _words(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return str(error)
