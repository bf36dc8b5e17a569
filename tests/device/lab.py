"""A test device: a Debian root with real systemd, booted by systemd-nspawn in about a second, and taken away again.

Nothing is registered with the host (it may run no systemd at all): the container gets a cgroup of its own and is driven
with nsenter. Each device has its own ext4 on a loop mount, so it starts clean, and a fanotify mark on "the whole file
system" sees this device only. `net="veth"` gives it a cable to the host's network namespace.

What such a device cannot do, see docs/testing.md: no proc connector, no audit, no USB, and no controllers where the
host has none.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from tests.device.cache import made
from tests.device.leftovers import Remains, reaper
from tests.device.machine import PATH, Machine, Result, command

BOOT_S = 120.0  # a boot takes about one second, fifty on an emulated or very busy machine
DISK_BYTES = "1500M"  # of a device, sparse


def mounted(kind: str, option: str = "") -> str:
    """Where a file system of that kind is mounted, "" if nowhere."""
    for line in Path("/proc/mounts").read_text().splitlines():
        _source, where, fstype, options = line.split()[:4]
        if fstype == kind and option in options:
            return where
    return ""


def disk_image(tar: Path) -> Path:
    """The ext4 image of a root, made once and kept in the cache under the tar's size and time."""
    status = tar.stat()
    key = hashlib.sha256(f"{tar.name}:{status.st_size}:{status.st_mtime_ns}:{DISK_BYTES}".encode()).hexdigest()[:12]

    def make(part: Path) -> None:
        with tempfile.TemporaryDirectory(prefix=".tree-", dir=part.parent) as folder:
            tree = Path(folder)
            command("tar", "-C", tree, "--numeric-owner", "--xattrs", "--xattrs-include=*", "-xpf", tar, timeout=600)
            tree.chmod(0o755)
            (tree / "etc/fstab").write_text("")  # the root is mounted already
            command("truncate", "-s", DISK_BYTES, part)
            command("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0", "-d", tree, part, timeout=600)

    return made(f"device-{key}.ext4", make)


class Device(Machine):
    """A device whose kernel is the host's."""

    def __init__(self, image: Path, *, net: str = "private") -> None:
        self.image = image
        self.net = net
        self.name = f"egdev{os.getpid()}x{random.randrange(1 << 16):04x}"
        self.folder = Path(tempfile.mkdtemp(prefix=self.name + "-", dir=image.parent))
        self.root = self.folder / "root"
        self.host_address = self.address = self.link = ""  # link: the host's end of the cable
        self._process: subprocess.Popen[bytes] | None = None
        self._leader = 0
        self._cgroups = [top for top in (mounted("cgroup2"), mounted("cgroup", "name=systemd")) if top]
        self._remains = Remains(self.name, str(self.folder), tuple(self._cgroups))
        reaper.keep(self._remains)

    # -------------------------------------------------------------- life

    def start(self) -> None:
        """Boot; after stop() or kill() the same disk again."""
        if not self.root.is_mount():
            disk = self.folder / "disk.ext4"
            command("cp", "--sparse=always", self.image, disk)
            self.root.mkdir(exist_ok=True)
            command("mount", "-o", "loop", disk, self.root)
        if self.net == "veth" and not self.address:
            self._lay_cable()
        listener = self._notify_socket()
        began = time.monotonic()
        with (self.folder / "console.log").open("ab") as log:
            self._process = subprocess.Popen(
                self._nspawn(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={
                    "PATH": PATH,
                    "NOTIFY_SOCKET": str(self.folder / "notify"),
                    "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1",
                    "SYSTEMD_NSPAWN_LOCK": "0",
                    # nspawn's own filter would forbid fanotify and nftables; units keep theirs, as on a device
                    "SYSTEMD_SECCOMP": "0",
                    "SYSTEMD_NSPAWN_API_VFS_WRITABLE": "1",
                },
                preexec_fn=self._enter_own_cgroup,  # noqa: PLW1509 - no thread ever runs here
            )
        with listener:
            self._await_boot(listener, began + BOOT_S)
        self.boot_seconds = time.monotonic() - began

    def _nspawn(self) -> list[str]:
        words = ["systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--boot", "--link-journal=no"]
        words += ["--resolv-conf=off", "--timezone=off", "--notify-ready=yes", "--console=read-only"]
        # All that a device of its own has, but this machine's clock: a first change of the time zone already moves it.
        words += ["--capability=all", "--drop-capability=CAP_SYS_TIME"]
        words += [f"--machine={self.name}", f"--directory={self.root}"]
        words += [f"--network-namespace-path=/run/netns/{self.name}" if self.address else "--private-network"]
        return words

    def _notify_socket(self) -> socket.socket:
        (self.folder / "notify").unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        listener.bind(str(self.folder / "notify"))
        listener.settimeout(0.5)
        return listener

    def _await_boot(self, listener: socket.socket, deadline: float) -> None:
        assert self._process
        while time.monotonic() < deadline:
            try:
                lines = listener.recv(8192).decode(errors="replace").splitlines()
            except TimeoutError:
                if self._process.poll() is not None:
                    raise RuntimeError(f"nspawn ended: {self.console()[-1500:]}") from None
                continue
            for line in lines:
                if line.startswith("X_NSPAWN_LEADER_PID="):
                    self._leader = int(line.partition("=")[2])
            if "READY=1" in lines:
                return
        raise TimeoutError(f"no boot within {BOOT_S} s: {self.console()[-1500:]}")

    def _enter_own_cgroup(self) -> None:
        self._enter_cgroup("")  # nspawn makes its payload below this

    def _enter_cgroup(self, below: str) -> None:
        """In the child: so that it is found when everything is taken away."""
        for top in self._cgroups:
            own = Path(top, self.name, below)
            own.mkdir(exist_ok=True)
            (own / "cgroup.procs").write_text("0")

    def _lay_cable(self) -> None:
        number = 1 + random.randrange(250)
        self.link = end = f"eg{number}h{os.getpid() % 10000}"
        self.host_address, self.address = f"10.77.{number}.1", f"10.77.{number}.2"
        command("ip", "netns", "add", self.name)
        command("ip", "link", "add", end, "type", "veth", "peer", "name", "eth0", "netns", self.name)
        command("ip", "addr", "add", f"{self.host_address}/24", "dev", end)
        command("ip", "link", "set", end, "up")
        command("ip", "-n", self.name, "addr", "add", f"{self.address}/24", "dev", "eth0")
        for link in ("eth0", "lo"):
            command("ip", "-n", self.name, "link", "set", link, "up")

    def stop(self, timeout: float = 40) -> None:
        """An orderly power-off."""
        if self._process and self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._leader, signal.SIGRTMIN + 4)
            try:
                self._process.wait(timeout)
            except subprocess.TimeoutExpired:
                self.kill()

    def kill(self) -> None:
        """All processes vanish at once. The disk loses nothing: the host's page cache survives."""
        if self._process and self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._leader, signal.SIGKILL)
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(10)

    def reset(self) -> None:
        self.kill()
        self.start()

    def close(self) -> None:
        try:
            if self._leader:
                self.stop(15)
            elif self._process and self._process.poll() is None:
                self._process.kill()
                self._process.wait(10)
        finally:
            self._remains.take_away()
            reaper.forget(self._remains)

    # -------------------------------------------------------------- work

    def enter(self, *words: str, user: str = "") -> list[str]:
        """The host's command that runs `words` inside, as root or as `user`."""
        inside = ["nsenter", "-t", str(self._leader), "-m", "-u", "-i", "-n", "-p", "-C", "--"]
        inside += ["/usr/bin/env", "-i", f"PATH={PATH}", "HOME=/root", "LANG=C.UTF-8"]
        inside += ["runuser", "-u", user, "--"] if user else []
        return [*inside, *words]

    def begin(self, script: str, *, user: str = "") -> subprocess.Popen[str]:
        """Start a shell script inside, in a session of its own."""
        return subprocess.Popen(
            self.enter("/bin/sh", "-c", script, user=user),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
            # nsenter stops itself when systemd's shutdown stops its child, and would stay for ever
            preexec_fn=lambda: self._enter_cgroup("entered"),  # noqa: PLW1509 - no thread ever runs here
        )

    def run(self, script: str, *, timeout: float = 60, user: str = "") -> Result:
        """Run a shell script inside to its end; exit code 124 if it does not end in time."""
        process = self.begin(script, user=user)
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            out, err = process.communicate()
            return Result(124, out, f"{err}\n[no end within {timeout} s]")
        return Result(process.returncode, out, err)

    def inside(self, path: str) -> Path:
        """A path of the device as the host reaches it, mounts of the device included (/run, /tmp)."""
        return Path(f"/proc/{self._leader}/root", path.lstrip("/"))

    def write(self, path: str, data: bytes | str, mode: int = 0o644) -> None:
        target = self.inside(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data if isinstance(data, bytes) else data.encode())
        target.chmod(mode)

    def read(self, path: str) -> bytes:
        return self.inside(path).read_bytes()

    def cable(self, *, up: bool) -> None:
        assert self.address, 'the device has no cable: net="veth"'
        command("ip", "link", "set", self.link, "up" if up else "down")

    def console(self) -> str:
        with contextlib.suppress(FileNotFoundError):
            return (self.folder / "console.log").read_text(errors="replace")
        return ""
