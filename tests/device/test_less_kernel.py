"""Less kernel than here: each facility is taken away for real, and the next rung of the ladder must carry.

A row of CASES says how something is taken away (a system call filter, an address family, a hidden directory, a stopped
service), which rung must then stand, why the better one does not, what is therefore blind, and which acts are found on
it all the same, in the time that this rung promises. Doctor and the sealed records must say the same.

One device serves all: each case restarts the daemon with its drop-in and takes it away again.
"""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from edgeguard.codec import cose
from edgeguard.records import registry, wire
from edgeguard.sensors import Context
from edgeguard.sensors.listeners import Listeners
from edgeguard.sensors.processes import CROSS_CHECK_S, POLLING_S
from edgeguard.sensors.usb import Usb
from tests.device.acts import ACTS, Act
from tests.device.guard import NOTICE_S, Guard

pytestmark = pytest.mark.device

DROP_IN = "/run/systemd/system/edgeguard.service.d/less.conf"
MARGIN_S = 5.0  # a busy machine, and all acts of a case at once; the promise of two seconds is test_notice.py's
SEALED_S = 30.0
IDLE_S = 4.0
IDLE_CPU = 0.25  # share of one core that the daemon may take when nothing happens; a busy loop takes all of it
ACT = {act.name: act for act in ACTS}
FILES = ("byte", "setuid", "preload", "unit", "key", "uid-0")
PROCESSES = ("deleted", "memfd")
PORTS = ("tcp4", "tcp6", "udp")
SENSOR = {
    **dict.fromkeys(FILES, "files"),
    **dict.fromkeys(PROCESSES, "processes"),
    **dict.fromkeys(PORTS, "listeners"),
    "sysctl": "host",
}
# From the act to the finding, by the rung's own words; None: a look at everything finds it, and not before.
PROMISED_S: dict[tuple[str, str], float | None] = {
    ("files", "fanotify"): NOTICE_S,
    ("files", "inotify"): NOTICE_S,
    ("files", "sweep"): None,
    ("processes", "fanotify exec"): NOTICE_S,
    ("processes", "polling"): POLLING_S,
    ("listeners", "bpf"): NOTICE_S,
    ("listeners", "sock_diag"): Listeners.interval_s,
    ("listeners", "proc net"): Listeners.interval_s,
    ("host", "fanotify"): NOTICE_S,
    ("host", "inotify"): NOTICE_S,
    ("host", "polling"): None,
}
# What is told as it happens, and what is found by looking and may not claim more.
LIVE = {("files", "fanotify"), ("files", "inotify"), ("host", "fanotify"), ("host", "inotify"), ("listeners", "bpf")}
NAMELESS = {("files", "inotify"), ("files", "sweep"), ("host", "inotify"), ("host", "polling")}  # who did it: unknown


@dataclass(frozen=True, slots=True)
class Case:
    name: str
    unit: str  # lines of a drop-in for edgeguard.service
    stands: dict[str, str]  # sensor -> rung
    why: dict[str, str] = field(default_factory=dict)  # sensor -> why the better one does not (a pattern)
    blind: dict[str, str] = field(default_factory=dict)  # sensor -> what is therefore not seen (a pattern)
    acts: tuple[str, ...] = ()
    level: dict[str, str] = field(default_factory=dict)  # sensor -> level in doctor, if not WARN


def refused(calls: str, number: str = "EPERM") -> str:
    return f"SystemCallFilter=~{calls}\nSystemCallErrorNumber={number}\n"


def capabilities(names: str) -> str:
    """Only these, whatever the unit says."""
    lines = [
        f"{word}=\n{word}={names}\n" if names else f"{word}=\n"
        for word in ("CapabilityBoundingSet", "AmbientCapabilities")
    ]
    return "".join(lines)


NO_NETLINK = "RestrictAddressFamilies=\nRestrictAddressFamilies=AF_UNIX\n"
NO_NAME = r"who changed a file is not known"
NO_BPF = {"ENOSYS": "the kernel was built without it", "EPERM": "not allowed"}
NO_FANOTIFY = {"ENOSYS": "Function not implemented", "EPERM": "Operation not permitted"}
SHORT_LIVED = r"run for less than a second are missed"
LATE = r"opens is seen up to 10 s later"
CASES = [
    *(
        Case(
            f"fanotify {number}",
            refused("fanotify_init", number),
            {"files": "inotify", "host": "inotify", "processes": "polling", "listeners": "bpf"},
            {
                "files": f"not fanotify: {words}",
                "host": f"not fanotify: {words}",
                "processes": "not fanotify exec: the files sensor reports no executions",
            },
            {
                "files": rf"{NO_NAME}.*new set-id programs outside the other watched trees are only found by sweeps",
                "host": r"who changed a kernel setting is not known",
                "processes": SHORT_LIVED,
            },
            (*FILES, *PROCESSES, "sysctl") if number == "ENOSYS" else ("byte", "deleted", "sysctl"),
            {"listeners": "OK"},
        )
        for number, words in NO_FANOTIFY.items()
    ),
    Case(
        "file handles",
        refused("open_by_handle_at"),
        {"files": "inotify", "host": "fanotify", "processes": "polling"},
        {"files": "not fanotify: open_by_handle_at: Operation not permitted"},
        {"files": NO_NAME, "processes": SHORT_LIVED},
        ("unit", "key", "memfd"),
        {"host": "OK"},
    ),
    *(
        Case(
            f"bpf {number}",
            refused("bpf", number),
            {"listeners": "sock_diag", "files": "fanotify"},
            {"listeners": f"not bpf: .*{words}"},
            {"listeners": LATE},
            PORTS,
            {"files": "OK"},
        )
        for number, words in NO_BPF.items()
    ),
    Case(
        "netlink",
        NO_NETLINK,
        {"listeners": "proc net", "processes": "fanotify exec", "host": "fanotify", "files": "fanotify"},
        {
            "listeners": "not sock_diag: no socket diagnostics: Address family not supported",
            "processes": "not proc connector: no netlink connector: Address family not supported",
        },
        {"listeners": LATE, "host": r"a kernel module is seen up to 300 s later \(Address family not supported"},
        (*PORTS, "deleted"),
        {"host": "OK", "files": "OK"},
    ),
    Case(
        "pidfd",
        refused("pidfd_open pidfd_send_signal"),
        {"processes": "fanotify exec", "files": "fanotify", "listeners": "bpf"},
        acts=("byte", "tcp4"),  # the end of a process is told by the look every 30 s: too long to wait for here
        level={"files": "OK", "listeners": "OK"},
    ),
    Case(
        "no capability to mark or attach",
        capabilities("CAP_DAC_READ_SEARCH CAP_SYS_PTRACE CAP_NET_ADMIN"),
        {"files": "inotify", "host": "inotify", "processes": "polling", "listeners": "sock_diag"},
        {"files": r"not fanotify: not permitted \(CAP_SYS_ADMIN is needed\)", "listeners": "not bpf: .*CAP_SYS_ADMIN"},
        {"files": NO_NAME, "listeners": LATE},
        ("preload", "memfd", "tcp4"),
    ),
    Case(
        "processes of others",
        capabilities("CAP_DAC_READ_SEARCH CAP_NET_ADMIN CAP_SYS_ADMIN") + "ProtectProc=invisible\n",
        {"processes": "fanotify exec", "listeners": "bpf", "host": "polling", "files": "fanotify"},
        {"host": "not fanotify and inotify: our /proc is not the one that others write to"},
        {
            "processes": r"Processes of other users are not seen",
            "listeners": r"Of some ports the owner is not seen",
            "host": r"a change of a kernel setting is seen up to 300 s later.*mounts are not seen",
        },
        ("byte", "sysctl"),
        {"listeners": "OK", "files": "OK"},
    ),
    Case(
        "proc shows processes only",
        "ProcSubset=pid\n",
        {"host": "polling", "listeners": "bpf", "processes": "fanotify exec", "files": "fanotify"},
        {"host": "not fanotify and inotify: there is nothing to watch"},
        {
            "host": r"no kernel setting can be read.*kernel modules are not seen",
            "listeners": r"[Ww]hether the kernel lists all ports could not be checked",
        },
        ("memfd", "tcp4", "preload"),
        {"files": "OK"},
    ),
    Case(
        "buses",
        "InaccessiblePaths=/sys/bus\n",
        {"usb": "polling", "files": "fanotify"},
        {"usb": "not udev and kernel: /sys is not mounted or is hidden from us"},
        {"usb": "USB devices are not seen"},
        level={"usb": "FAIL", "files": "OK"},
    ),
    Case(
        "a stock Raspberry Pi kernel",
        "InaccessiblePaths=-/sys/kernel/btf\n",
        {"processes": "fanotify exec", "files": "fanotify", "listeners": "bpf", "host": "fanotify"},
        {"processes": "not proc connector: "},
        {"processes": "Statically linked programs that run for less than 30 s may be missed"},
        tuple(ACT),
        {"files": "OK", "listeners": "OK", "host": "OK"},
    ),
    Case(
        "almost nothing",
        refused("fanotify_init inotify_init1 inotify_init bpf") + NO_NETLINK,
        {"files": "sweep", "processes": "polling", "listeners": "proc net", "host": "polling"},
        {"files": "not fanotify and inotify: Operation not permitted", "listeners": "not sock_diag: "},
        {
            "files": r"changes of files are not seen as they happen, only by sweeps",
            "processes": SHORT_LIVED,
            "listeners": LATE,
            "host": r"a change of a kernel setting is seen up to 300 s later, and not who made it",
            "accounts": r"what is read from files is looked at every 60 s",
        },
        tuple(ACT),
        {"accounts": "OK"},
    ),
]


# -- the device


@contextmanager
def without(guard: Guard, unit: str, *, after: str = "") -> Iterator[None]:
    """The daemon, restarted with this drop-in, which is gone afterwards: the next case starts it anew."""
    device = guard.device
    device.write(DROP_IN, f"[Service]\n{unit}")
    try:
        restart(guard)
        yield
        assert device.run("systemctl is-active edgeguard").out == "active\n"
        assert device.run("systemctl show -P NRestarts edgeguard").out == "0\n", guard.journal()
        said = device.run("journalctl -b -o cat _PID=$(systemctl show -P MainPID edgeguard)").out
        assert "Traceback" not in said, said
    finally:
        device.run(f"rm -f {DROP_IN}; {after}")


def restart(guard: Guard) -> None:
    """Restart, and wait for the first round: what is found after that was not there before."""
    guard.device.run("systemctl daemon-reload; systemctl reset-failed edgeguard; systemctl restart edgeguard").ok()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        status = guard.learned()
        checked = status["areas"]["files"]["checked"]
        if checked and checked >= status["daemon"]["started"]:
            return
        time.sleep(0.2)
    raise AssertionError(f"no first round\n{guard.journal()}")


def doctor(guard: Guard) -> dict[str, tuple[str, str]]:
    """Level and text of each check; of sensors, by their name."""
    checks = json.loads(guard.ask("doctor -o json").out)["checks"]
    return {check["name"].removeprefix("sensor "): (check["level"], check["text"]) for check in checks}


def records(guard: Guard) -> list[wire.Record]:
    """All records of the stream of findings, out of the sealed segments as a collector would get them."""
    taken: list[wire.Record] = []
    for path in sorted(guard.device.inside("/var/spool/edgeguard/outbox").glob("0-*.egs")):
        taken += wire.decode_segment(cose.parse1(path.read_bytes()).payload, lambda number: f"file {number}").records
    return taken


def states(guard: Guard, what: str) -> list[dict[str, Any]]:
    """The fields of sealed state records of one kind with their time, oldest first."""
    names = registry.field_names(registry.STATE.number)
    rows = [record for record in records(guard) if record.type == registry.STATE.number]
    documents = [{**dict(zip(names, row.fields, strict=False)), "wall": row.wall} for row in rows]
    return [row for row in documents if registry.STATES[row["what"]] == what]


def sealed(guard: Guard, wanted: Callable[[], bool], what: str) -> None:
    """Until the sealed records say so. What nothing urgent sealed is sealed at the next start."""
    began, again = time.monotonic(), False
    while not wanted():
        waited = time.monotonic() - began
        assert waited < SEALED_S, f"no sealed record of {what}\n{guard.journal()}"
        if waited > SEALED_S / 10 and not again:
            again = True
            guard.device.run("systemctl restart edgeguard").ok()
        time.sleep(0.2)


def cpu_seconds(guard: Guard) -> float:
    """Processor time of the daemon itself, without its helpers."""
    pid = guard.device.run("systemctl show -P MainPID edgeguard").out.strip()
    fields = guard.device.run(f"cat /proc/{pid}/stat").ok().out.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


# -- acts


def found(guard: Guard, act: Act, state: str) -> dict[str, Any] | None:
    for finding in guard.findings(all_=True):
        if (finding["code"], finding["state"]) == (act.code, state) and re.fullmatch(act.subject, finding["subject"]):
            return finding
    return None


def wait(guard: Guard, acts: list[Act], state: str, seconds: float) -> dict[str, dict[str, Any]]:
    deadline = time.monotonic() + seconds
    seen: dict[str, dict[str, Any]] = {}
    while len(seen) < len(acts):
        for act in acts:
            if act.name not in seen and (finding := found(guard, act, state)) is not None:
                seen[act.name] = finding
        missing = [act.name for act in acts if act.name not in seen]
        assert not missing or time.monotonic() < deadline, f"{missing} not {state} in {seconds} s\n{guard.journal()}"
        time.sleep(0.1)
    return seen


def perform(guard: Guard, case: Case) -> None:
    """Do all acts of a case at once, see each found as its rung promises, undo them and see them resolved."""
    acts = [ACT[name] for name in case.acts]
    at_once = [act for act in acts if promised(case, act) is not None]
    by_looking = [act for act in acts if promised(case, act) is None]
    acting: list[subprocess.Popen[str]] = [guard.device.begin(act.do) for act in acts]
    try:
        bar = max((promised(case, act) or 0.0 for act in at_once), default=0.0) + MARGIN_S
        seen = wait(guard, at_once, "open", bar)
        for process in acting:
            out, err = process.communicate(timeout=60)
            assert process.returncode == 0, out + err
        if by_looking:
            scan(guard)
            seen |= wait(guard, by_looking, "open", MARGIN_S)
        for act in acts:
            claims_no_more(case, act, seen[act.name])
    finally:
        for act in acts:
            guard.device.run(act.undo)
    if by_looking:
        scan(guard)
    wait(guard, acts, "resolved", CROSS_CHECK_S + MARGIN_S)  # the end of a process, where nothing tells of it


def promised(case: Case, act: Act) -> float | None:
    sensor = SENSOR[act.name]
    return PROMISED_S[sensor, case.stands[sensor]]


def claims_no_more(case: Case, act: Act, finding: dict[str, Any]) -> None:
    """Time and actor of a finding are what this rung can know."""
    place = SENSOR[act.name], case.stands[SENSOR[act.name]]
    actor = (finding["actor"] or {"exe": ""})["exe"]
    if act.name in ("key", "uid-0"):  # found by a look that a file's event asked for
        assert finding["origin"] == "sweep"
    elif place[0] != "processes":
        # A rung that hears may still be overtaken by a look that somebody else's event asked for; never the other way.
        assert finding["origin"] in (("live", "sweep") if place in LIVE else ("sweep",)), (act.name, finding)
    if place in NAMELESS:
        assert finding["actor"] is None, (act.name, finding["actor"])
    else:
        assert re.fullmatch(f"{act.actor}|", actor), (act.name, actor)


def scan(guard: Guard) -> None:
    guard.device.wait("edgeguard scan --quick; [ $? -le 2 ]", timeout=60)


def says_the_same(guard: Guard, sensor: str, text: str) -> bool:
    """Does the newest sealed record about this sensor say what doctor says, no more and no less?"""
    rows = [row["columns"] for row in states(guard, "sensor") if row["subject"] == f"sensor {sensor}"]
    if not rows:
        return False
    newest = rows[-1]
    reasons = [line.partition(": ")[2] for line in newest.get("tried", ())]
    words = {part for each in (*newest.get("blind", ()), *reasons) for part in shortened(each)}
    shown = {re.sub(r"^not [a-z_ ]+: ", "", part) for part in text.split("; ")[1:]}
    proven = " (not proven)" if not newest["proven"] else ""
    return text.partition("; ")[0] == f"{newest['rung']}{proven}" and words == shown


def shortened(words: str) -> list[str]:
    """As doctor shows it: without the full stop, and a reason without the mechanism's name."""
    return re.sub(r"^(fanotify|inotify|proc connector|sock_diag): ", "", words.removesuffix(".")).split("; ")


# -- tests


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
def test_the_next_rung_carries(guard: Guard, case: Case) -> None:
    with without(guard, case.unit):
        perform(guard, case)
        said = doctor(guard)
        for sensor, rung in case.stands.items():
            level, text = said[sensor]
            assert re.match(rf"{re.escape(rung)}(;| \(not proven\)|$)", text), (sensor, text)
            assert level == case.level.get(sensor, "WARN"), (sensor, level, text)
        for sensor, pattern in [*case.why.items(), *case.blind.items()]:
            assert re.search(pattern, said[sensor][1]), (sensor, pattern, said[sensor][1])
        for sensor in case.stands.keys() | case.blind.keys():
            sealed(
                guard, lambda sensor=sensor: says_the_same(guard, sensor, said[sensor][1]), f"{sensor}: {said[sensor]}"
            )


def test_nothing_to_do_is_nothing_done(guard: Guard) -> None:
    """On the lowest rungs, too, the daemon sleeps most of the time: no rung is a loop that never waits."""
    with without(guard, CASES[-1].unit):
        before, began = cpu_seconds(guard), time.monotonic()
        time.sleep(IDLE_S)
        used, took = cpu_seconds(guard) - before, time.monotonic() - began
        print(f"{used:.2f} s of processor time in {took:.1f} s")
        assert used <= IDLE_CPU * took


BUS = "/run/bus/usb/devices"
PLUG = f"""mkdir -p {BUS}/1-1; cd {BUS}/1-1
echo 046d >idVendor; echo c31c >idProduct; echo 1 >authorized; echo Keyboard >product"""
WITH_BUS = "BindReadOnlyPaths=/run/bus:/sys/bus\n"
STOP_UDEV = """set -- systemd-udevd.service systemd-udevd-control.socket systemd-udevd-kernel.socket
systemctl mask -q --runtime "$@"; systemctl stop "$@"; rm -rf /run/udev"""
START_UDEV = """set -- systemd-udevd.service systemd-udevd-control.socket systemd-udevd-kernel.socket
systemctl unmask -q --runtime "$@"; mkdir -p /run/udev; systemctl start systemd-udevd"""


@pytest.mark.parametrize(
    ("unit", "rung", "why", "blind"),
    [
        ("", "kernel", "not udev: .*udev is not running", ""),
        (
            NO_NETLINK,
            "polling",
            "not udev: .*not running; not kernel: .+",
            "a USB device that is plugged in for less than 15 s may go unseen",
        ),
    ],
    ids=["udev", "udev-and-netlink"],
)
def test_without_udev(guard: Guard, unit: str, rung: str, why: str, blind: str) -> None:
    """udev is gone for real. The bus is made up where the machine that runs the tests has none: a directory in which a
    device can appear, of which nobody tells."""
    device = guard.device
    device.run(f"mkdir -p {BUS}; {STOP_UDEV}")
    try:
        with without(guard, WITH_BUS + unit, after=f"rm -rf {BUS}/*; {START_UDEV}"):
            level, text = doctor(guard)["usb"]
            assert level == "WARN"
            assert re.match(rf"{rung}(;| \(not proven\);)", text), text
            assert re.search(why, text), text
            assert blind in text
            if rung == "polling":
                device.run(PLUG).ok()
                finding = guard.wait_match("EG-USB-001", "046d:c31c@1-1", within=Usb(Context()).interval_s + MARGIN_S)
                assert (finding["origin"], finding["actor"]) == ("sweep", None)
            sealed(guard, lambda: says_the_same(guard, "usb", text), f"usb: {text}")
    finally:
        device.run(f"rm -rf {BUS}; {START_UDEV}")


ENFORCE = '[[rule]]\nid = "listener.tcp"\noverride = true\nmode = "enforce"\n'
ACT_DROP_IN = "/run/systemd/system/edgeguard-act.service.d/less.conf"


@pytest.mark.parametrize(
    ("take", "give", "unit", "said"),
    [
        (
            "mv /usr/sbin/nft /usr/sbin/nft.away",
            "mv /usr/sbin/nft.away /usr/sbin/nft",
            "",
            r"nft is not installed \(package nftables\)",
        ),
        (":", ":", NO_NETLINK, r"[Nn]etlink socket|Address family not supported"),
    ],
    ids=["no-nft", "nf_tables-refused"],
)
def test_a_port_that_cannot_be_blocked(guard: Guard, take: str, give: str, unit: str, said: str) -> None:
    """The finding says why nothing was done, and nothing ends."""
    device = guard.device
    device.write("/etc/edgeguard/policy.d/50-site.toml", ENFORCE)
    device.write("/etc/edgeguard/agent.toml", 'mode = "enforce"\n')
    act = ACT["tcp4"]
    try:
        with without(guard, ""):
            guard.ask("reload").ok()
            device.wait('edgeguard status -o json | grep -q \'"mode":"enforce"\'', timeout=20)
            device.write(ACT_DROP_IN, f"[Service]\n{unit}")
            device.run(f"{take}; systemctl daemon-reload; systemctl stop edgeguard-act.service").ok()
            device.run(act.do).ok()
            finding = guard.wait_match(act.code, act.subject)
            done = guard.wait_remedied(finding["id"])["remediation"]
            assert re.match(rf"block-port: (refused|failed), .*({said})", done), done
            if take != ":":
                assert doctor(guard)["nft"] == ("WARN", "no port can be blocked: nft is not installed")
            assert device.run("systemctl --failed --no-legend").out == ""
    finally:
        device.run(act.undo)
        device.run(f"{give}; rm -rf {ACT_DROP_IN} /etc/edgeguard/policy.d/50-site.toml /etc/edgeguard/agent.toml")
        device.run("systemctl daemon-reload; systemctl stop edgeguard-act.service; systemctl restart edgeguard")
        device.wait("edgeguard reload", timeout=20)


STOP_JOURNAL = """cd /run/systemd/journal
systemctl mask -q --runtime systemd-journald.socket systemd-journald-dev-log.socket systemd-journald
systemctl stop systemd-journald.socket systemd-journald-dev-log.socket systemd-journald-audit.socket systemd-journald
rm -f socket stdout dev-log"""
START_JOURNAL = """set -- systemd-journald.socket systemd-journald-dev-log.socket systemd-journald.service
systemctl unmask -q --runtime "$@" && systemctl start "$@"
"""


def findings_about(guard: Guard, act: Act) -> list[wire.Record]:
    code = registry.field_names(registry.FINDING.number).index("code")
    rows = [record for record in records(guard) if record.type == registry.FINDING.number]
    return [record for record in rows if record.fields[code] == act.code]


def test_without_a_journal(guard: Guard) -> None:
    """It starts, finds, and tells everybody else; doctor says who does not hear it."""
    guard.device.run(STOP_JOURNAL)
    try:
        with without(guard, "", after=START_JOURNAL):
            began = time.time() * 1000
            case = Case("journald", "", {"files": "fanotify"}, acts=("preload",))
            perform(guard, case)
            level, text = doctor(guard)["journal"]
            assert level == "WARN"
            assert "do not reach the system's journal (No such file or directory)" in text
            sealed(guard, lambda: any(row.wall >= began for row in findings_about(guard, ACT["preload"])), "a finding")
    finally:
        guard.device.run(START_JOURNAL).ok()
    assert doctor(guard)["journal"][0] == "OK"


def test_limits_that_nobody_keeps_are_said(guard: Guard) -> None:
    """systemd takes MemoryMax= and TasksMax= and is silent where the controllers are off, as on many boards."""
    place = "/run/systemd/system/system.slice.d/off.conf"
    guard.device.write(place, "[Slice]\nDisableControllers=cpu io memory pids\n")
    try:
        with without(guard, ""):
            level, text = doctor(guard)["limits"]
            assert level == "WARN"
            assert "not limited, whatever the unit says: memory and tasks" in text
            void = {"unlimited": ("memory", "tasks")}
            sealed(guard, lambda: states(guard, "start")[-1]["columns"] == void, "void limits")
    finally:
        guard.device.run(f"rm {place}; systemctl daemon-reload")
