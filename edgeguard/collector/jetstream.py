"""The queue between the front, which speaks HTTPS, and workers: one stream of NATS JetStream, and answers beside it.

A POST's body is published to eg.up.DEVICE and lies in the stream until a worker has committed what is in it. The worker
answers on the subject that the front named in a header (eg.re.FRONT.NUMBER); that is no part of the stream, for a
receipt that nobody waits for any more is made anew when the device sends again. What the broker acknowledges is that it
has a message, perhaps only in memory: it is never a receipt.

The stream is bounded in bytes and age. What does not fit is refused, what is too old is dropped, and what the broker
loses is lost: in each case no receipt comes, and the device sends again.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
import ssl
from collections.abc import Callable
from typing import Any, NamedTuple

from edgeguard.collector.config import Queue
from edgeguard.errors import EdgeGuardError

STREAM, CONSUMER = "EDGEGUARD", "workers"
UP, ANSWER = "eg.up", "eg.re"
REPLY, STATUS = "EG-Reply", "EG-Status"
CONNECT_S = 5.0
API_S = 5.0
RETRY_S = 2.0  # between attempts to reach a broker
STORED_S = 5.0  # for the broker to say that it has a message
ACK_WAIT_S = (
    12.0  # a message that a worker took and says nothing about for so long is given to another: within `wait_s`
)
DELIVERIES_MAX = 20  # of one message; with a growing pause between them longer than messages live
UNANSWERED_MAX = 4096  # messages that workers have in their hands
MESSAGE_MAX = 512 * 1024  # bytes; a POST has at most 256 KiB
_REPLY = re.compile(r"eg\.re\.[a-z0-9]{1,32}\.[0-9]{1,20}")

Log = Callable[[str], None]


class Away(EdgeGuardError):
    """No broker, no stream, no room in it, or no worker that answers in time. Nothing is confirmed."""


class Answer(NamedTuple):
    """What a worker says: an HTTP status, and a receipt or words."""

    status: int
    body: bytes


def once(log: Log) -> Log:
    """Says a line, but not the same one again and again: an attempt every two seconds may fail as the one before."""
    told = ""

    def tell(line: str) -> None:
        nonlocal told
        if line != told:
            log(line)
        told = line

    return tell


def subject(device: str) -> str:
    """Of what this device (32 hex digits) sends. Raises ValueError: nobody else's word gets into a subject."""
    if len(bytes.fromhex(device)) != 16 or len(device) != 32:
        raise ValueError("not a device's id")
    return f"{UP}.{device}"


def device_of(subject_: str) -> bytes | None:
    try:
        device = bytes.fromhex(subject_.removeprefix(f"{UP}."))
    except ValueError:
        return None
    return device if len(device) == 16 else None


def reply_of(headers: dict[str, str] | None) -> str | None:
    """Where the front waits. A worker answers nowhere else, whoever wrote the message."""
    text = (headers or {}).get(REPLY, "")
    return text if _REPLY.fullmatch(text) else None


def client() -> Any:
    """The library, which Debian does not have. Raises Away."""
    try:
        import nats
        import nats.js.api
    except ImportError as error:
        raise Away(
            "[queue] needs the Python library nats-py, 2.9 or newer, which Debian does not have; docs/scale.md says how"
            " to install it beside Debian's packages"
        ) from error
    return nats


async def connect(queue: Queue, log: Log, name: str) -> Any:
    """A connection that finds the broker again by itself; waits until there is one."""
    nats = client()
    made: list[Any] = []
    tell = once(log)

    async def on_error(error: Exception) -> None:
        tell(f"queue: {error or type(error).__name__}; trying again")

    async def lost() -> None:
        if not any(connection.is_closed for connection in made):  # by us
            tell("queue: the broker is away")

    async def found() -> None:
        tell("queue: the broker is back")

    while True:
        try:
            made.append(
                await nats.connect(
                    queue.url,
                    name=name,
                    connect_timeout=CONNECT_S,
                    max_reconnect_attempts=-1,
                    reconnect_time_wait=RETRY_S,
                    ping_interval=20,
                    max_outstanding_pings=2,
                    pending_size=0,  # what cannot be sent now is not kept: nobody would wait for it any more
                    allow_reconnect=True,
                    error_cb=on_error,
                    disconnected_cb=lost,
                    reconnected_cb=found,
                    **_credentials(queue),
                )
            )
            return made[0]
        except (OSError, asyncio.TimeoutError, nats.errors.Error) as error:  # noqa: UP041 - one of two until 3.11
            tell(f"queue: no broker at {queue.url}: {error or type(error).__name__}; trying again")
            await asyncio.sleep(RETRY_S)


def _credentials(queue: Queue) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if queue.url.startswith("tls:"):
        tls = ssl.create_default_context(cafile=queue.ca or None)
        if queue.certificate:
            tls.load_cert_chain(queue.certificate, queue.key)
        found["tls"] = tls
    if queue.user:
        found |= {"user": queue.user, "password": queue.password}
    return found


async def ensure(connection: Any, queue: Queue) -> None:
    """The stream and the workers' place in it, as the configuration has them. Raises Away."""
    nats = client()
    api, errors = nats.js.api, nats.js.errors
    stream = api.StreamConfig(
        name=STREAM,
        subjects=[f"{UP}.*"],
        retention=api.RetentionPolicy.WORK_QUEUE,
        storage=api.StorageType.FILE,
        discard=api.DiscardPolicy.NEW,
        max_bytes=queue.max_mib << 20,
        max_age=queue.max_age_s,
        max_msg_size=MESSAGE_MAX,
        num_replicas=queue.replicas,
        duplicate_window=1,  # nothing here is recognised as sent before: the second front that waits needs its answer
    )
    consumer = api.ConsumerConfig(
        durable_name=CONSUMER,
        ack_policy=api.AckPolicy.EXPLICIT,
        ack_wait=ACK_WAIT_S,
        max_deliver=DELIVERIES_MAX,
        max_ack_pending=UNANSWERED_MAX,
    )
    jetstream = connection.jetstream(timeout=API_S)
    try:
        try:
            await jetstream.stream_info(STREAM)
            await jetstream.update_stream(stream)
        except errors.NotFoundError:
            await jetstream.add_stream(stream)
        await jetstream.add_consumer(STREAM, consumer)
    except (asyncio.TimeoutError, OSError, nats.errors.Error, errors.Error) as error:  # noqa: UP041 - one of two until 3.11
        raise Away(f"queue: stream {STREAM}: {error or type(error).__name__}") from error


class Front:
    """The side of the front: `start`, then `post` for each body, `stop`."""

    def __init__(self, queue: Queue, log: Log) -> None:
        client()
        self._queue = queue
        self._log = once(log)
        self._prefix = f"{ANSWER}.{secrets.token_hex(8)}"
        self._number = 0
        self._waiting: dict[str, asyncio.Future[Answer]] = {}
        self._connection: Any = None
        self._starting: asyncio.Task[None] | None = None

    def start(self) -> None:
        """A broker that is not there yet is waited for; meanwhile `post` raises Away."""
        self._starting = asyncio.get_running_loop().create_task(self._start())

    async def _start(self) -> None:
        connection = await connect(self._queue, self._log, "edgeguard-collector serve")
        await connection.subscribe(f"{self._prefix}.*", cb=self._answered)
        while True:
            try:
                await ensure(connection, self._queue)
                break
            except Away as error:
                self._log(str(error))
                await asyncio.sleep(RETRY_S)
        self._connection = connection
        self._log(f"queue: {self._queue.url}")

    async def stop(self) -> None:
        if self._starting is not None:
            self._starting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._starting
        if self._connection is not None:
            await self._connection.close()

    async def post(self, device: str, body: bytes) -> Answer:
        """Put it into the stream and wait for a worker's word. Raises Away, ValueError."""
        connection = self._connection
        if connection is None or not connection.is_connected:
            raise Away("queue: the broker is away")
        self._number += 1
        reply = f"{self._prefix}.{self._number}"
        answer = self._waiting[reply] = asyncio.get_running_loop().create_future()
        try:
            await self._publish(connection, subject(device), body, reply)
            return await asyncio.wait_for(answer, self._queue.wait_s)
        except asyncio.TimeoutError as error:  # noqa: UP041 - one of two until 3.11
            raise Away(f"queue: no worker answered within {self._queue.wait_s} s") from error
        finally:
            del self._waiting[reply]

    async def _publish(self, connection: Any, to: str, body: bytes, reply: str) -> None:
        nats = client()
        try:
            await connection.jetstream(timeout=STORED_S).publish(to, body, headers={REPLY: reply}, stream=STREAM)
        except nats.js.errors.NoStreamResponseError as error:
            await ensure(connection, self._queue)  # gone with the broker's disk; the next POST finds it
            raise Away("queue: the stream was not there") from error
        except (asyncio.TimeoutError, OSError, nats.errors.Error, nats.js.errors.Error) as error:  # noqa: UP041 - one of two until 3.11
            raise Away(f"queue: {error or type(error).__name__}") from error

    async def _answered(self, message: Any) -> None:
        waiting = self._waiting.get(message.subject)
        status = (message.headers or {}).get(STATUS, "")
        if waiting is not None and not waiting.done() and status.isdigit():
            waiting.set_result(Answer(int(status), message.data))
