"""What a journey may do with a device, whatever it runs on: one vocabulary, one word for one thing.

Two levels speak it. `lab.Device` boots a Debian root by systemd-nspawn: a second, but the host's kernel.
`emulated.Emulated` is a machine of its own under QEMU, slow, with its own kernel, bus, clock, cable and power. Words
that only a whole machine can give (usb_add, clock_jump, power_cut, freeze ...) stand there.
"""

from __future__ import annotations

import abc
import subprocess
import time
from pathlib import Path
from typing import NamedTuple, Self

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
FILLER = "/.filler"


def command(*words: str | Path, timeout: float = 120, check: bool = True) -> str:
    """Run one command on the host; RuntimeError with its words when it fails."""
    done = subprocess.run(
        [str(word) for word in words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=timeout,
        check=False,
    )
    if check and done.returncode:
        raise RuntimeError(f"{words[0]}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


class Result(NamedTuple):
    code: int
    out: str
    err: str

    def ok(self) -> Self:
        if self.code:
            raise RuntimeError(f"exit {self.code}: {self.out[-2000:]}{self.err[-2000:]}")
        return self


class Machine(abc.ABC):
    """One device. Use it with `with`: leaving takes everything away."""

    slow = 1.0  # how many times longer things take than on the host; whoever waits multiplies by it
    pause = 0.1  # seconds between two looks of somebody who waits
    boot_seconds = 0.0  # of the last start

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_why: object) -> None:
        self.close()

    # -------------------------------------------------------------- life

    @abc.abstractmethod
    def start(self) -> None:
        """Boot; after any end the same disk again."""

    @abc.abstractmethod
    def stop(self, timeout: float = 40) -> None:
        """An orderly power-off."""

    @abc.abstractmethod
    def reset(self) -> None:
        """The reset button: no warning, no synchronisation; up again afterwards."""

    @abc.abstractmethod
    def close(self) -> None:
        """Take the device and everything of it away."""

    def reboot(self) -> None:
        """An orderly restart."""
        self.stop()
        self.start()

    # -------------------------------------------------------------- work

    @abc.abstractmethod
    def run(self, script: str, *, timeout: float = 60, user: str = "") -> Result:
        """Run a shell script inside to its end, as root or as `user`; code 124 if it does not end in time."""

    @abc.abstractmethod
    def write(self, path: str, data: bytes | str, mode: int = 0o644) -> None:
        """Make or overwrite a file of the device, and the directories that lead to it."""

    @abc.abstractmethod
    def read(self, path: str) -> bytes:
        """A file of the device."""

    @abc.abstractmethod
    def console(self) -> str:
        """What the device said while it booted."""

    def wait(self, script: str, *, timeout: float, every: float = 0) -> Result:
        """Until the script succeeds; RuntimeError with its last words after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while True:
            result = self.run(script, timeout=max(1.0, deadline - time.monotonic()))
            if result.code == 0 or time.monotonic() > deadline:
                return result.ok()
            time.sleep(every or self.pause)

    # -------------------------------------------------------------- the world around it

    @abc.abstractmethod
    def cable(self, *, up: bool) -> None:
        """Plug the network cable in, or pull it."""

    def fill_disk(self) -> None:
        """Take all room of the root file system, root's reserve included."""
        # All but the last megabytes in one call, which writes nothing; those to the last byte. ext4 keeps 16 MiB back
        # from such calls, more than that is left to the bytes.
        most = f"fallocate -l $(($(stat -f -c '%f*%S/1024' /)-24576))K {FILLER}"
        self.run(f"{most} && {{ cat /dev/zero >>{FILLER}; sync; }}", timeout=60 * max(self.slow, 5)).ok()

    def free_disk(self) -> None:
        self.run(f"rm -f {FILLER}; sync").ok()
