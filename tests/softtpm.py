"""A TPM 2.0 in software (swtpm) on a socket, for tests: started, stopped, stopped dead, exchanged. Needs no root."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

WAIT_S = 10.0


def needed() -> None:
    """Skip where it cannot be had."""
    for program, package in (("swtpm", "swtpm"), ("tpm2_sign", "tpm2-tools")):
        if not shutil.which(program):
            pytest.skip(f"no {program}: apt-get install {package}")
    if not list(Path("/usr/lib").glob("*/libtss2-tcti-swtpm.so*")):
        pytest.skip("tpm2-tools do not reach swtpm: apt-get install libtss2-tcti-swtpm0")


class SoftTpm:
    def __init__(self) -> None:
        self.directory = tempfile.mkdtemp(prefix="eg-tpm-")  # short: a socket's path has 107 bytes
        self.process: subprocess.Popen | None = None

    @property
    def tcti(self) -> str:
        return f"swtpm:path={self.directory}/socket"

    def start(self) -> None:
        os.makedirs(f"{self.directory}/state", exist_ok=True)
        socket = f"{self.directory}/socket"
        words = ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={self.directory}/state"]
        words += ["--server", f"type=unixio,path={socket}", "--ctrl", f"type=unixio,path={socket}.ctrl"]
        words += ["--flags", "not-need-init,startup-clear"]
        self.process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until = time.monotonic() + WAIT_S
        while not os.path.exists(f"{socket}.ctrl") or not os.path.exists(socket):
            assert time.monotonic() < until, "swtpm does not start"
            time.sleep(0.01)

    def stop(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
            self.process.wait(WAIT_S)
            self.process = None
        for name in ("socket", "socket.ctrl"):
            Path(self.directory, name).unlink(missing_ok=True)

    def freeze(self) -> None:
        """It is there and never answers."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def exchange(self) -> None:
        """Another TPM in its place, with nothing in it: as after a clear."""
        self.stop()
        shutil.rmtree(f"{self.directory}/state")
        self.start()

    def tool(self, *words: str) -> None:
        """One of tpm2-tools, as an operator calls it; there is no resource manager that would tidy up after it."""
        for command in (words, ("tpm2_flushcontext", "-t")):
            environment = {**os.environ, "TPM2TOOLS_TCTI": self.tcti}
            subprocess.run(command, env=environment, check=True, capture_output=True, cwd=self.directory)

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self.directory)
