"""A real daemon of our own, as an ordinary user, on a small tree; for the tests that go through every room."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

TREE = Path(__file__).resolve().parents[3]
PATIENCE_S = 60.0

SETTINGS = """
name = "walk"
[paths]
state = "{base}/state"
runtime = "{base}/run"
exchange = "{base}/exchange"
vendor_policy = "{base}/policy"
site_policy = "{base}/site"
trust = "{base}/trust"
libexec = "{tree}/packaging/bin"
act_socket = "{base}/run/act.sock"
"""
POLICY = """
[[watch]]
path = "{base}/watched"
category = "program"

[[rule]]
id = "content"
code = "EG-FILE-002"
kind = "file"
severity = "critical"
where = {{ type = "file", known = true }}
expect = {{ sha256 = {{ same = true }} }}
"""


@contextlib.contextmanager
def learned(walk: Walk) -> Iterator[Walk]:
    """It runs and has learned; afterwards it is ended."""
    walk.start()
    try:
        walk.until(walk.learned)
        yield walk
    finally:
        walk.stop()


class Walk:
    """A daemon of our own below `base`."""

    def __init__(self, base: Path, policy: str = POLICY, settings: str = SETTINGS) -> None:
        self.base = base
        self.watched = base / "watched"
        self.watched.mkdir()
        for number in range(20):
            (self.watched / f"tool-{number}").write_bytes(b"as it should be\n" * number)
        (base / "policy").mkdir()
        (base / "policy/10.toml").write_text(policy.format(base=base))
        (base / "agent.toml").write_text(settings.format(base=base, tree=TREE))
        self.daemon: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = ["/usr/bin/python3", "-IS", str(TREE / "packaging/bin/edgeguardd")]
        with open(self.base / "log", "ab") as log:
            self.daemon = subprocess.Popen([*command, "--settings", str(self.base / "agent.toml")], stderr=log)

    def stop(self, number: int = signal.SIGTERM) -> None:
        if self.daemon is not None:
            self.daemon.send_signal(number)
            self.daemon.wait(20)
            self.daemon = None

    def ask(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = ["/usr/bin/python3", "-IS", str(TREE / "packaging/bin/edgeguard"), "--settings"]
        return subprocess.run(
            [*command, str(self.base / "agent.toml"), *words], capture_output=True, text=True, timeout=60, check=False
        )

    def findings(self, *more: str) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.ask("findings", "-o", "jsonl", *more).stdout.splitlines()]

    def until(self, what: Callable[[], object]) -> object:
        """Wait on a condition; the log says why it did not come."""
        deadline = time.monotonic() + PATIENCE_S
        while not (answer := what()):
            if time.monotonic() > deadline:
                raise AssertionError((self.base / "log").read_text()[-3000:])
            time.sleep(0.1)
        return answer

    def learned(self) -> bool:
        try:
            status = json.loads((self.base / "run/status.json").read_text())
        except (OSError, ValueError):
            return False
        return status["policy"] is not None and status["areas"]["files"]["checked"] is not None

    def segments(self) -> list[Path]:
        return sorted((self.base / "exchange/outbox").glob("0-*.egs"))
