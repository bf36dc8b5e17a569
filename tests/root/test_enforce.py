"""Mode enforce from the act to the remedy and back: the daemon, edgeguard-act and the command line, as they run.

One rule each, in a network namespace of its own and a directory below /var/lib (in /tmp others could write, and so
nothing is restored there). On a device the same runs under systemd: see tests/device.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time

import pytest

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(not all(map(shutil.which, ("ip", "nft"))), reason="needs iproute2 and nftables"),
]

REPOSITORY = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PYTHON = ("/usr/bin/python3", "-IS")
GOOD = b"#!/bin/sh\nexit 0\n"
BOUND_S = 3.0  # what the product promises, from the act to the remedy; a busy test machine gets five times that
PATIENCE_S = 5 * BOUND_S

POLICY = """
[learn]
digest = "{digest}"

[[watch]]
path = "{base}/watched"
category = "program"
protect = true

[[rule]]
id = "changed"
code = "EG-FILE-002"
kind = "file"
where = {{ type = "file", known = true }}
expect = {{ sha256 = {{ same = true }}, mode = {{ same = true }} }}
remediation = "restore-file"
mode = "enforce"

[[rule]]
id = "new"
code = "EG-FILE-001"
kind = "file"
where = {{ known = false }}
expect = {{ known = true }}
remediation = "quarantine-file"
mode = "enforce"

[[rule]]
id = "port"
code = "EG-PORT-001"
kind = "listener"
where = {{ known = false, protocol = "tcp", scope = {{ not = "loopback" }} }}
expect = {{ known = true }}
remediation = "block-port"
mode = "enforce"

[[rule]]
id = "deleted"
code = "EG-PROC-001"
kind = "process"
where = {{ exe_state = "deleted", subject = {{ like = "{base}/**" }} }}
expect = {{ exe_state = {{ not = "deleted" }} }}
remediation = "stop-process"
mode = "enforce"
"""

SETTINGS = """
mode = "enforce"
[paths]
state = "{base}/state"
runtime = "{base}/run"
exchange = "{base}/exchange"
vendor_policy = "{base}/policy"
site_policy = "{base}/site"
trust = "{base}/trust"
libexec = "{bin}"
act_socket = "{base}/run/act.sock"
"""


class Device:
    """A daemon and an edgeguard-act of our own."""

    def __init__(self, base: str, space: str, digest: str) -> None:
        self.base = base
        self.inside = ("ip", "netns", "exec", space)
        self.bin = os.path.join(REPOSITORY, "packaging/bin")
        os.chmod(base, 0o755)
        for name in ("watched", "run", "policy", "state"):
            os.mkdir(f"{base}/{name}", 0o755)
        self.program = f"{base}/watched/tool"
        self.write(self.program, GOOD, 0o755)
        self.write(f"{base}/policy/10.toml", POLICY.format(base=base, digest=digest).encode())
        self.config = f"{base}/agent.toml"
        self.write(self.config, SETTINGS.format(base=base, bin=self.bin).encode())
        self.log = open(f"{base}/log", "wb")  # noqa: SIM115 - closed with the device
        self.running = [self.start("edgeguardd"), self.start("edgeguard-act", "--socket", f"{base}/run/act.sock")]

    @staticmethod
    def write(path: str, data: bytes, mode: int = 0o644) -> None:
        with open(path, "wb") as file:
            file.write(data)
        os.chmod(path, mode)

    def start(self, name: str, *words: str) -> subprocess.Popen[bytes]:
        more = ("--idle", "0") if words else ()
        command = (*self.inside, *PYTHON, f"{self.bin}/{name}", "--settings", self.config, *words, *more)
        return subprocess.Popen(command, stderr=self.log, stdout=self.log)

    def close(self) -> None:
        for process in self.running:
            process.terminate()
        for process in self.running:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.log.close()

    def status(self) -> dict:
        try:
            with open(f"{self.base}/run/status.json", "rb") as file:
                return json.load(file)
        except (OSError, ValueError):
            return {}

    def ask(self, *words: str) -> str:
        command = (*PYTHON, f"{self.bin}/edgeguard", *words, "--settings", self.config)
        return subprocess.run(command, capture_output=True, check=False, text=True, timeout=20).stdout

    def finding(self, code: str) -> str:
        """The id of the finding with this code, once it is listed."""

        def listed():
            lines = self.ask("findings", "--all", "-o", "jsonl").splitlines()
            documents = [json.loads(line) for line in lines]
            return next((item["id"] for item in documents if item.get("code") == code), "")

        return self.until(listed)

    def until(self, condition):
        """Wait for something true; what it was."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            found = condition()
            if found:
                return found
            time.sleep(0.02)
        with open(f"{self.base}/log", encoding="utf-8", errors="replace") as file:
            pytest.fail(f"it did not come true; the log says:\n{file.read()[-3000:]}")


@pytest.fixture(scope="module", params=["sha256", "blake2b"])
def device(request):
    space = f"egt{os.getpid()}"
    base = tempfile.mkdtemp(prefix="edgeguard-test-", dir="/var/lib")
    subprocess.run(("ip", "netns", "add", space), check=True)
    subprocess.run(("ip", "-n", space, "link", "set", "lo", "up"), check=True)
    made = Device(base, space, request.param)
    try:
        made.until(lambda: made.status().get("policy") and made.status().get("verdict") != "LEARNING")
        made.until(lambda: os.path.exists(f"{base}/run/act.sock"))
        yield made
    finally:
        made.close()
        subprocess.run(("ip", "netns", "del", space), check=False)
        shutil.rmtree(base)


def _read(path):
    with open(path, "rb") as file:
        return file.read()


def test_a_changed_file_is_back_and_undo_brings_the_change_again(device):
    device.write(device.program, b"trojan", 0o4777)
    device.until(lambda: (_read(device.program), os.lstat(device.program).st_mode & 0o7777) == (GOOD, 0o755))
    (kept,) = os.listdir(f"{device.base}/state-act/quarantine")
    assert _read(f"{device.base}/state-act/quarantine/{kept}/content") == b"trojan"
    device.ask("undo", device.finding("EG-FILE-002"))
    device.until(lambda: (_read(device.program), os.lstat(device.program).st_mode & 0o7777) == (b"trojan", 0o4777))


def test_a_new_file_is_taken_away_and_undo_puts_it_back(device):
    path = f"{device.base}/watched/dropped"
    device.write(path, b"evil")
    device.until(lambda: not os.path.exists(path))
    device.ask("undo", device.finding("EG-FILE-001"))
    device.until(lambda: os.path.exists(path))


def test_a_program_whose_file_was_deleted_is_stopped(device):
    path = f"{device.base}/evil"
    shutil.copy("/usr/bin/sleep", path)
    child = subprocess.Popen((*device.inside, path, "600"))
    try:
        device.until(lambda: os.readlink(f"/proc/{child.pid}/exe") == path)
        os.unlink(path)
        device.until(lambda: child.poll() is not None)
        assert child.returncode == -signal.SIGKILL
    finally:
        child.kill()
        child.wait()


def test_an_unexpected_port_is_blocked_and_undo_opens_it(device):
    listen = "import socket, time; held = socket.create_server(('0.0.0.0', 4444)); time.sleep(600)"
    child = subprocess.Popen((*device.inside, *PYTHON, "-c", listen))

    def blocked():
        words = (*device.inside, "nft", "list", "ruleset")
        return b"4444" in subprocess.run(words, capture_output=True, check=True).stdout

    try:
        device.until(blocked)
        device.ask("undo", device.finding("EG-PORT-001"))
        device.until(lambda: not blocked())
    finally:
        child.kill()
        child.wait()
