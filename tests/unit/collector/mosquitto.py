"""A mosquitto of our own on 127.0.0.1, configured as `edgeguard-collector add-broker` says, and what speaks to it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

from small_world import Device
from world import Serving, known

from edgeguard.collector import broker
from edgeguard.collector.main import main as collector_main
from edgeguard.settings import Uplink

PROGRAM = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/sbin") or ""


class Mosquitto:
    """The broker process. `more`: lines of configuration that win over the generated ones."""

    def __init__(self, directory: str, more: str = "", *, conf: str = "") -> None:
        self.folder = f"{directory}/broker"
        if not os.path.isdir(self.folder):
            assert collector_main(["add-broker", directory, "--host", "127.0.0.1", "--host", "localhost"]) == 0
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        text = conf or Path(self.folder, "mosquitto.conf").read_text()
        text = text.replace("listener 8883", f"listener {self.port} 127.0.0.1").replace(broker.PLACE, self.folder)
        keys = {line.split()[0] for line in more.splitlines() if line}
        lines = [line for line in text.splitlines() if not line or line.split()[0] not in keys]
        self.conf = f"{self.folder}/test.conf"
        # It would else become user mosquitto, who may not read below a test's directory.
        Path(self.conf).write_text("\n".join([*lines, "user root", more]) + "\n")
        self.process: subprocess.Popen | None = None
        self.start()

    def start(self) -> None:
        with open(f"{self.folder}/log", "ab") as log:
            self.process = subprocess.Popen([PROGRAM, "-c", self.conf, "-v"], stdout=log, stderr=log)
        for _ in range(200):
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
            except OSError:
                assert self.process.poll() is None, self.log()
                time.sleep(0.05)
            else:
                return
        raise AssertionError(self.log())

    def log(self) -> str:
        return Path(self.folder, "log").read_text(errors="replace")

    def stop(self, number: int = signal.SIGTERM) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)
            self.process.wait(20)


def receiving(directory: str, port: int, more: str = "") -> Serving:
    """A collector that receives from the broker at `port`, and waits until it does."""
    Path(directory, "edgeguard-collector.toml").write_text(f'[mqtt]\nurl = "mqtts://127.0.0.1:{port}"\n{more}')
    serving = Serving(directory)
    line = serving.process.stderr.readline()
    assert line.startswith("mqtt: receiving from"), line
    return serving


def by_mqtt(device: Device, directory: str, port: int, **changes) -> None:
    at = known(directory, 1) | {"url": f"mqtts://127.0.0.1:{port}"} | changes
    device.settings = device.settings._replace(uplink=Uplink(**at))
