"""A burst of files while the daemon gets a hundredth of a processor and the kernel keeps few events for it: afterwards
it says of every file what is so, that events were lost, and it has not grown.

EDGEGUARD_BURST says how many files (10,000; `make bench` takes 100,000).
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from file_guard import TREE, FileGuard, guarded

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root: mounts and fanotify marks")]

FILES = int(os.environ.get("EDGEGUARD_BURST", "10000"))
KNOWN = 2000
GROWTH_KB = 32 * 1024
PATIENCE_S = 60 + FILES / 100
RUN_S, REST_S = 0.002, 0.198  # a hundredth

# The daemon with the queue that the kernel gives to who may not ask for more: 16,384 events.
SMALL_QUEUE = f"""
import sys
sys.path[:0] = [{str(TREE)!r}]
sys.path.append("/usr/lib/python3/dist-packages")
from edgeguard.linux import fanotify
fanotify.FAN_UNLIMITED_QUEUE = 0
from edgeguard.daemon.main import main
sys.exit(main(sys.argv[1:]))
"""
BURST = """
import os, sys
top, files, known = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
for number in range(files):
    place = f"{top}/new/{number % 50:02d}"
    os.makedirs(place, exist_ok=True)
    with open(f"{place}/f{number}", "w") as file:
        file.write(str(number))
    with open(f"{place}/f{number}", "a") as file:
        file.write("more")
    if number % 3:
        os.rename(f"{place}/f{number}", f"{place}/r{number}")
    if number % 40:
        os.unlink(f"{place}/{'r' if number % 3 else 'f'}{number}")
for number in range(known):
    path = f"{top}/known/{number}"
    with open(path, "w") as file:
        file.write("evil")
    if number % 10:
        with open(path, "w") as file:
            file.write("good")
    elif number % 20:
        os.unlink(path)
"""


@contextlib.contextmanager
def starved(pid: int) -> Iterator[None]:
    """The process runs for a hundredth of the time."""
    over = threading.Event()

    def hold() -> None:
        while not over.is_set():
            os.kill(pid, signal.SIGSTOP)
            over.wait(REST_S)
            os.kill(pid, signal.SIGCONT)
            time.sleep(RUN_S)

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        os.kill(pid, signal.SIGCONT)


def peak_kb(pid: int, *, reset: bool = False) -> int:
    if reset:
        Path(f"/proc/{pid}/clear_refs").write_text("5")
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1])
    return 0


QUEUE = 16_384
STALE = 2500  # more than one request to a helper takes
FILL = """
import os, sys
top, queue, stale = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
for number in range(queue + 100):
    os.mkdir(f"{top}/beside/{number}")
for number in range(stale):
    os.unlink(f"{top}/watched/stale/{number}")
os.rmdir(f"{top}/watched/stale")
"""


def test_differences_whose_end_was_lost_end_all_the_same(tmp_path: Path) -> None:
    """They came after the last sweep, so no sweep knows that they ever were."""
    with guarded(tmp_path) as guard:
        guard.start("-c", SMALL_QUEUE)
        assert guard.daemon is not None
        (guard.watched / "stale").mkdir()
        for number in range(STALE):
            (guard.watched / f"stale/{number}").write_text("new")
        guard.until(lambda: len(guard.findings()) == STALE + 1, PATIENCE_S)
        guard.daemon.send_signal(signal.SIGSTOP)
        subprocess.run([sys.executable, "-c", FILL, str(guard.top), str(QUEUE), str(STALE)], check=True)
        guard.daemon.send_signal(signal.SIGCONT)
        guard.until(lambda: guard.findings("health"))
        guard.until(lambda: not guard.findings(), PATIENCE_S)


def expected(guard: FileGuard) -> set[str]:
    """What differs from what was learned, by looking at the files themselves."""
    found = {str(path) for path in guard.watched.glob("new/**/*")} | {str(guard.watched / "new")}
    for number in range(KNOWN):
        path = guard.watched / f"known/{number}"
        if not path.exists() or path.read_text() != "good":
            found.add(str(path))
    return found


def test_nothing_is_missed_and_nothing_is_made_up(tmp_path: Path) -> None:
    with guarded(tmp_path) as guard:
        (guard.watched / "known").mkdir()
        for number in range(KNOWN):
            (guard.watched / f"known/{number}").write_text("good")
        guard.start("-c", SMALL_QUEUE)
        assert guard.daemon is not None
        pid = guard.daemon.pid
        before = peak_kb(pid, reset=True)
        words = [sys.executable, "-c", BURST, str(guard.watched), str(FILES), str(KNOWN)]
        with starved(pid):
            subprocess.run(words, check=True)
        wanted = expected(guard)
        assert len(wanted) > FILES // 40

        guard.until(lambda: {item.subject for item in guard.findings()} == wanted, PATIENCE_S)
        lost = [item for item in guard.findings("health") if item.code == "EG-HLTH-001"]
        assert len(lost) == 1
        growth = peak_kb(pid) - before
        print(
            f"{FILES} files, {len(wanted)} differences: {growth} kB more at most; {(lost[0].details or {})['detail']}"
        )
        assert growth <= GROWTH_KB
        guard.scan()
        assert {item.subject for item in guard.findings()} == wanted
