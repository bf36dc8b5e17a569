"""The loop from news to people: a thread of the collector beside the one that stores. Decides nothing itself.

It looks when ingest rings, and every POLL_S. Each target is told by a thread of its own, one message at a time in
their order, so that a mail server that hangs never delays a webhook. All rows are written by the loop's own thread.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from edgeguard.collector import mail, store, webhook
from edgeguard.collector.alertbook import Book, Message
from edgeguard.collector.config import Config, Target, Webhook
from edgeguard.collector.database import Database
from edgeguard.collector.deadline import Undelivered
from edgeguard.errors import EdgeGuardError

POLL_S = 0.5
SILENCE_MS = 10_000  # between looks for devices that do not talk
TIDY_MS = 3_600_000
STOP_S = 3.0  # for a message that is on its way
LEAD = "alerts"

_CLOSED: tuple[type[Exception], ...] = (*store.FAILURES, OSError, EdgeGuardError)
Log = Callable[[str], None]


class Outcome(NamedTuple):
    message: Message
    why: str  # "" or a remark: delivered
    delivered: bool
    wait_ms: int | None = None


def deliver(target: Target, message: Message, now: int) -> str:
    """Tell one target. Returns a remark. Raises Undelivered."""
    if isinstance(target, Webhook):
        return webhook.send(target, message.id, message.body, now)
    return mail.send(target, message.id, message.body, now)


class Alerter:
    """Call `start`, `ring` when something was stored, `stop`."""

    def __init__(
        self,
        database: Callable[[], Database],
        config: Config,
        log: Log,
        identity: Callable[[], str],
        now: Callable[[], int],
    ) -> None:
        self._open = database
        self._config = config
        self._log = log
        self._identity = identity
        self._now = now
        self._bell = threading.Event()
        self._stopping = False
        self._outcomes: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        self._busy: set[str] = set()
        self._senders: list[threading.Thread] = []
        self._silence_at = self._tidy_at = 0
        self._thread = threading.Thread(target=self._run, name="alerter", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def ring(self) -> None:
        self._bell.set()

    def stop(self) -> None:
        """What is on its way gets a moment to arrive; the rest waits in the database."""
        self._stopping = True
        self._bell.set()
        self._thread.join(STOP_S + 2)

    def _run(self) -> None:
        while not self._stopping:
            try:
                db = self._open()
            except _CLOSED as error:
                self._log(f"alerts: cannot open the database: {error}")
                self._pause(10)
                continue
            try:
                self._lead(db)
            except store.FAILURES as error:
                self._log(f"alerts: database: {error}; trying again")
                self._pause(5)
            except Exception as error:  # noqa: BLE001 - no descriptor, no thread, a bug: said, and no end of all alerts
                self._log(f"alerts: {type(error).__name__}: {error}; trying again")
                self._pause(5)
            finally:
                db.close()

    def _lead(self, db: Database) -> None:
        """As long as this process is the one that tells, and the database answers."""
        if not db.lead(LEAD):
            self._pause(5)
            return
        book = Book(db, self._config, self._identity)
        while not self._stopping:
            self.step(book)
            self._pause(POLL_S)
        deadline = time.monotonic() + STOP_S
        for sender in self._senders:
            sender.join(max(0.0, deadline - time.monotonic()))
        self._settle(book)

    def step(self, book: Book) -> None:
        """Everything once."""
        now = self._now()
        self._settle(book)
        while book.note(now):
            pass
        if abs(now - self._silence_at) >= SILENCE_MS:
            self._silence_at = now
            book.silence(now)
        if abs(now - self._tidy_at) >= TIDY_MS:
            self._tidy_at = now
            for name in book.tidy(now):
                self._log(f"alerts: {name}: no such target any more, what waited for it is given up")
        book.pack(now)
        self._senders = [sender for sender in self._senders if sender.is_alive()]
        for target in self._config.alerts.targets:
            message = None if target.name in self._busy else book.next_message(target.name, now)
            if message:
                sender = threading.Thread(target=self._send, args=(target, message), daemon=True)
                sender.start()
                self._busy.add(target.name)  # before its outcome is looked at, which is this thread's
                self._senders.append(sender)

    def _send(self, target: Target, message: Message) -> None:
        try:
            remark = deliver(target, message, self._now())
            outcome = Outcome(message, remark, delivered=True)
        except Undelivered as error:
            outcome = Outcome(message, str(error), delivered=False, wait_ms=error.wait_ms)
        except Exception as error:  # noqa: BLE001 - a bug in telling must not silence this target for good
            outcome = Outcome(message, f"bug: {type(error).__name__}: {error}", delivered=False)
        self._outcomes.put(outcome)
        self._bell.set()

    def _settle(self, book: Book) -> None:
        """Write down what became of messages."""
        while True:
            try:
                outcome = self._outcomes.get_nowait()
            except queue.Empty:
                return
            message = outcome.message
            try:
                if outcome.delivered:
                    book.sent(message, self._now(), outcome.why)
                elif book.failed(message, self._now(), outcome.why, outcome.wait_ms):
                    self._log(f"alerts: {message.target}: message {message.id} given up: {outcome.why}")
            except store.FAILURES:
                self._outcomes.put(outcome)  # it was told: once the database answers again, say so
                raise
            self._busy.discard(message.target)
            if outcome.why:
                self._log(f"alerts: {message.target}: {outcome.why}")

    def _pause(self, seconds: float) -> None:
        self._bell.wait(seconds)
        self._bell.clear()
