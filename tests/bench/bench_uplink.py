"""What the uplink costs: peak memory with a backlog of megabytes, bytes on the wire of an hourly run, CPU of a start.

The real program against a real collector on 127.0.0.1, with python3-aiohttp. It ends when all is sent: nothing of it
is resident. Bytes are the kernel's count for the connection, headers of packets and TLS included.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

TREE = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(TREE / "tests/unit/records"), str(TREE / "tests/unit/collector")]

PEAK_KB = 32 * 1024
SEGMENTS = 240
PYTHON = "/usr/bin/python3"


def figure(name: str, value: float, unit: str, bar: float | None = None, reference: str = "") -> None:
    print(json.dumps({"name": name, "value": value, "unit": unit, "bar": bar, "reference": reference}))


# The kernel's own figure of a child's peak counts ours before the exec, too; so the program says it as it ends.
WRAPPED = """
import atexit, sys
def peak():
    with open("/proc/self/status") as status:
        print(next(line.split()[1] for line in status if line.startswith("VmHWM")))
atexit.register(peak)
__file__, sys.argv = sys.argv[1], sys.argv[1:]
exec(compile(open(__file__).read(), __file__, "exec"))
"""


def uplink(settings: Path) -> tuple[int, int, float]:
    """Exit code, peak in kB, CPU seconds of one run."""
    program = str(TREE / "packaging/bin/edgeguard-uplink")
    out, into = os.pipe()
    child = os.posix_spawn(
        PYTHON,
        [PYTHON, "-IS", "-c", WRAPPED, program, "--settings", str(settings)],
        dict(os.environ),
        file_actions=[(os.POSIX_SPAWN_DUP2, into, 1), (os.POSIX_SPAWN_CLOSE, out)],
    )
    os.close(into)
    with open(out) as pipe:
        peak = int(pipe.read() or 0)
    _, how, use = os.wait4(child, 0)
    return os.waitstatus_to_exitcode(how), peak, use.ru_utime + use.ru_stime


def main() -> int:
    try:
        import aiohttp  # noqa: F401 - what the collector serves with
    except ImportError:
        print("python3-aiohttp is not installed")
        return 77
    from small_world import Device, moment, state
    from world import Serving, collector, join

    from edgeguard.records import compose, memory

    root = tempfile.mkdtemp(prefix="edgeguard-bench-")
    device = Device(root)
    quiet = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    serving = Serving(collector(f"{root}/c", device))
    os.dup2(quiet, 1)
    try:
        join(device, serving.directory, serving.port)
        known = device.settings.uplink
        keys = ("url", "ca", "certificate", "key", "collector_key")
        lines = [f'exchange = "{device.settings.paths.exchange}"', "[uplink]"]
        lines += [f'{key} = "{getattr(known, key)}"' for key in keys]
        settings = Path(root, "agent.toml")
        settings.write_text("[paths]\n" + "\n".join(lines) + "\n")
        device.record_and_seal(state())
        uplink(settings)  # compiles
        before = memory.load(f"{device.inbox}/{memory.FILE}").books.used
        device.record_and_seal(state("an hour passed"), *(compose.text(f"thing {n}", moment()) for n in range(40)))
        size = sum(len(data) for name, data in device.segments().items() if not name.endswith("01.egs"))
        code, peak, cpu = uplink(settings)
        assert code == 0
        used = memory.load(f"{device.inbox}/{memory.FILE}").books.used - before
        figure("uplink: CPU of a run with one POST", cpu, "s")
        figure("uplink: a run on the wire beside its segments", used - size, "bytes", 5_000, f"{size} of segments")
        for _ in range(SEGMENTS):
            device.record_and_seal(*(compose.text(os.urandom(150).hex(), moment()) for _ in range(100)))
        waits = sum(map(len, device.segments().values()))
        code, peak, cpu = uplink(settings)
        assert code == 0
        figure("uplink: peak with a backlog", peak, "kB", PEAK_KB, f"{waits / 1e6:.1f} MB sent")
        figure("uplink: CPU to send a megabyte", cpu / waits * 1e6, "s")
    finally:
        serving.stop()
        shutil.rmtree(root)
    return 0


if __name__ == "__main__":
    sys.exit(main())
