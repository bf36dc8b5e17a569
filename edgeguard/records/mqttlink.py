"""One collector by way of an MQTT broker: `post` a body, get its reply, or UplinkError, whatever the broker does.

The same shape as `link.Link`, over the same TLS. A broker's word frees nothing and ends nothing: PUBACK is not waited
for, and only the collector's reply to these very bytes counts. Whoever runs the broker may keep, repeat and reorder
what passes; what a receipt is worth is decided by the sealer, who alone can verify one. Bounded as HTTPS is: bytes of
an answer with all that comes beside it, seconds of an exchange. The session is clean: the broker keeps nothing for us.
"""

from __future__ import annotations

import time

from edgeguard.codec import certificates
from edgeguard.errors import DecodeError
from edgeguard.records import mqttwire
from edgeguard.records.link import EXCHANGE_S, POST_PATH, Line, Reply, Target, UplinkError, address, deadline, named
from edgeguard.records.mqttclient import MISSING, PACKET_ALLOWED, V5, V311, Session, Unsupported, available
from edgeguard.records.mqttwire import RENEW, RX, UP, Frames

SCHEME, PORT = "mqtts", 8883
VERSIONS = (V5, V311)  # in the order in which they are tried
CONNACK_S = 30
SUBACK_S = 30
RECEIPT_S = 60  # from sending to the collector's reply
KEEPALIVE_S = 60
WELL = 64 * 1024  # bytes of a body: brokers hold it in memory for everybody who is to get it
IN_PACKET = mqttwire.REPLY_MAX + PACKET_ALLOWED
IN_MAX = 64 * 1024  # bytes that may come for one answer: others' replies, what is retained, pings


class MqttLink:
    """One session with a broker, kept while there is something to send."""

    relayed = True  # whoever answers need not be the collector

    def __init__(self, target: Target) -> None:
        if not available():
            raise UplinkError("settings", MISSING)
        self._line = Line(target, *address(target.url, SCHEME, PORT))
        self.judged_at = self._line.judged_at
        self._target = target
        self._frames = Frames(IN_PACKET, IN_MAX)
        self._session: Session | None = None
        self._versions: tuple[int, ...] = VERSIONS

    def room(self, most: int) -> tuple[int, int]:
        """Bytes of a body that are well sent at once, and that the broker takes at all; it is asked. UplinkError."""
        with deadline(EXCHANGE_S, self._line.peer):
            takes = self._open().packet_max or most + PACKET_ALLOWED
        hard = max(0, min(most, takes - PACKET_ALLOWED))
        return min(WELL, hard), hard

    def post(self, body: bytes | None, path: str = POST_PATH) -> Reply:
        """Publish and wait for the reply to it, bounded in size and time. Raises UplinkError."""
        try:
            with deadline(EXCHANGE_S, self._line.peer):
                if path == POST_PATH:
                    return self._exchange(UP, body or b"")
                return self._exchange(RENEW, self._certificate())
        except UplinkError:
            self.close()
            raise
        except (OSError, ValueError) as error:
            self.close()
            raise named(error, self._line.peer) from error

    def close(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None
        self._line.close()

    def spent(self) -> int:
        """Bytes on the wire since this was last asked: see Line."""
        return self._line.spent()

    # --- one session -----------------------------------------------------------------------------------------------

    def _open(self) -> Session:
        if self._session is not None:
            return self._session
        for version in self._versions:
            try:
                self._session = self._connect(version)
            except Unsupported as error:
                self._line.close()
                trouble = error
            except (OSError, ValueError) as error:
                self._line.close()
                raise named(error, self._line.peer) from error
            else:
                self._versions = (version,)
                return self._session
        raise trouble

    def _connect(self, version: int) -> Session:
        device = self._device()
        self._frames = Frames(IN_PACKET, IN_MAX)
        session = Session(self._line.open(), self._frames, version, device.hex(), self._line.peer, KEEPALIVE_S)
        session.connect(CONNACK_S, IN_PACKET)
        session.subscribe([mqttwire.topic(device, RX)], SUBACK_S)
        return session

    def _exchange(self, kind: str, payload: bytes) -> Reply:
        session = self._open()
        device = self._device()
        self._frames.grant()
        session.publish(mqttwire.topic(device, kind), payload)
        of, topic = mqttwire.mark(payload), mqttwire.topic(device, RX)
        until = time.monotonic() + RECEIPT_S
        while (message := session.next(until, answered=True)) is not None:
            if message.retained or message.topic != topic:
                continue
            try:
                answer = mqttwire.decode(message.payload)
            except DecodeError:
                continue  # anybody's; what is ours comes, or the time ends
            if answer.of == of:
                return Reply(answer.status, answer.body, answer.retry_after)
        peer, reason = self._line.peer, self._frames.refusal
        if reason == mqttwire.NOBODY:
            raise UplinkError("no-receipt", f"{peer}: no collector is there, says the broker")
        if reason:
            raise UplinkError("refused", f"{peer}: the broker does not pass on what we send (reason {reason})")
        raise UplinkError("no-receipt", f"{peer}: the broker answers, the collector behind it does not")

    # --- who we are ------------------------------------------------------------------------------------------------

    def _device(self) -> bytes:
        """The id in our certificate: the broker lets us write below that name only."""
        try:
            return mqttwire.device_id(certificates.common_name(self._certificate()))
        except DecodeError as error:
            raise UplinkError("settings", f"{self._target.certificate}: its common name: {error}") from error

    def _certificate(self) -> bytes:
        try:
            return certificates.der(certificates.read(self._target.certificate))
        except (OSError, DecodeError) as error:
            raise UplinkError("settings", f"{self._target.certificate}: {error}") from error
