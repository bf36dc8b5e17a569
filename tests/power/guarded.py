"""EdgeGuard over a small tree, its state on a disk of the test's choice: started, asked, killed, started again."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from edgeguard import control
from edgeguard.errors import ControlError
from edgeguard.settings import Settings, load
from tests.power.disk import DIE_WITH_US

TREE = Path(__file__).resolve().parents[2]
BIN = TREE / "packaging/bin"
PYTHON = ("/usr/bin/python3", "-IS")
PATIENCE_S = 180.0  # until something comes that a quiet machine shows within two
TOOLS = 24

SETTINGS = """
name = "power"
[paths]
state = "{disk}/state"
exchange = "{disk}/exchange"
runtime = "{base}/run"
vendor_policy = "{base}/policy"
site_policy = "{base}/site"
trust = "{base}/trust"
libexec = "{tree}/packaging/bin"
act_socket = "{base}/run/act.sock"
[uplink]
url = "https://127.0.0.1:1"
collector_key = "{base}/collector.pub"
flush_s = 2
"""
POLICY = """
[[watch]]
path = "{base}/watched"
category = "program"
protect = true

[[rule]]
id = "content"
code = "EG-FILE-002"
kind = "file"
severity = "{severity}"
where = {{ type = "file", known = true }}
expect = {{ sha256 = {{ same = true }} }}

[[rule]]
id = "unknown"
code = "EG-FILE-001"
kind = "file"
severity = "medium"
where = {{ type = "file" }}
expect = {{ known = true }}
"""

T = TypeVar("T")


class Guarded:
    """A daemon of our own: what it watches, its policy and /run below `base`, its state below `disk`."""

    def __init__(self, base: Path, disk: Path) -> None:
        self.base = base
        self.disk = disk
        self.watched = base / "watched"
        self.daemon: subprocess.Popen[bytes] | None = None
        self._helpers: list[int] = []  # of a daemon that was shot
        self._file = base / "agent.toml"

    def make(self, collector_key: bytes) -> None:
        """The world before the first start."""
        for name in ("watched", "policy", "run"):
            (self.base / name).mkdir(parents=True)
        for number in range(TOOLS):
            self.tool(number).write_bytes(b"as it should be\n" * (number + 1))
        self.write_policy("high")
        (self.base / "collector.pub").write_text(collector_key.hex())
        self._file.write_text(SETTINGS.format(base=self.base, disk=self.disk, tree=TREE))

    def tool(self, number: int) -> Path:
        return self.watched / f"tool-{number}"

    def write_policy(self, severity: str) -> None:
        (self.base / "policy/10.toml").write_text(POLICY.format(base=self.base, severity=severity))

    @property
    def settings(self) -> Settings:
        settings = load(str(self._file))
        return settings._replace(
            paths=settings.paths._replace(state=f"{self.disk}/state", exchange=f"{self.disk}/exchange")
        )

    def on(self, disk: Path) -> Guarded:
        """The same device with a copy of its disk, to be looked at."""
        other = copy.copy(self)
        other.disk = disk
        return other

    def start(self) -> None:
        """Returns when the daemon says READY."""
        with self.launched() as ready:
            self.until(lambda: self._says_ready(ready))

    @contextlib.contextmanager
    def launched(self) -> Iterator[socket.socket]:
        """The daemon has only just begun; READY comes out of the socket."""
        with contextlib.suppress(FileNotFoundError):
            (self.base / "run/status.json").unlink()  # /run does not outlive a power cut
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready, open(self.base / "log", "ab") as log:
            address = f"\0edgeguard-power-{os.getpid()}-{time.monotonic_ns()}"
            ready.bind(address)
            ready.settimeout(0.2)
            self.daemon = subprocess.Popen(
                [*DIE_WITH_US, *PYTHON, str(BIN / "edgeguardd"), "--settings", str(self._file)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "NOTIFY_SOCKET": "@" + address[1:]},
            )
            yield ready

    def _says_ready(self, ready: socket.socket) -> bool:
        assert self.daemon is not None
        assert self.daemon.poll() is None, f"it ended with {self.daemon.returncode}: {self.words()}"
        try:
            return b"READY=1" in ready.recv(4096)
        except TimeoutError:
            return False

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Ended, and so are the helpers that a killed daemon leaves: a power cut ends them, too."""
        if self.daemon is None:
            return
        if number == signal.SIGKILL:
            self._kill()
        helpers = self._helpers + _children(self.daemon.pid)
        self.daemon.send_signal(number)
        self.daemon.wait(PATIENCE_S)
        self.daemon, self._helpers = None, []
        _shoot(helpers)
        self.until(lambda: not any(map(_lives, helpers)))

    def shoot(self, pause: float) -> None:
        """kill -9 of whatever helps the daemon now, and a moment later of itself."""
        assert self.daemon is not None
        _shoot(_children(self.daemon.pid))
        time.sleep(pause)
        self._kill()

    def _kill(self) -> None:
        """The daemon and what helps it now. It is halted first: one that it begins just before its end would live on,
        and change the disk while that is copied."""
        assert self.daemon is not None
        pid = self.daemon.pid
        self.daemon.send_signal(signal.SIGSTOP)
        self.until(lambda: not _lives(pid) or _state(pid) == "T")
        self._helpers = [*self._helpers, *_children(pid)]
        self.daemon.kill()
        _shoot(self._helpers)

    def ask(self, verb: str, **parameters: Any) -> list[dict[str, Any]]:
        """What the command line asks, and every reply. Raises ControlError, DaemonSilent."""
        return list(control.call(f"{self.base}/run/control.sock", verb, parameters, timeout=PATIENCE_S))

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*PYTHON, str(BIN / "edgeguard"), "--settings", str(self._file), *words],
            capture_output=True, text=True, timeout=PATIENCE_S, check=False,
        )  # fmt: skip

    def status(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.ask("Status", format="json")[0]["text"])
        return document

    def findings(self) -> list[dict[str, Any]]:
        return [reply["finding"] for reply in self.ask("Findings") if "finding" in reply]

    def finding(self, path: Path) -> dict[str, Any] | None:
        return next((one for one in self.findings() if one["subject"] == str(path)), None)

    def settled(self) -> bool:
        """A baseline is in force, and the first look at the files is over."""
        status = self.status()
        if status["policy"] is None or status["areas"]["files"]["checked"] is None:
            return False
        watched = status["areas"]["files"]["watched"]
        assert watched >= TOOLS, f"what was learned is no baseline: {watched} files"
        return True

    def until(self, what: Callable[[], T]) -> T:
        """Wait on a condition; the log says why it did not come."""
        deadline = time.monotonic() + PATIENCE_S
        while not (answer := what()):
            assert time.monotonic() < deadline, self.words()
            time.sleep(0.02)
        return answer

    def answered(self, what: Callable[[], T]) -> T:
        """What needs the helper that signs: busy means again."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                return what()
            except ControlError as error:
                if error.name != "Busy":
                    raise
                assert time.monotonic() < deadline, self.words()
                time.sleep(0.05)

    def words(self) -> str:
        return (self.base / "log").read_text(errors="replace")[-3000:]


def _children(pid: int) -> list[int]:
    try:
        return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def _shoot(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _lives(pid: int) -> bool:
    return _state(pid) not in ("", "Z")


def _state(pid: int) -> str:
    """As in /proc/PID/stat; "" where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""
