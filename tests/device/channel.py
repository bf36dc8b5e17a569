"""The two wires to an emulated device: the machine's own monitor (QMP) and the agent inside, both JSON lines.

The agent is reached over a virtio-serial port: it answers while the network is down, the clock is wrong or a firewall
drops everything.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ANSWER_S = 60.0


class Gone(RuntimeError):
    """The machine, or its agent, does not answer."""


class Wire:
    """JSON lines over a unix socket that QEMU opens."""

    def __init__(self, path: Path, timeout: float) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._rest = b""
        deadline = time.monotonic() + timeout
        while True:
            try:
                self._socket.connect(str(path))
                return
            except OSError as error:
                if time.monotonic() > deadline:
                    self._socket.close()
                    raise Gone(f"{path.name}: {error}") from error
                time.sleep(0.05)

    def close(self) -> None:
        self._socket.close()

    def send(self, word: str, arguments: dict[str, Any]) -> None:
        message = {"execute": word, **({"arguments": arguments} if arguments else {})}
        try:
            self._socket.settimeout(ANSWER_S)
            self._socket.sendall(json.dumps(message).encode() + b"\n")
        except OSError as error:
            raise Gone(f"{word}: {error}") from error

    def line(self, deadline: float) -> dict[str, Any]:
        """The next message; Gone when there is none in time."""
        while b"\n" not in self._rest:
            try:
                self._socket.settimeout(max(0.001, deadline - time.monotonic()))
                got = self._socket.recv(1 << 20)
            except OSError as error:
                raise Gone(str(error) or "no answer") from error
            if not got:
                raise Gone("the connection was closed")
            self._rest += got
        text, self._rest = self._rest.split(b"\n", 1)
        message: dict[str, Any] = json.loads(text.strip(b"\xff"))  # 0xff: the agent's sign for a fresh start
        return message


class Monitor(Wire):
    """QMP: the hands on the machine's outside."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, timeout=20)
        self._events: list[dict[str, Any]] = []
        self.line(time.monotonic() + ANSWER_S)  # the greeting
        self.ask("qmp_capabilities")

    def ask(self, word: str, **arguments: Any) -> Any:
        """One command; _ in an argument's name stands for -. RuntimeError with QEMU's words when it refuses."""
        self.send(word, {name.replace("_", "-"): value for name, value in arguments.items()})
        deadline = time.monotonic() + ANSWER_S
        while True:
            message = self.line(deadline)
            if "event" in message:
                self._events.append(message)
            elif "error" in message:
                raise RuntimeError(f"{word}: {message['error'].get('desc')}")
            else:
                return message["return"]

    def forget(self, name: str) -> None:
        """Events of that name that came so far are of no interest."""
        self._events = [event for event in self._events if event["event"] != name]

    def event(self, name: str, timeout: float, wanted: Callable[[dict[str, Any]], bool] = lambda _data: True) -> None:
        """Wait for an event; one that came already counts, once."""
        deadline = time.monotonic() + timeout
        while True:
            for position, event in enumerate(self._events):
                if event["event"] == name and wanted(event.get("data", {})):
                    del self._events[position]
                    return
            message = self.line(deadline)
            if "event" in message:
                self._events.append(message)


class Agent(Wire):
    """qemu-guest-agent: the hands inside. It answers one question at a time."""

    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__(path, timeout=5)
        try:
            self._greet(time.monotonic() + timeout)
        except Gone:
            self.close()
            raise

    def _greet(self, deadline: float) -> None:
        """What was asked by somebody before us may still be answered: only what follows our own number counts."""
        number = int.from_bytes(os.urandom(4), "big")
        self.send("guest-sync", {"id": number})
        while True:
            with contextlib.suppress(ValueError):  # half a line
                if self.line(deadline).get("return") == number:
                    return

    def ask(self, word: str, timeout: float = ANSWER_S, **arguments: Any) -> Any:
        self.send(word, {name.replace("_", "-"): value for name, value in arguments.items()})
        message = self.line(time.monotonic() + timeout)
        if "error" in message:
            raise RuntimeError(f"{word}: {message['error'].get('desc')}")
        return message["return"]

    def run(self, script: str, given: bytes, environment: list[str], timeout: float) -> tuple[int, bytes, bytes]:
        """Exit code, output and errors of a shell script; 124 when it was killed because it did not end in time."""
        words: dict[str, Any] = {"path": "/bin/sh", "arg": ["-c", script], "env": environment, "capture_output": True}
        if given:
            words["input_data"] = base64.b64encode(given).decode()
        deadline = time.monotonic() + timeout
        pid, pause = self.ask("guest-exec", **words)["pid"], 0.03
        while True:
            state = self.ask("guest-exec-status", pid=pid)
            if state["exited"]:
                out, err = (base64.b64decode(state.get(name, "")) for name in ("out-data", "err-data"))
                return state.get("exitcode", 128 + state.get("signal", 0)), out, err
            if time.monotonic() > deadline:
                self.ask("guest-exec", path="/bin/kill", arg=["-9", str(pid)])
                return 124, b"", f"[no end within {timeout} s]".encode()
            time.sleep(pause)
            pause = min(pause * 1.5, 2.0)  # each question costs the device some milliseconds, and a line in its journal
