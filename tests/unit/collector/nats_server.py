"""A nats-server with JetStream of our own in a temporary directory, on a port of 127.0.0.1 that was free."""

from __future__ import annotations

import glob
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path


def missing() -> str:
    """Why there can be no broker here; "" if there can."""
    if not shutil.which("nats-server"):
        return "needs nats-server: apt install nats-server"
    try:
        import nats  # noqa: F401 - only to know
    except ImportError:
        return "needs nats-py: make test-scale installs it into build/venv-scale"
    return ""


class Broker:
    """Started when made, with JetStream's own defaults (it syncs every two minutes) unless `settings` say more."""

    def __init__(self, folder: Path, settings: str = "") -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"nats://127.0.0.1:{self.port}"
        self.store = folder / "jetstream"
        self.configuration = folder / "nats.conf"
        self.configuration.write_text(
            f'listen: "127.0.0.1:{self.port}"\njetstream {{ store_dir: "{folder}", max_file_store: 4GB }}\n{settings}'
        )
        self.process: subprocess.Popen[bytes] | None = None
        self.used = 0.0
        self.start()

    def start(self) -> None:
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                ["nats-server", "-c", str(self.configuration)], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        until = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                assert self.process.poll() is None, (self.folder / "log").read_text()
                assert time.monotonic() < until, "nats-server does not listen"
                time.sleep(0.05)

    def end(self, number: int = signal.SIGKILL) -> None:
        assert self.process is not None
        self.used += self._cpu()
        self.process.send_signal(number)
        self.process.wait(20)
        self.process = None

    def stop(self) -> None:
        if self.process is not None:
            self.end(signal.SIGTERM)

    def cpu(self) -> float:
        """Seconds, of all its lives."""
        return self.used + self._cpu()

    def _cpu(self) -> float:
        import psutil

        return sum(psutil.Process(self.process.pid).cpu_times()[:2]) if self.process is not None else 0.0

    def forget(self, share: float) -> int:
        """What a power cut takes that comes before the sync: the end of each file of messages. Returns bytes."""
        assert self.process is None
        lost = 0
        for path in glob.glob(f"{self.store}/**/msgs/*.blk", recursive=True):
            size = os.path.getsize(path)
            os.truncate(path, int(size * (1 - share)))
            lost += size - os.path.getsize(path)
        return lost
