"""A broker that speaks MQTT by hand and does what a script says; its certificate is one of our CA."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from typing import NamedTuple

CONNECT, CONNACK, PUBLISH, PUBACK, SUBSCRIBE, SUBACK, DISCONNECT = 1, 2, 3, 4, 8, 9, 14


class Packet(NamedTuple):
    kind: int
    flags: int
    content: bytes


class Sent(NamedTuple):
    """What a client published."""

    topic: str
    payload: bytes
    number: bytes


class Peer:
    """One client, seen from the broker. `version`: of the CONNECT that came."""

    def __init__(self, line: ssl.SSLSocket) -> None:
        self.line = line
        self.version = 0

    def read(self) -> Packet:
        head = self._exactly(1)[0]
        length = shift = 0
        while True:
            byte = self._exactly(1)[0]
            length |= (byte & 0x7F) << shift
            shift += 7
            if not byte & 0x80:
                break
        packet = Packet(head >> 4, head & 15, self._exactly(length))
        if packet.kind == CONNECT:
            self.version = packet.content[6]
        return packet

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            more = self.line.recv(count - len(data))
            if not more:
                raise ConnectionError("gone")
            data += more
        return data

    def send(self, kind: int, content: bytes, flags: int = 0) -> None:
        self.line.sendall(packet(kind, content, flags))

    def properties(self) -> bytes:
        return b"\0" if self.version == 5 else b""

    def until_gone(self) -> None:
        """What the client still says, acknowledgements and all, until it hangs up: ending before would be a cut."""
        with contextlib.suppress(OSError):
            while self.read().kind != DISCONNECT:
                pass

    # --- the usual course ------------------------------------------------------------------------------------------

    def welcome(self) -> None:
        assert self.read().kind == CONNECT
        self.send(CONNACK, b"\0\0" + self.properties())

    def subscribed(self) -> None:
        asked = self.read()
        assert asked.kind == SUBSCRIBE
        self.send(SUBACK, asked.content[:2] + self.properties() + b"\1")

    def published(self) -> Sent:
        """The next message of the client, acknowledged."""
        while (came := self.read()).kind != PUBLISH:
            pass
        size = int.from_bytes(came.content[:2], "big")
        topic = came.content[2 : 2 + size].decode()
        number, rest = came.content[2 + size : 4 + size], came.content[4 + size :]
        self.send(PUBACK, number)
        return Sent(topic, rest[1:] if self.version == 5 else rest, number)

    def publish(self, topic: str, payload: bytes, *, retain: bool = False, qos: int = 1, number: int = 7) -> None:
        self.line.sendall(message(topic, payload, self.version, retain=retain, qos=qos, number=number))

    def up_to_post(self) -> Sent:
        self.welcome()
        self.subscribed()
        return self.published()


def packet(kind: int, content: bytes, flags: int = 0) -> bytes:
    return bytes([kind << 4 | flags]) + length(len(content)) + content


def length(value: int) -> bytes:
    found = b""
    while True:
        value, low = value >> 7, value & 0x7F
        found += bytes([low | (0x80 if value else 0)])
        if not value:
            return found


def message(topic: str, payload: bytes, version: int, *, retain: bool = False, qos: int = 1, number: int = 7) -> bytes:
    name = topic.encode()
    mid = number.to_bytes(2, "big") if qos else b""
    content = len(name).to_bytes(2, "big") + name + mid + (b"\0" if version == 5 else b"") + payload
    return packet(PUBLISH, content, qos << 1 | retain)


class Scripted:
    """`script(peer)` for each connection, until it returns; then the connection ends."""

    def __init__(self, directory: str, script) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(f"{directory}/server.pem", f"{directory}/server.key")
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.connections = 0
        self._script = script
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                plain, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            with contextlib.suppress(OSError, AssertionError, IndexError), plain:
                plain.settimeout(30)
                with self._context.wrap_socket(plain, server_side=True) as line:
                    self._script(Peer(line))

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)
