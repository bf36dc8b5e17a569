"""What files cost: learning them, the reference values of each, an event, and the time from a change to its finding.

Events are measured on an ext4 of its own, which alone is marked. Needs root and loop devices.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(HERE), str(HERE / "tests/root")]

from bench_sweep import LEARN, PYTHON, make_tree, measured  # noqa: E402 - a bench beside this one
from file_guard import FileGuard, guarded  # noqa: E402 - the tests' daemon

from edgeguard.codec.manifest import Entry, Writer  # noqa: E402
from edgeguard.model import Watch  # noqa: E402
from edgeguard.sensors import Context  # noqa: E402
from edgeguard.sensors.files import Files  # noqa: E402

FILES = 20_000
SIZE = 16_000  # bytes of each, as many as /usr has on the average
EVENTS = 50_000
RATE = 1000  # events a second, beside the changes that are timed
CHANGES = 200
TOUCH = "import sys\nfor n in range(int(sys.argv[2])):\n    open(f'{sys.argv[1]}/{n}', 'w').close()\n"
STORM = """
import sys, time
due = time.monotonic()
number = 0
while True:
    with open(f"{sys.argv[1]}/s{number % 50}", "w") as file:
        file.write("x")
    number += 1
    due += 1 / int(sys.argv[2])
    time.sleep(max(0.0, due - time.monotonic()))
"""


WATCHED = 100_000  # files of which the sensor has reference values
WINDOW_S = 10
# The sensor in a process of its own: what it adds when it starts and has looked into its reference values.
WATCHING = """
import os, select, sys, time
sys.path.insert(0, {here!r})
from edgeguard.codec.manifest import Reader
from edgeguard.model import Watch
from edgeguard.sensors import Context
from edgeguard.sensors.files import Files
def own():
    with open("/proc/self/smaps_rollup") as file:
        return sum(int(line.split()[1]) for line in file if line.startswith("Private_Dirty"))
before = own()
manifest = Reader(os.open({manifest!r}, os.O_RDONLY))
sensor = Files(Context("/"), [Watch({watched!r}, "program")], manifest, {proof!r})
rung = sensor.start()
for number in range(0, {count}, 97):
    assert manifest.lookup(b"%s/%03d/f%d" % ({watched!r}.encode(), number // 100, number)) is not None
after = own()
began, spent = time.monotonic(), time.process_time()
while (left := began + {window} - time.monotonic()) > 0:
    if select.select([sensor.fileno()], [], [], left)[0]:
        list(sensor.ready(0))
print(after - before, (time.process_time() - spent) * 3600 / {window}, rung.name)
"""


def figure(name: str, value: float, unit: str, bar: float, reference: str = "") -> None:
    print(json.dumps({"name": name, "value": round(value, 2), "unit": unit, "bar": bar, "reference": reference}))


def learning() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        tree, db = f"{scratch}/tree", f"{scratch}/observed.db"
        os.mkdir(tree)
        make_tree(tree, FILES)
        for path in Path(tree).rglob("*.so"):
            path.write_bytes(os.urandom(SIZE))
        words = [PYTHON, "-IS", "-X", f"pycache_prefix={scratch}/pyc", "-c"]
        learn = [*words, LEARN.format(here=str(HERE), db=db, tree=tree)]
        xargs = ["/bin/sh", "-c", f"find {tree} -type f -print0 | xargs -0 sha256sum > /dev/null"]
        measured(learn), measured(xargs)
        pairs = [(measured(learn)[0], measured(xargs)[0]) for _ in range(3)]
        ratio = statistics.median(ours / theirs for ours, theirs in pairs)
        reference = f"`find | xargs sha256sum` {pairs[-1][1]:.2f} s CPU; goal 0.4"
        figure(f"learn {FILES:,} files", ratio, "x xargs sha256sum", 0.65, reference)
        figure("file manifest", os.path.getsize(f"{db}.manifest") / FILES, "bytes a file", 75.0)


def watching(guard: FileGuard, scratch: str) -> None:
    """What it takes to watch 100,000 files while nothing happens to them."""
    manifest = f"{scratch}/watched.manifest"
    entry = Entry(0o100644, 0, 0, SIZE, "program", bytes(32))
    with open(manifest, "wb") as file:
        writer = Writer(file)
        for directory in range(WATCHED // 100):
            names = sorted(b"f%d" % number for number in range(directory * 100, directory * 100 + 100))
            writer.add(b"%s/%03d" % (str(guard.watched).encode(), directory), names, [entry] * 100)
        writer.close()
    words = {"here": str(HERE), "manifest": manifest, "watched": str(guard.watched), "proof": str(guard.beside)}
    command = [PYTHON, "-ISOO", "-X", f"pycache_prefix={scratch}/pyc", "-c"]
    text = WATCHING.format(**words, count=WATCHED, window=WINDOW_S)
    memory, cpu, rung = measured([*command, text])[2].split()
    figure(f"watching {WATCHED:,} files: memory", int(memory), "kB", 1024, f"by {rung.decode()}")
    figure(f"watching {WATCHED:,} files: idle CPU", float(cpu), "s/h", 0.2, f"{WINDOW_S} s in which nothing happens")


def events(guard: FileGuard) -> None:
    """The sensor by itself: CPU time of taking in what another process does, whole queue at once."""
    for name, directory, bar in (("nobody watches", guard.beside, 5.0), ("is watched", guard.watched, 200.0)):
        place = directory / "burst"
        place.mkdir()
        watches = [Watch(str(guard.watched), "program")]
        sensor = Files(Context("/"), watches, None, str(guard.beside))
        sensor.start()
        count = EVENTS if directory == guard.beside else EVENTS // 10
        subprocess.run([sys.executable, "-c", TOUCH, str(place), str(count)], check=True)
        before = time.process_time()
        seen = 0
        left = count if directory == guard.watched else 0
        quiet = 0
        while seen < left or quiet < 3:
            found = len(list(sensor.ready(0)))
            seen += found
            quiet = 0 if found or sensor.behind else quiet + 1
        spent = time.process_time() - before
        sensor.close()
        figure(f"an event where it {name}" if left else f"an event that {name}", spent / count * 1e6, "us CPU", bar)


def latency(guard: FileGuard) -> None:
    """From the end of a write to the finding, while others write beside it."""
    (guard.watched / "timed").mkdir()
    for number in range(CHANGES):
        (guard.watched / f"timed/{number}").write_text("good")
    guard.start()
    storm = subprocess.Popen([sys.executable, "-c", STORM, str(guard.beside), str(RATE)])
    done = {}
    try:
        for number in range(CHANGES):
            path = guard.watched / f"timed/{number}"
            path.write_text("evil")
            done[str(path)] = time.time_ns() // 1_000_000
            time.sleep(0.02)
        guard.until(lambda: len(guard.findings()) >= CHANGES)
    finally:
        storm.kill()
        storm.wait()
    waits = sorted(item.first_seen - done[item.subject] for item in guard.findings() if item.subject in done)
    p95 = waits[len(waits) * 95 // 100]
    reference = f"{RATE} events a second; median {waits[len(waits) // 2]} ms, longest {waits[-1]} ms"
    figure("change to finding, 95 of 100", p95, "ms", 250.0, reference)
    figure("change to finding, 99 of 100", waits[len(waits) * 99 // 100], "ms", 1000.0, reference)


def main() -> int:
    if os.geteuid():
        print("needs root: mounts and fanotify marks")
        return 77
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    learning()
    with tempfile.TemporaryDirectory() as scratch, guarded(Path(scratch)) as guard:
        watching(guard, scratch)
        events(guard)
        latency(guard)
    return 0


if __name__ == "__main__":
    sys.exit(main())
