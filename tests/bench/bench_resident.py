"""What the resident daemon costs after it learned 50,000 files: memory, CPU and wake-ups in an idle window.

The real daemon from this tree runs with the vendor's rules over a tree of its own and all sensors of this machine.
Where there is no USB here, pyudev is not loaded by the daemon; what it adds is then measured beside it and counted in.
Needs root for the best rungs (without them a daemon polls, which is another figure). Window: EDGEGUARD_BENCH_S seconds.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from window import CPU_S_PER_HOUR, PRIVATE_DIRTY_KB, RSS_KB, WAKEUPS_PER_MINUTE, memory, use

TREE = Path(__file__).resolve().parents[2]
FILES = 50_000
WINDOW_S = float(os.environ.get("EDGEGUARD_BENCH_S", "60"))
LEARN_S = 300.0
WINDOWS = 3  # tries to find one in which the machine does nothing else
# Each start makes the guard look for new ports four times; an idle machine starts no programs.
IDLE_FORKS = 0.5  # processes a minute
SETTLE_S = 12.0  # the first sweep, the first seal and the last helper are over by then

SETTINGS = """name = "bench"
[paths]
state = "{root}/state"
runtime = "{root}/run"
exchange = "{root}/exchange"
vendor_policy = "{root}/vendor"
site_policy = "{root}/site"
trust = "{root}/trust"
libexec = "{tree}/packaging/bin"
act_socket = "{root}/run/act.sock"
"""
WATCH = '[[watch]]\npath = "{root}/files"\ncategory = "program"\n\n[[watch]]\npath = "/usr/bin"\ncategory = "program"\n'
PYUDEV = """
import sys
sys.path[:0] = [{tree!r}]
sys.path.append("/usr/lib/python3/dist-packages")
def memory():
    rows = dict(line.split()[:2] for line in open("/proc/self/smaps_rollup") if ":" in line.split()[0])
    return int(rows["Rss:"]), int(rows["Private_Dirty:"])
from edgeguard import typing_names
typing_names.install()
import edgeguard.daemon.main, edgeguard.daemon.sensors
from edgeguard.sensors import usb
before = memory()
pyudev = usb._pyudev()
monitor = pyudev.Monitor.from_netlink(pyudev.Context())
after = memory()
print(after[0] - before[0], after[1] - before[1])
"""


def figure(name: str, value: float, unit: str, bar: float, reference: str = "") -> None:
    print(json.dumps({"name": name, "value": value, "unit": unit, "bar": bar, "reference": reference}))


def make_world(root: Path) -> Path:
    for number in range(FILES // 100):
        directory = root / "files" / f"{number % 20:02d}" / f"{number:03d}"
        directory.mkdir(parents=True)
        for item in range(100):
            (directory / f"file-{item:02d}").write_bytes(b"%d %d\n" % (number, item))
    (root / "vendor").mkdir()
    (root / "site").mkdir()
    shutil.copy(TREE / "packaging/policy.d/20-rules.toml", root / "vendor")
    (root / "site/10-watches.toml").write_text(WATCH.format(root=root))
    settings = root / "agent.toml"
    settings.write_text(SETTINGS.format(root=root, tree=TREE))
    return settings


def learned(root: Path) -> bool:
    try:
        status = json.loads((root / "run/status.json").read_text())
    except (OSError, ValueError):
        return False
    return status["policy"] is not None and status["areas"]["files"]["checked"] is not None


def added_by_pyudev() -> tuple[int, int]:
    code = PYUDEV.format(tree=str(TREE))
    done = subprocess.run(
        ["/usr/bin/python3", "-ISOO", "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    if done.returncode:
        print(f"pyudev cannot be measured here: {done.stderr.strip().splitlines()[-1]}")
        return 0, 0
    rss, dirty = done.stdout.split()
    return int(rss), int(dirty)


def measure(pid: int, root: Path) -> None:
    deadline = time.monotonic() + LEARN_S
    while not learned(root):
        if time.monotonic() > deadline:
            raise TimeoutError("learning did not end")
        time.sleep(0.5)
    time.sleep(SETTLE_S)
    for _ in range(WINDOWS):
        forks, before, start = forked(), use(pid), time.monotonic()
        time.sleep(WINDOW_S)
        after, span = use(pid), time.monotonic() - start
        others = (forked() - forks) / span * 60
        if others <= IDLE_FORKS:
            break
    sizes = memory(pid)
    extra = (0, 0)
    if "pyudev" not in loaded(pid):
        extra = added_by_pyudev()
    figure("resident: RSS", sizes["Rss"] + extra[0], "kB", RSS_KB, f"{extra[0]} kB of it: pyudev, measured beside")
    figure("resident: private dirty", sizes["Private_Dirty"] + extra[1], "kB", PRIVATE_DIRTY_KB, f"{extra[1]} kB")
    cpu = (after.cpu_ns - before.cpu_ns) / 1e9 / span * 3600
    wakeups = round((after.wakeups - before.wakeups) / span * 60, 2)
    if others <= IDLE_FORKS:
        figure("resident: idle CPU", round(cpu, 3), "s/h", CPU_S_PER_HOUR)
        figure("resident: wake-ups", wakeups, "/min", WAKEUPS_PER_MINUTE)
    else:
        print(f"not idle here: {others:.0f} processes a minute started; the daemon took {cpu:.1f} s/h, {wakeups}/min")


def forked() -> int:
    """Processes that this machine has started since boot."""
    for line in Path("/proc/stat").read_text().splitlines():
        if line.startswith("processes "):
            return int(line.split()[1])
    return 0


def loaded(pid: int) -> str:
    """Libraries that the daemon maps; pyudev brings libudev."""
    return "pyudev" if "libudev" in Path(f"/proc/{pid}/maps").read_text() else ""


def main() -> int:
    if os.geteuid():
        print("the best rungs need root")
        return 77
    root = Path(tempfile.mkdtemp(prefix="edgeguard-bench-"))
    try:
        settings = make_world(root)
        flags = ["-ISOO", "-X", f"pycache_prefix={root}/pyc"]  # as in systemd/edgeguard.service
        command = ["/usr/bin/python3", *flags, str(TREE / "packaging/bin/edgeguardd"), "--settings", str(settings)]
        with open(root / "log", "wb") as log, subprocess.Popen(command, stderr=log, stdout=log) as daemon:
            try:
                measure(daemon.pid, root)
            finally:
                daemon.send_signal(signal.SIGTERM)
                daemon.wait(20)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
