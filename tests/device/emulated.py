"""An emulated device: Debian's own kernel and systemd on a machine of its own, under QEMU. No root is needed.

It has what a container has not: its own kernel (proc connector, audit, sysctls, clock), a USB bus, a cable, power that
can fail. Every device writes to an overlay, so it starts clean and the image is never written. A device that was booted
once and frozen thaws in seconds. amd64 runs on KVM where there is one; else, and for ARM, every instruction is
translated: 25 to 50 times slower than the host.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests.device.channel import Agent, Gone, Monitor
from tests.device.leftovers import Remains, reaper
from tests.device.machine import PATH, Machine, Result, command

PR_SET_PDEATHSIG = 1  # linux/prctl.h
BOOT_S = 400.0  # translated, beside others, a boot has taken 70 seconds
CHUNK = 1 << 20  # bytes of a file in one message to the agent
OUTSIDE, PORT = "10.0.2.100", 7443  # where `outside=` is reached


class Board(NamedTuple):
    """What QEMU emulates for an architecture."""

    program: str
    package: str
    words: tuple[str, ...]
    tty: str
    cpus: int = 2


BOARDS = {
    "arm64": Board(
        "qemu-system-aarch64", "qemu-system-arm", ("-M", "virt,gic-version=3", "-cpu", "cortex-a72"), "ttyAMA0"
    ),
    # With its time by instructions, a second processor of this one keeps the first from ever booting (QEMU 7.2).
    "armhf": Board("qemu-system-arm", "qemu-system-arm", ("-M", "virt", "-cpu", "cortex-a15"), "ttyAMA0", cpus=1),
    "amd64": Board(
        "qemu-system-x86_64", "qemu-system-x86", ("-M", "q35", "-cpu", "qemu64,+ssse3,+sse4.1,+sse4.2"), "ttyS0"
    ),
}
USB = {"storage": "usb-storage", "keyboard": "usb-kbd", "serial": "usb-serial", "network": "usb-net"}


def kvm() -> bool:
    """Does the processor run guests? Without these modules /dev/kvm may open, for guests that were made for it only."""
    if not any(Path("/sys/module", name).exists() for name in ("kvm_intel", "kvm_amd")):
        return False
    try:
        os.close(os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def accelerator(arch: str) -> list[str]:
    """How instructions are run, as words for QEMU.

    Translated, the device's time goes by instructions and not by the host's clock: 2 ns each, so it believes itself a
    board of 500 million instructions a second however little this machine gives it. Else a busy host would make its
    timeouts and watchdogs strike at a device on which nothing is wrong.
    """
    if arch == "amd64" and kvm():
        return ["-accel", "kvm"]
    return ["-accel", "tcg,thread=single", "-icount", "shift=1"]


def machine_words(arch: str, memory_mb: int = 768) -> list[str]:
    """The machine itself. A frozen device fits these words and this QEMU, and no others."""
    board = BOARDS[arch]
    words = [board.program, *board.words, *accelerator(arch), "-smp", str(board.cpus), "-m", str(memory_mb)]
    words += ["-nodefaults", "-no-user-config", "-display", "none", "-device", "virtio-serial-pci"]
    words += ["-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0", "-device", "virtio-rng-pci"]
    words += ["-device", "virtio-net-pci,netdev=cable,id=nic0,romfile=", "-device", "qemu-xhci,id=xhci"]
    return words


class Emulated(Machine):
    """One emulated device.

    `frozen`: thaw it instead of the first boot. `rtc`: what the battery-backed clock says at the next boot, "" for the
    right time. `sd`: the disk is an SD card, /dev/mmcblk0. `outside`: a port of the host's 127.0.0.1 that the device
    reaches as OUTSIDE:7443; it reaches nothing else. `extra`: further words for QEMU (then nothing can thaw).
    """

    def __init__(
        self,
        image: Path,
        arch: str,
        *,
        frozen: Path | None = None,
        rtc: str = "",
        sd: bool = False,
        outside: int = 0,
        extra: Sequence[str] = (),
    ) -> None:
        self.image, self.arch, self.frozen = image, arch, frozen
        self.rtc, self.sd, self.outside, self.extra = rtc, sd, outside, list(extra)
        self.slow, self.pause = (4.0, 0.3) if "kvm" in accelerator(arch) else (50.0, 3.0)
        self.folder = Path(tempfile.mkdtemp(prefix="egemu-"))
        self.disk = self.folder / "disk.qcow2"
        self._process: subprocess.Popen[bytes] | None = None
        self._monitor: Monitor | None = None
        self._agent: Agent | None = None
        self._plugged: set[str] = set()  # USB devices with a medium
        self._remains = Remains(self.folder.name, str(self.folder), ())  # QEMU itself dies with the tests
        reaper.keep(self._remains)
        overlay(self.disk, (frozen or image) / "disk.qcow2")

    # -------------------------------------------------------------- life

    def start(self) -> None:
        """Boot, or thaw the first time where `frozen` is given; until systemd has settled."""
        assert not self.running(), "runs already"
        for name in ("monitor", "agent"):
            (self.folder / name).unlink(missing_ok=True)
        began = time.monotonic()
        thaw, self.frozen = self.frozen, None
        words = self._words()
        if thaw:
            words += ["-incoming", f"exec:zstd -qdc {shlex.quote(str(thaw / 'state.zst'))}"]
        with (self.folder / "qemu.log").open("ab") as log:
            self._process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=_die_with_parent,  # noqa: PLW1509 - no thread ever runs here
            )
        try:
            self._monitor = Monitor(self.folder / "monitor")
            if thaw:
                self._go_on(began + BOOT_S)
            self._settle(began + BOOT_S)
            if thaw:
                self.set_clock(time.time())
        except Gone as error:
            raise Gone(f"{error}\n{self._said()}") from error
        self.boot_seconds = time.monotonic() - began

    def _words(self) -> list[str]:
        root = "/dev/mmcblk0" if self.sd else "/dev/vda"
        line = f"console={BOARDS[self.arch].tty} root={root} loglevel=4 panic=-1 audit=1"
        words = machine_words(self.arch)
        words += ["-qmp", f"unix:{self.folder}/monitor,server=on,wait=off"]
        words += ["-chardev", f"socket,id=agent,path={self.folder}/agent,server=on,wait=off"]
        words += ["-chardev", f"file,id=console,path={self.folder}/console.log,append=on", "-serial", "chardev:console"]
        words += ["-netdev", self._cable()]
        words += ["-drive", f"if=none,id=root,file={self.disk},format=qcow2,cache=writeback,discard=unmap"]
        if self.sd:
            words += ["-device", "sdhci-pci,id=sdhci0", "-device", "sd-card,drive=root,bus=sd-bus"]
        else:
            words += ["-device", "virtio-blk-pci,drive=root,serial=root"]
        words += ["-rtc", f"base={self.rtc},clock=vm" if self.rtc else "base=utc"]
        words += ["-kernel", str(self.image / "vmlinuz"), "-initrd", str(self.image / "initrd.img"), "-append", line]
        return words + self.extra

    def _cable(self) -> str:
        """QEMU's own network, from which nothing leads outside but the one way that was asked for."""
        words = "user,id=cable,restrict=on"
        if self.outside:
            carry = f"{shutil.which('nc')} 127.0.0.1 {self.outside}"
            words += f",guestfwd=tcp:{OUTSIDE}:{PORT}-cmd:{carry}"
        return words

    def _go_on(self, deadline: float) -> None:
        while (state := self.monitor.ask("query-status")["status"]) in ("inmigrate", "postmigrate"):
            self._alive(deadline)
            time.sleep(0.05)
        if state == "paused":
            self.monitor.ask("cont")

    def _settle(self, deadline: float) -> None:
        self._reach(deadline)
        self.run("systemctl is-system-running --wait", timeout=max(1, deadline - time.monotonic()))

    def _reach(self, deadline: float) -> None:
        """A fresh wire to the agent, as soon as there is one."""
        if self._agent:
            self._agent.close()
            self._agent = None
        while not self._agent:
            self._alive(deadline)
            with contextlib.suppress(Gone):
                self._agent = Agent(self.folder / "agent", timeout=3)

    def _alive(self, deadline: float) -> None:
        if not self.running():
            raise Gone("QEMU has ended")
        if time.monotonic() > deadline:
            raise Gone("not up in time")

    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def monitor(self) -> Monitor:
        assert self._monitor, "not running"
        return self._monitor

    @property
    def agent(self) -> Agent:
        assert self._agent, "not running"
        return self._agent

    def stop(self, timeout: float = 40) -> None:
        if self.running():
            self.agent.send("guest-shutdown", {"mode": "powerdown"})
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process and self._process.wait(timeout * self.slow)
        self._end()

    def reboot(self) -> None:
        self.monitor.forget("RESET")
        self.agent.send("guest-shutdown", {"mode": "reboot"})
        self._again()

    def reset(self) -> None:
        self.monitor.forget("RESET")
        self.monitor.ask("system_reset")
        self._again()

    def _again(self) -> None:
        began = time.monotonic()
        self.monitor.event("RESET", 40 * self.slow)
        self._settle(time.monotonic() + BOOT_S)
        self.boot_seconds = time.monotonic() - began

    def power_cut(self) -> None:
        """The plug is pulled: what only the device's memory knew is lost. start() boots again from the same disk.

        What the device had handed to its disk, flushed or not, is there afterwards: the host keeps it.
        """
        self._end()

    def _end(self) -> None:
        if self._process and self._process.poll() is None:
            self._process.kill()
            self._process.wait(20)
        for wire in (self._monitor, self._agent):
            if wire:
                wire.close()
        self._monitor = self._agent = None
        self._plugged.clear()

    def close(self) -> None:
        self._end()
        self._remains.take_away()
        reaper.forget(self._remains)

    def freeze(self, folder: Path) -> None:
        """Keep this device, memory and disk, in `folder`, for `frozen=` of later ones. It ends here."""
        folder.mkdir(parents=True, exist_ok=True)
        self.run("sync; echo 3 >/proc/sys/vm/drop_caches", timeout=60 * self.slow).ok()
        self.monitor.ask("stop")
        self.monitor.ask("migrate-set-parameters", max_bandwidth=1 << 40)
        self.monitor.ask("migrate", uri=f"exec:zstd -q -1 -c >{shlex.quote(str(folder / 'state.zst'))}")
        while (state := self.monitor.ask("query-migrate").get("status")) not in ("completed", "failed"):
            time.sleep(0.1)
        if state == "failed":
            raise RuntimeError(f"not frozen: {self._said()}")
        self.monitor.ask("quit")
        if self._process:
            self._process.wait(60)
        self._end()
        shutil.move(self.disk, folder / "disk.qcow2")

    def export_disk(self, target: Path) -> None:
        """After an end: the disk as a raw, sparse file, to be looked at on the host."""
        assert not self.running(), "still running"
        command("qemu-img", "convert", "-O", "raw", self.disk, target, timeout=300)

    # -------------------------------------------------------------- work

    def run(self, script: str, *, timeout: float = 60, user: str = "") -> Result:
        code, out, err = self._run(script, timeout=timeout, user=user)
        return Result(code, out.decode(errors="replace"), err.decode(errors="replace"))

    def _run(self, script: str, given: bytes = b"", *, timeout: float = 60, user: str = "") -> tuple[int, bytes, bytes]:
        if user:
            script = f"exec runuser -u {shlex.quote(user)} -- /bin/sh -c {shlex.quote(script)}"
        return self.agent.run(script, given, [f"PATH={PATH}", "HOME=/root", "LANG=C.UTF-8"], timeout)

    def write(self, path: str, data: bytes | str, mode: int = 0o644) -> None:
        content = data if isinstance(data, bytes) else data.encode()
        name = shlex.quote(path)
        script = f"mkdir -p $(dirname {name}) && cat >{name} && chmod {mode:o} {name}"
        for start in range(0, max(1, len(content)), CHUNK):
            given = content[start : start + CHUNK]
            code, _out, err = self._run(script if given else f"{script} </dev/null", given)
            if code:
                raise RuntimeError(f"{path}: {err.decode(errors='replace')}")
            script = f"cat >>{name}"

    def read(self, path: str) -> bytes:
        code, out, err = self._run(f"cat {shlex.quote(path)}")
        if code:
            raise FileNotFoundError(f"{path}: {err.decode(errors='replace')}")
        return out

    def console(self) -> str:
        with contextlib.suppress(FileNotFoundError):
            return (self.folder / "console.log").read_text(errors="replace")
        return ""

    def _said(self) -> str:
        return (self.folder / "qemu.log").read_text(errors="replace")[-1500:] + self.console()[-1500:]

    # -------------------------------------------------------------- the world around it

    def cable(self, *, up: bool) -> None:
        self.monitor.ask("set_link", name="nic0", up=up)

    def usb_add(self, kind: str, name: str, **properties: Any) -> None:
        """Plug a device in: storage, keyboard, serial or network; `serial=`, `port=` and QEMU's other properties."""
        driver = USB[kind]
        words: dict[str, Any] = {"driver": driver, "id": name, "bus": "xhci.0", **properties}
        if kind == "storage":
            medium = self.folder / f"{name}.img"
            command("truncate", "-s", "16M", medium)
            file = {"driver": "file", "filename": str(medium)}
            self.monitor.ask("blockdev-add", driver="raw", node_name=f"{name}-medium", file=file)
            self._plugged.add(name)
            words["drive"] = f"{name}-medium"
        elif kind == "serial":
            self.monitor.ask("chardev-add", id=f"{name}-line", backend={"type": "null", "data": {}})
            words |= {"chardev": f"{name}-line", "always-plugged": True}
        elif kind == "network":
            self.monitor.ask("netdev_add", type="user", id=f"{name}-net", restrict=True)
            words["netdev"] = f"{name}-net"
        self.monitor.ask("device_add", **words)

    def usb_remove(self, name: str) -> None:
        self.monitor.ask("device_del", id=name)
        self.monitor.event("DEVICE_DELETED", 30 * self.slow, lambda data: data.get("device") == name)
        if name in self._plugged:
            self._plugged.discard(name)
            self.monitor.ask("blockdev-del", node_name=f"{name}-medium")

    def clock_jump(self, seconds: float) -> None:
        """The wall clock leaps, as after a wrong answer from a time server."""
        self.set_clock(float(self.run("date +%s").ok().out) + seconds)

    def set_clock(self, seconds: float) -> None:
        # not the agent's own word for it: that wants hwclock, which Debian 13 no longer installs
        self.run(f"date -s @{seconds:.3f}").ok()

    def stand_still(self, seconds: float) -> None:
        """The whole machine stops for a while, as one whose host has no time for it."""
        self.monitor.ask("stop")
        time.sleep(seconds)
        self.monitor.ask("cont")


def overlay(disk: Path, backing: Path) -> None:
    """A disk that reads from `backing` what was not written to itself."""
    command("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", backing, disk)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
