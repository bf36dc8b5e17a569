"""`edgeguard-collector work`: takes POSTs from the queue, many at a time, and answers with receipts.

In this order: one transaction for all POSTs of a batch, then the receipts, then the word to the broker that it may
forget them. Whatever dies in between is done again by whoever gets the messages next, and done again changes nothing.
A worker keeps nothing that matters; any number of them share the work.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from edgeguard.codec import cose
from edgeguard.collector import jetstream, store
from edgeguard.collector.baselines import Baselines
from edgeguard.collector.config import Config, Queue
from edgeguard.collector.database import Database
from edgeguard.collector.ingest import Device, Ingest, Verdict
from edgeguard.collector.jetstream import Answer, Away
from edgeguard.errors import SegmentRefused
from edgeguard.records import wire

BATCH = 64  # POSTs in one transaction
BATCH_BYTES = 8 << 20  # bytes of them; decoded they take some twenty times that
KNOWN_MAX = 100_000  # devices in memory, 300 bytes each
POLL_S = 5.0  # one request to the broker waits so long for a message
QUIET_S = 0.05  # no more of a batch came for so long
COUNT_MAX = 1 << 31
ALONE = 3  # a message that comes for the third time may be what killed a worker: it goes without company
PAUSE_S, PAUSE_MAX_S = 1.0, 30.0  # before a message is given out again, doubled each time
REFUSED, STRANGER, BROKEN = 400, 403, 503

Log = Callable[[str], None]


class Post(NamedTuple):
    message: Any  # of the broker
    subject: str
    body: bytes
    deliveries: int


class Outcome(NamedTuple):
    """`answer` None: not now, the message shall come again."""

    answer: Answer | None
    why: str = ""


class Worker:
    """Call `run`; it returns after SIGTERM or SIGINT, when what is at work is done."""

    def __init__(self, directory: str, config: Config, queue: Queue, log: Log, now: Callable[[], int]) -> None:
        jetstream.client()
        self._directory = directory
        self._config = config
        self._queue = queue
        self._log = log
        self._tell = jetstream.once(log)
        self._now = now
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ingest")
        self._db: Database | None = None
        self._ingest: Ingest | None = None
        self._came: asyncio.Queue[Any] = asyncio.Queue()
        self._asked = 0
        self._known: dict[bytes, Device] = {}  # nobody forgets a device, nor changes its key or name

    async def run(self, ready: Callable[[], None] = lambda: None) -> None:
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        await loop.run_in_executor(self._thread, self._open)
        working = loop.create_task(self._work(ready, stop))
        stopping = loop.create_task(stop.wait())
        await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            await asyncio.wait({working}, timeout=POLL_S + 5)
        working.cancel()
        stopping.cancel()
        if not working.cancelled() and working.done():
            working.result()
        if self._db is not None:
            await loop.run_in_executor(self._thread, self._db.close)
        self._thread.shutdown()

    def _open(self) -> None:
        seed = cose.load_seed([os.path.join(self._directory, "collector.key")])
        self._db = store.open_(self._directory, self._config)
        self._ingest = Ingest(self._db, seed, self._now, Baselines(os.path.join(self._directory, "baselines")))

    # --- the broker --------------------------------------------------------------------------------------------------

    async def _work(self, ready: Callable[[], None], stop: asyncio.Event) -> None:
        connection = await jetstream.connect(self._queue, self._log, "edgeguard-collector work")
        inbox = connection.new_inbox()
        await connection.subscribe(f"{inbox}.*", cb=self._came.put)
        known = False
        while not stop.is_set():
            try:
                if not known:
                    await jetstream.ensure(connection, self._queue)
                    known = True
                    self._tell(f"working for {self._queue.url}")
                    ready()
                posts = await self._pull(connection, inbox)
            except Away as error:
                self._tell(str(error))
                known = False
                await asyncio.sleep(jetstream.RETRY_S)
                continue
            if posts:
                await self._batch(connection, posts)
        await connection.flush(2)
        await connection.close()

    async def _pull(self, connection: Any, inbox: str) -> list[Post]:
        """What waits now; if nothing does, the first that comes. Raises Away."""
        found = await self._ask(connection, inbox, {"batch": BATCH, "max_bytes": BATCH_BYTES, "no_wait": True}, 2.0)
        if not found:
            expires = int(POLL_S * 1e9)
            found = await self._ask(connection, inbox, {"batch": 1, "expires": expires}, POLL_S + 2)
        return found

    async def _ask(self, connection: Any, inbox: str, request: dict[str, Any], wait_s: float) -> list[Post]:
        nats = jetstream.client()
        self._asked += 1
        reply = f"{inbox}.{self._asked}"
        if not connection.is_connected:
            raise Away("queue: the broker is away")
        try:
            to = f"$JS.API.CONSUMER.MSG.NEXT.{jetstream.STREAM}.{jetstream.CONSUMER}"
            await connection.publish(to, json.dumps(request).encode(), reply)
        except (OSError, nats.errors.Error) as error:
            raise Away(f"queue: {error or type(error).__name__}") from error
        posts: list[Post] = []
        while len(posts) < request["batch"]:
            try:
                message = await asyncio.wait_for(self._came.get(), QUIET_S if posts else wait_s)
            except asyncio.TimeoutError:  # noqa: UP041 - one of two until 3.11
                if not posts and not connection.is_connected:
                    raise Away("queue: the broker is away") from None
                break
            status = _status(message)
            if status is None:
                count = deliveries(message.reply or "")
                if count:  # else somebody wrote to us directly
                    posts.append(Post(message, message.subject, message.data, count))
            elif status == "503":
                raise Away("queue: the stream is not there")
            elif message.subject == reply:  # no more for this request
                break
        return posts

    async def _batch(self, connection: Any, posts: Sequence[Post]) -> None:
        nats = jetstream.client()
        work = asyncio.get_running_loop().run_in_executor(self._thread, self._take_all, posts)
        try:
            while True:
                done, _ = await asyncio.wait({work}, timeout=jetstream.ACK_WAIT_S / 3)
                if done:
                    break
                for post in posts:  # a slow database: nobody else shall begin with these
                    await post.message.in_progress()
            for post, outcome in zip(posts, work.result(), strict=True):
                await self._answer(connection, post, outcome)
        except (OSError, nats.errors.Error) as error:  # the broker went meanwhile: it will give them out again
            self._log(f"queue: {error or type(error).__name__}")
            await asyncio.shield(work)

    async def _answer(self, connection: Any, post: Post, outcome: Outcome) -> None:
        if outcome.why:
            self._log(outcome.why)
        if outcome.answer is None:
            await post.message.nak(delay=min(PAUSE_MAX_S, PAUSE_S * 2 ** min(post.deliveries - 1, 10)))
            return
        reply = jetstream.reply_of(post.message.headers)
        if reply is not None:
            headers = {jetstream.STATUS: str(outcome.answer.status)}
            await connection.publish(reply, outcome.answer.body, headers=headers)
        await post.message.ack()

    # --- the database, in its thread -----------------------------------------------------------------------------

    def _take_all(self, posts: Sequence[Post]) -> list[Outcome]:
        """Together what came for the first time; whatever fails, or comes again and again, alone."""
        outcomes: dict[int, Outcome] = {}
        together: dict[int, tuple[list[bytes], Device]] = {}
        for at, post in enumerate(posts):
            found = self._opened(post)
            if isinstance(found, Outcome):
                outcomes[at] = found
            elif post.deliveries >= ALONE:
                outcomes[at] = self._alone(*found)
            else:
                together[at] = found
        try:
            outcomes.update(zip(together, self._store(list(together.values())), strict=True))
        except Exception as error:  # noqa: BLE001 - one of them may be to blame, so the others must not wait for it
            if not isinstance(error, store.FAILURES):
                self._log(f"a batch failed: {type(error).__name__}: {error}")
            for at, found in together.items():
                outcomes[at] = self._alone(*found) if self._stands() else Outcome(None)
        return [outcomes[at] for at in range(len(posts))]

    def _opened(self, post: Post) -> tuple[list[bytes], Device] | Outcome:
        """The parts of its body, and whose they are; or why not, which is its answer."""
        assert self._ingest is not None
        identity = jetstream.device_of(post.subject)
        try:
            device = self._device(identity) if identity else None
            if device is None:
                shown = post.subject.removeprefix(f"{jetstream.UP}.")[:64]
                self._ingest.unknown_device(shown)
                return Outcome(Answer(STRANGER, b"unknown device\n"), f"unknown device {shown}")
            if len(post.body) > wire.SEGMENT_MAX:
                raise SegmentRefused(f"{len(post.body)} bytes")
            return wire.split(post.body), device
        except SegmentRefused as error:
            return Outcome(Answer(REFUSED, b"not a sequence of segments\n"), f"{post.subject}: {error}")
        except store.FAILURES as error:
            return Outcome(None, f"database: {error}")

    def _device(self, identity: bytes) -> Device | None:
        assert self._ingest is not None
        device = self._known.get(identity) or self._ingest.device(identity)
        if device is not None:
            if len(self._known) >= KNOWN_MAX:
                self._known.clear()
            self._known[identity] = device
        return device

    def _alone(self, parts: list[bytes], device: Device) -> Outcome:
        try:
            return self._store([(parts, device)])[0]
        except store.FAILURES as error:
            return Outcome(None, f"database: {error}")
        except Exception as error:  # noqa: BLE001 - our bug: said, and the device told to come again; it blocks nobody
            why = f"{device.name}: {type(error).__name__}: {error}"
            return Outcome(Answer(BROKEN, b"cannot store this\n"), why)

    def _stands(self) -> bool:
        """Does the database answer at all?"""
        assert self._db is not None
        try:
            self._db.execute("SELECT 1").fetchone()
        except store.FAILURES as error:
            self._log(f"database: {error}")
            return False
        return True

    def _store(self, posts: list[tuple[list[bytes], Device]]) -> list[Outcome]:
        assert self._ingest is not None
        if not posts:
            return []
        answers = self._ingest.take_all(posts)
        return [
            Outcome(Answer(200, receipt), told(device.name, verdicts))
            for (_, device), (verdicts, receipt) in zip(posts, answers, strict=True)
        ]


def told(name: str, verdicts: Sequence[Verdict]) -> str:
    """What was not taken, for the log; "" if nothing."""
    return "; ".join(
        f"{name}: segment {verdict.stream}-{verdict.sequence}: {verdict.name} {verdict.detail}"
        for verdict in verdicts
        if not verdict.taken
    )


def _status(message: Any) -> str | None:
    """A message of the broker itself has a status and no body; None: it is one of the stream."""
    status: str | None = (message.headers or {}).get("Status")
    return status if status and not message.data else None


def deliveries(reply: str) -> int:
    """How often a message was given out, this time included, as the subject of its acknowledgement says:
    $JS.ACK.STREAM.CONSUMER.COUNT..., of 11 words and more with domain and account before the stream. 0: it is none."""
    words = reply.split(".")
    if words[:2] != ["$JS", "ACK"] or len(words) < 9:
        return 0
    count = words[4] if len(words) < 11 else words[6]
    return min(int(count), COUNT_MAX) if count.isascii() and count.isdigit() and len(count) < 20 else 0
