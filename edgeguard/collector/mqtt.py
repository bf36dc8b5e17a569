"""The collector at a broker: takes what devices publish, one message at a time, and publishes what they are answered.

A thread beside the server. It decides nothing: `relayed` does, in the thread that stores. One at a time means that a
collector that is slow lets the broker wait, not its own memory grow. The session is clean: what comes while nobody is
here is not kept for us, for a device sends again whatever has no receipt. The broker is believed as little as on a
device: bytes of a packet, seconds of each wait and replies that it does not acknowledge are bounded.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Callable

from edgeguard.collector.config import Mqtt
from edgeguard.errors import DecodeError, EdgeGuardError
from edgeguard.records import mqttwire, wire
from edgeguard.records.link import Line, Target, UplinkError, address
from edgeguard.records.mqttclient import PACKET_ALLOWED, V5, V311, Message, Session, Unsupported
from edgeguard.records.mqttlink import PORT, SCHEME
from edgeguard.records.mqttwire import RENEW, UP, Answer, Frames

PACKET_MAX = wire.SEGMENT_MAX + PACKET_ALLOWED
CONNACK_S = SUBACK_S = 30
KEEPALIVE_S = 30
LOOK_S = 0.5  # between looks whether it is time to stop
BACKOFF_S = (1.0, 60.0)  # first and longest wait; the wait itself is drawn at random below (full jitter)
STOP_S = 10.0
UNACKNOWLEDGED_MAX = 64  # replies of 4 KiB

Answering = Callable[[bytes, str, bytes], Answer]
Log = Callable[[str], None]


class Subscriber:
    """`start`, and `stop`. `answer` gets device, kind and payload."""

    def __init__(self, config: Mqtt, directory: str, answer: Answering, log: Log) -> None:
        self._config = config
        self._answer = answer
        self._log = log
        own = (os.path.join(directory, name) for name in ("ca.pem", "mqtt.pem", "mqtt.key"))
        files = [given or usual for given, usual in zip((config.ca, config.certificate, config.key), own, strict=True)]
        self._target = Target(config.url, files[0], files[1], files[2])
        self._stopping = threading.Event()
        self._said = ""
        self._failures = 0
        self._thread = threading.Thread(target=self._run, name="mqtt", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join(STOP_S)

    def topics(self) -> list[str]:
        share = f"$share/{self._config.share}/" if self._config.share else ""
        return [f"{share}{mqttwire.ROOT}/+/{kind}" for kind in (UP, RENEW)]

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._serve()
            except EdgeGuardError as error:
                self._trouble(str(error))
            except Exception as error:  # noqa: BLE001 - a bug, but of this thread: HTTPS goes on, and it is said
                self._trouble(f"{type(error).__name__}: {error}")
            first, longest = BACKOFF_S
            bound = min(longest, first * 2 ** min(self._failures, 12))
            self._stopping.wait(bound * (1 + secrets.randbelow(1000)) / 1000)

    def _trouble(self, words: str) -> None:
        """Once, not with each attempt."""
        self._failures += 1
        if words != self._said:
            self._log(f"mqtt: {words}")
            self._said = words

    def _serve(self) -> None:
        """One session, until it ends. Raises UplinkError."""
        versions = (V5,) if self._config.share else (V5, V311)  # 3.1.1 knows nothing of shared subscriptions
        for version in versions:
            line = Line(self._target, *address(self._config.url, SCHEME, PORT))
            try:
                session = self._session(line, version)
            except Unsupported:
                line.close()
                if version == versions[-1]:
                    raise
            except OSError as error:
                line.close()
                raise UplinkError("unreachable", f"{line.peer}: {error.strerror or error}") from error
            except EdgeGuardError:
                line.close()
                raise
            else:
                try:
                    self._listen(session)
                finally:
                    session.close()
                    line.close()
                return

    def _session(self, line: Line, version: int) -> Session:
        name = f"edgeguard-collector-{secrets.token_hex(6)}"
        frames = Frames(PACKET_MAX)
        session = Session(line.open(), frames, version, name, line.peer, KEEPALIVE_S, UNACKNOWLEDGED_MAX)
        session.connect(CONNACK_S, PACKET_MAX)
        session.subscribe(self.topics(), SUBACK_S)
        self._log(f"mqtt: receiving from {line.peer} by MQTT {'5' if version == V5 else '3.1.1'}")
        self._said, self._failures = "", 0
        return session

    def _listen(self, session: Session) -> None:
        while not self._stopping.is_set():
            message = session.next(time.monotonic() + LOOK_S)
            if message is not None:
                self._take(session, message)

    def _take(self, session: Session, message: Message) -> None:
        if message.retained:
            return  # somebody left it there; a device never does
        try:
            device, kind = mqttwire.parse_topic(message.topic)
        except DecodeError as error:
            self._trouble(f"a message with {error}")
            return
        session.publish(
            mqttwire.topic(device, mqttwire.RX), mqttwire.encode(self._answered(device, kind, message.payload))
        )

    def _answered(self, device: bytes, kind: str, payload: bytes) -> Answer:
        try:
            return self._answer(device, kind, payload)
        except Exception as error:  # noqa: BLE001 - a bug that one message brings out must not end it for all others
            self._log(f"mqtt: {device.hex()}: {type(error).__name__}: {error}")
            return Answer(mqttwire.mark(payload), 500, None, b"error\n")
