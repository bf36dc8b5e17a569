"""One MQTT session over a connection that is open already; the only file that knows paho, 1.6 (Debian 12) and 2 (13).

paho gets a socket of ours and is driven by hand: no thread, no reconnecting, no name look-up, no TLS of its own, no
socket pair that listens for a moment. What comes is measured before paho keeps it (`mqttwire.Frames`), for paho takes
packets of 256 MB. Every wait has an end. What paho does with bytes that are no MQTT is one error here, whatever it is.
"""

from __future__ import annotations

import contextlib
import select
import time
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeVar

from edgeguard.errors import DecodeError
from edgeguard.records.link import UplinkError, named, would_block
from edgeguard.records.mqttwire import Frames

V5, V311 = 5, 4  # the protocol level of CONNECT
PACKET_ALLOWED = 1024  # bytes of a packet beside its payload: topic, properties, header
_REFUSED = 0x80  # a reason code from here on is a failure, in 3.1.1 too for SUBACK
_UNSUPPORTED = {1, 132}  # CONNACK: unacceptable protocol version, in 3.1.1 and 5
_WAITING_MAX = 128  # messages that came and nobody took yet; paho reads as many at once as it has unacknowledged
_UNREAD_MAX = 1024  # packets of ours that the broker has not read yet; paho answers pings and messages without asking
_RECEIVE_MAX = 16  # messages that a broker of MQTT 5 may send before it has our PUBACK
T = TypeVar("T")
MISSING = "mqtts needs paho-mqtt, which is not installed: apt install python3-paho-mqtt"


class Unsupported(UplinkError):
    """The broker does not seem to speak this version of MQTT."""


class Socket(Protocol):
    """As much of an SSLSocket as is used."""

    def recv(self, size: int, /) -> bytes: ...
    def send(self, data: bytes, /) -> int: ...
    def fileno(self) -> int: ...
    def pending(self) -> int: ...
    def setblocking(self, flag: bool, /) -> None: ...
    def close(self) -> None: ...


class Message(NamedTuple):
    topic: str
    payload: bytes
    retained: bool


class _Measured:
    """The connection, as paho sees it. It is closed by its owner, who counts what it cost. `trouble`: what ended it,
    for paho 2 keeps that to itself."""

    def __init__(self, line: Socket, frames: Frames) -> None:
        self._line, self._frames = line, frames
        self.trouble: OSError | None = None

    def recv(self, size: int) -> bytes:
        data = self._kept(lambda: self._line.recv(size))
        self._frames.feed(data)
        return data

    def send(self, data: bytes) -> int:
        return self._kept(lambda: self._line.send(data))

    def _kept(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except OSError as error:
            if not would_block(error):
                self.trouble = error
            raise

    def fileno(self) -> int:
        return self._line.fileno()

    def setblocking(self, flag: bool) -> None:
        self._line.setblocking(flag)

    def close(self) -> None:
        """Not ours to close."""


class Session:
    """`peer` names the broker in messages; `name` is our client id. Raises UplinkError, whatever the broker does."""

    def __init__(
        self, line: Socket, frames: Frames, version: int, name: str, peer: str, keepalive: int, unacknowledged: int = 8
    ) -> None:
        self._line, self._frames, self._peer, self._keepalive = line, frames, peer, keepalive
        self.version = version
        self.packet_max = 0  # what the broker takes, bytes of a packet; 0: it does not say
        self._unacknowledged = unacknowledged  # messages that paho may keep for a broker that says nothing to them
        self._out: list[Any] = []
        self._came: deque[Message] = deque()
        self._asked: int | None = None  # the number of our SUBSCRIBE
        self._granted: list[int] | None = None  # what the broker says to it
        self._connected: int | None = None  # the reason code of CONNACK
        self._ended: int | None = None
        self._poll = select.poll()
        self._measured = _Measured(line, frames)
        self._client = _client(self._measured, version, name)
        self._client.on_connect = self._on_connect
        self._client.on_disconnect = self._on_disconnect
        self._client.on_subscribe = self._on_subscribe
        self._client.on_message = self._on_message

    def connect(self, within: float, packet_max: int) -> None:
        """Until the broker's CONNACK. Raises Unsupported where it does not know this version."""
        more: dict[str, Any] = {}
        if self.version == V5:
            from paho.mqtt.packettypes import PacketTypes
            from paho.mqtt.properties import Properties

            properties = Properties(PacketTypes.CONNECT)
            properties.MaximumPacketSize = packet_max
            properties.SessionExpiryInterval = 0
            properties.ReceiveMaximum = _RECEIVE_MAX
            more = {"clean_start": True, "properties": properties}
        until = time.monotonic() + within
        self._guarded(lambda: self._client.connect("broker", 8883, self._keepalive, **more))
        while self._connected is None:
            if self._ended is not None:  # some that know 3.1.1 only hang up on 5
                trouble = self._measured.trouble
                if trouble is not None and not isinstance(trouble, ConnectionError):
                    raise named(trouble, self._peer)
                raise Unsupported("unreachable", f"{self._peer}: the broker hangs up before it says who it is")
            self._wait(until, "no CONNACK in time")
        if self._connected in _UNSUPPORTED:
            raise Unsupported("refused", f"{self._peer}: the broker speaks neither MQTT 5 nor 3.1.1")
        if self._connected:
            raise UplinkError("refused", f"{self._peer}: the broker does not let us in (reason {self._connected})")

    def subscribe(self, topics: list[str], within: float) -> None:
        """With QoS 1, without what was retained. Until the broker's SUBACK."""
        until = time.monotonic() + within
        asked: Any = [(name, 1) for name in topics]
        if self.version == V5:
            from paho.mqtt.subscribeoptions import SubscribeOptions

            asked = [(name, SubscribeOptions(qos=1, retainHandling=2)) for name in topics]
        self._asked = self._guarded(lambda: self._client.subscribe(asked))[1]
        while self._granted is None:
            self._living()
            self._wait(until, "no SUBACK in time")
        if len(self._granted) != len(topics) or max(self._granted) >= _REFUSED:
            raise UplinkError("refused", f"{self._peer}: the broker does not let us read {', '.join(topics)}")

    def publish(self, topic: str, payload: bytes) -> None:
        """With QoS 1. That it was sent, let alone delivered, nobody knows when this returns."""
        self._living()
        self._out = [sent for sent in self._out if not sent.is_published()]
        if len(self._out) >= self._unacknowledged:
            raise UplinkError("bad-reply", f"{self._peer}: the broker acknowledges nothing")
        self._out.append(self._guarded(lambda: self._client.publish(topic, payload, qos=1)))

    def next(self, until: float, *, answered: bool = False) -> Message | None:
        """What came next; None when `until` (monotonic) passes first. `answered`: or when the broker says that what we
        published goes nowhere."""
        while not self._came:
            self._living()
            if (answered and self._frames.refusal) or not self._pump(until):
                return None
        return self._came.popleft()

    def close(self) -> None:
        """Say so, if that is possible at once. The connection stays its owner's."""
        with contextlib.suppress(UplinkError):
            self._guarded(self._client.disconnect)

    # --- driving paho --------------------------------------------------------------------------------------------

    def _wait(self, until: float, what: str) -> None:
        if not self._pump(until):
            raise UplinkError("timeout", f"{self._peer}: {what}")

    def _pump(self, until: float) -> bool:
        """Do what can be done now, or wait for it. False: `until` has passed."""
        left = until - time.monotonic()
        if left <= 0:
            return False
        self._guarded(lambda: self._turn(min(left, self._keepalive / 2)))
        return True

    def _turn(self, seconds: float) -> None:
        events = select.POLLIN | (select.POLLOUT if self._client.want_write() else 0)
        self._poll.register(self._line.fileno(), events)
        ready = self._poll.poll(0 if self._line.pending() else 1000 * seconds)
        if self._line.pending() or any(what & ~select.POLLOUT for _, what in ready):
            self._client.loop_read()
            self._bounded()
        if self._client.want_write():
            self._client.loop_write()
        self._client.loop_misc()

    def _bounded(self) -> None:
        """What paho keeps without a bound of its own. A message of QoS 2 stays until the broker lets it go, and nobody
        subscribed to one."""
        unread, held = self._client.kept()
        if held:
            raise UplinkError("bad-reply", f"{self._peer}: the broker sends with QoS 2, which nobody asked for")
        if unread > _UNREAD_MAX:
            raise UplinkError("bad-reply", f"{self._peer}: the broker sends, and reads no answer")

    def _guarded(self, call: Any) -> Any:
        try:
            return call()
        except UplinkError:
            raise
        except DecodeError as error:
            raise UplinkError("oversized-reply", f"{self._peer}: {error}") from error
        except OSError as error:
            raise named(error, self._peer) from error
        # paho answers bytes that are no MQTT with whatever its parser ran into.
        except Exception as error:
            raise UplinkError("bad-reply", f"{self._peer}: not MQTT: {type(error).__name__}") from error

    def _living(self) -> None:
        if self._measured.trouble is not None:
            raise named(self._measured.trouble, self._peer)
        if self._ended is not None:
            why = f" (reason {self._ended})" if self._ended >= _REFUSED else ""
            raise UplinkError("unreachable", f"{self._peer}: the broker ended the connection{why}")

    # --- what paho calls; 1.6 and 2, MQTT 3.1.1 and 5 differ in what comes after the reason ------------------------

    def _on_connect(self, _client: Any, _data: Any, _flags: Any, reason: Any, properties: Any = None) -> None:
        self._connected = int(getattr(reason, "value", reason))
        self.packet_max = int(getattr(properties, "MaximumPacketSize", 0) or 0)

    def _on_disconnect(self, _client: Any, _data: Any, *more: Any) -> None:
        reasons = [item.value for item in more if hasattr(item, "getName") and hasattr(item, "value")]
        self._ended = int(reasons[0]) if reasons else 0

    def _on_subscribe(self, _client: Any, _data: Any, number: int, granted: Any, _properties: Any = None) -> None:
        if number == self._asked:
            self._granted = [int(getattr(item, "value", item)) for item in granted]

    def _on_message(self, _client: Any, _data: Any, message: Any) -> None:
        if len(self._came) >= _WAITING_MAX:
            raise DecodeError(f"more than {_WAITING_MAX} messages at once")
        self._came.append(Message(message.topic, bytes(message.payload), bool(message.retain)))


def available() -> bool:
    """Is paho here?"""
    try:
        import paho.mqtt.client
    except ImportError:
        return False
    return bool(paho.mqtt.client)


def _client(line: _Measured, version: int, name: str) -> Any:
    """paho's client, with our connection for its own."""
    try:
        from paho.mqtt import client as paho
    except ImportError as error:
        raise UplinkError("settings", MISSING) from error

    class Client(paho.Client):  # type: ignore[misc]
        def _create_socket_connection(self) -> _Measured:
            """Where both releases get their connection from. Once: nobody reconnects behind our back."""
            if self._given:
                raise ConnectionError("the broker wants another connection")
            self._given = True
            return line

        _given = False

        def kept(self) -> tuple[int, int]:
            """Packets that wait to be written, messages of QoS 2 that are not complete."""
            return len(self._out_packet), len(self._in_messages)

    more: dict[str, Any] = {"client_id": name, "protocol": version, "reconnect_on_failure": False}
    if version == V311:
        more["clean_session"] = True
    if hasattr(paho, "CallbackAPIVersion"):  # 2.0 and later
        return Client(paho.CallbackAPIVersion.VERSION2, **more)
    return Client(**more)
