"""A real daemon that watches a small ext4 of its own, and what it has found so far. Nothing else is marked: where the
kernel tells of program starts by the proc connector, the files sensor marks the file systems of its watches only."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edgeguard.evaluate.ledger import Ledger
from edgeguard.model import Finding

TREE = Path(__file__).resolve().parents[2]
PATIENCE_S = 60.0
SIZE = 256 << 20

SETTINGS = """
name = "files"
[paths]
state = "{base}/state"
runtime = "{base}/run"
exchange = "{base}/exchange"
vendor_policy = "{base}/policy"
site_policy = "{base}/site"
trust = "{base}/trust"
libexec = "{tree}/packaging/bin"
act_socket = "{base}/run/act.sock"
[budget]
"""
POLICY = """
[[watch]]
path = "{top}/watched"
category = "program"

[[watch]]
path = "{top}/watched/logs"
category = "other"
content = false

[[rule]]
id = "changed"
code = "EG-FILE-002"
kind = "file"
where = {{ known = true, category = "program" }}
expect.type = {{ same = true }}
expect.sha256 = {{ same = true }}
expect.target = {{ same = true }}
expect.mode = {{ same = true }}
expect.uid = {{ same = true }}
expect.gid = {{ same = true }}
expect.caps = {{ same = true }}
expect.xattrs = {{ same = true }}

[[rule]]
id = "new"
code = "EG-FILE-001"
kind = "file"
where = {{ known = false }}
expect = {{ known = true }}

[[rule]]
id = "missing"
code = "EG-FILE-004"
kind = "file"
where = {{ known = true, status = "absent" }}
expect = {{ status = "present" }}

[[rule]]
id = "lost"
code = "EG-HLTH-001"
kind = "health"
where = {{ code = "EG-HLTH-001" }}
expect = {{ ok = true }}

[[rule]]
id = "unseen"
code = "EG-FILE-007"
kind = "file"
where = {{ status = "unreadable" }}
expect = {{ status = "present" }}
"""


class FileGuard:
    """`base`: the daemon's own things; `top`: the ext4, with `watched` and `beside` on it."""

    def __init__(self, base: Path, **budget: int) -> None:
        self.base = base
        self.top = base / "disk"
        self.watched = self.top / "watched"
        self.beside = self.top / "beside"
        self.image = base / "image"
        self.daemon: subprocess.Popen[bytes] | None = None
        for name in ("disk", "policy", "state"):
            (base / name).mkdir()
        with open(self.image, "wb") as file:
            file.truncate(SIZE)
        subprocess.run(["mkfs.ext4", "-qF", self.image], check=True)
        if subprocess.run(["mount", "-o", "loop", self.image, self.top], check=False).returncode:
            pytest.skip("no loop devices here")
        for place in (self.watched, self.watched / "logs", self.beside):
            place.mkdir()
        (base / "policy/10.toml").write_text(POLICY.format(top=self.top))
        lines = "".join(f"{name} = {value}\n" for name, value in budget.items())
        (base / "agent.toml").write_text(SETTINGS.format(base=base, tree=TREE) + lines)

    # -- the daemon's life

    def start(self, *program: str) -> None:
        """Returns when its first whole look at everything is over."""
        self.spawn(*program)
        self.until(self.looked)

    def spawn(self, *program: str) -> None:
        """`program`: other words for Python than the daemon's own."""
        (self.base / "run/status.json").unlink(missing_ok=True)
        words = program or (str(TREE / "packaging/bin/edgeguardd"),)
        command = ["/usr/bin/python3", "-IS", *words, "--settings"]
        with open(self.base / "log", "ab") as log:
            self.daemon = subprocess.Popen([*command, str(self.base / "agent.toml")], stderr=log)

    def looked(self) -> bool:
        try:
            status = json.loads((self.base / "run/status.json").read_text())
        except (OSError, ValueError):
            return False
        return status["policy"] is not None and status["areas"]["files"]["checked"] is not None

    def stop(self, number: int = signal.SIGTERM) -> None:
        if self.daemon is not None:
            self.daemon.send_signal(number)
            self.daemon.wait(30)
            self.daemon = None

    def scan(self, *words: str) -> None:
        """A whole sweep, as soon as no other one runs."""

        def done() -> bool:
            answer = self.ask("scan", *words, "-o", "json")
            return '"files"' in answer.stdout

        self.until(done)

    def ask(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = ["/usr/bin/python3", "-IS", str(TREE / "packaging/bin/edgeguard"), "--settings"]
        return subprocess.run(
            [*command, str(self.base / "agent.toml"), *words], capture_output=True, text=True, check=False, timeout=600
        )

    def close(self) -> None:
        self.stop()
        for line in reversed(Path("/proc/self/mounts").read_text().splitlines()):
            if line.split()[1].startswith(f"{self.base}/"):
                subprocess.run(["umount", "-l", line.split()[1]], check=False)
        for place in self.base.iterdir():  # a path below may be longer than any call takes
            subprocess.run(["rm", "-rf", place], check=False)

    # -- what it says

    def findings(self, kind: str = "file", *, ended: bool = False) -> list[Finding]:
        """Open ones, as the ledger on disk has them: half a second after they were found. `ended`: also those that
        are over."""
        with contextlib.suppress(FileNotFoundError):
            everything = Ledger.from_cbor((self.base / "state/ledger.cbor").read_bytes(), 1_000_000)
            return [item for item in (everything.all() if ended else everything.open()) if item.kind == kind]
        return []

    def about(self, place: Path | str, *, ended: bool = False) -> list[Finding]:
        path, found = str(place), self.findings(ended=ended)
        return [item for item in found if item.subject == path or item.subject.startswith(path + "/")]

    def until(self, condition: Callable[[], Any], seconds: float = PATIENCE_S) -> Any:
        """Wait for something true; what it was."""
        deadline = time.monotonic() + seconds
        while (began := time.monotonic()) < deadline:
            if found := condition():
                return found
            time.sleep(max(0.02, 2 * (time.monotonic() - began)))  # thousands of findings take long to be read
        log = (self.base / "log").read_text(errors="replace")
        found = [item.subject for item in self.findings()]
        pytest.fail(f"it did not come true; findings: {found[:20]}; log: {log[-3000:]}")


@contextlib.contextmanager
def guarded(base: Path, **budget: int) -> Iterator[FileGuard]:
    if shutil.which("mkfs.ext4") is None:
        pytest.skip("no mkfs.ext4")
    made = FileGuard(base, **budget)
    try:
        yield made
    finally:
        made.close()
