"""Records as a device's daemon writes them, of one machine's own files, units, packages and programs: for measuring
bytes, and for training the preset dictionary on another machine.

    machine = Machine("/")                  # or a root directory, such as an unpacked root of the other Debian release
    records = corpus(machine, seed=7)       # 20,000 in the order of their recording

Real: paths with their size, owner, mode and SHA-256, packages and who owns what, units and the command lines that they
start, accounts, kernel settings, and on a running machine its processes, ports and USB devices. Made: when things
happen, who does them, process numbers, what a file holds afterwards (a random digest: nothing can be shorter).
Every record goes through `records.compose`, and every finding names a rule of the packaged policy, as in the daemon.
Where the vocabulary is made up (people, addresses, USB sticks), an even seed takes one half of the lists, an odd one
the other.
"""

from __future__ import annotations

import hashlib
import os
import random
import stat
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgeguard.model import NOBODY, Actor, Change, Finding, Observation, Origin, Outcome, Severity, State, Transition
from edgeguard.records import compose
from edgeguard.records.compose import Moment
from edgeguard.records.wire import Record

TOP = Path(__file__).resolve().parents[2]
EVENTS = 20_000
FILES_MAX = 6000  # sampled of a machine; their content is hashed
HASHED_MAX = 1 << 20  # bytes of a file that are read for its digest
COMMAND_MAX = 160  # letters of a real process's command line; what is longer is a developer's, not a device's
TREES = ("usr/bin", "usr/sbin", "usr/lib", "usr/libexec", "usr/share", "etc", "boot")
# How often each thing happens, by what a day on a device is made of. One is one to some ten records.
SCENES = {
    "ordinary program": 27.0,
    "metric": 24.0,
    "file changed": 6.5,
    "file changed back": 1.8,
    "unusual program": 1.5,
    "port": 12.0,
    "setting": 1.5,
    "account": 0.4,
    "usb": 1.0,
    "upgrade": 0.6,
    "start": 0.3,
    "sweep": 1.6,
    "acceptance": 0.8,
    "loss": 0.15,
}
GAUGE_STEPS = {"rss_kib": 40, "processes": 4, "established": 1, "memory_free_kib": 3000}  # at most, in a minute
PEOPLE = ("anna", "bert", "carla", "david", "elif", "farid", "greta", "hiro", "ines", "jan", "kofi", "lena")
STICKS = (
    ("SanDisk", "Ultra Fit", 0x0781), ("Kingston", "DataTraveler 3.0", 0x0951), ("Logitech", "USB Receiver", 0x046D),
    ("Realtek", "USB 10/100 LAN", 0x0BDA), ("FTDI", "FT232R USB UART", 0x0403), ("Prolific", "USB-Serial", 0x067B),
    ("Samsung", "Flash Drive FIT", 0x090C), ("Microsoft", "Wired Keyboard 600", 0x045E),
)  # fmt: skip
INTERFACES = (("080650",), ("030101",), ("030101", "030102"), ("ff0000",), ("020600", "0a0000"))
OWNERS = ("field service", "operations", "plant 3", "night shift", "integrator", "quality")
REASONS = ("new pump firmware", "agreed in the change board", "sensor replaced", "test of the week", "site visit")
SENSORS = ("files", "listeners", "processes", "usb", "host", "accounts", "packages", "sshd", "health")
RUNGS = ("fanotify", "bpf", "proc connector", "udev", "notified", "reading", "dpkg", "reading", "timerfd")
CATEGORIES = (
    ("etc/systemd", "unit"), ("usr/lib/systemd/system", "unit"), ("etc/cron", "cron"), ("etc/sudoers", "sudoers"),
    ("boot", "boot"), ("etc", "config"), ("usr/bin", "program"), ("usr/sbin", "program"), ("usr/lib", "program"),
)  # fmt: skip


class Machine:
    """What is real. Reads below `root`; of a running machine (root "/") also its processes, ports and USB devices."""

    def __init__(self, root: str = "/", seed: int = 1) -> None:
        self.root = root.rstrip("/")
        self._dice = random.Random(seed)
        self.files = self._files()
        self.owners = self._owners()
        self.packages = self._packages()
        self.programs = [path for path, columns in self.files.items() if columns["mode"] & 0o111]
        self.units = self._units()
        self.users = self._users()
        self.settings = self._settings()
        live = not self.root
        self.commands = self._commands() + (_processes() if live else [])
        self.ports = _ports() if live else []
        self.sticks = _sticks() if live else []

    def _read(self, path: str) -> str:
        try:
            return Path(f"{self.root}/{path}").read_text(errors="replace")
        except OSError:
            return ""

    def _walk(self, *trees: str) -> Iterator[str]:
        for tree in trees:
            for directory, folders, names in os.walk(f"{self.root}/{tree}"):
                folders.sort()
                for name in sorted(names):
                    yield os.path.join(directory, name)[len(self.root) :]

    def _files(self) -> dict[str, dict[str, Any]]:
        every = list(self._walk(*TREES))
        self._dice.shuffle(every)
        every.sort(key=_unwatched)  # what a policy watches comes first
        found: dict[str, dict[str, Any]] = {}
        for path in every:
            if len(found) >= FILES_MAX:
                break
            try:
                info = os.lstat(self.root + path)
                if not stat.S_ISREG(info.st_mode):
                    continue
                with open(self.root + path, "rb") as file:
                    digest = hashlib.sha256(file.read(HASHED_MAX)).digest()
            except OSError:
                continue
            category = next((word for tree, word in CATEGORIES if path.startswith(f"/{tree}")), "other")
            found[path] = {
                "type": "file", "sha256": digest, "size": info.st_size, "mode": stat.S_IMODE(info.st_mode),
                "uid": info.st_uid, "gid": info.st_gid, "category": category,
            }  # fmt: skip
        return found

    def _owners(self) -> dict[str, str]:
        owners: dict[str, str] = {}
        for path in self._walk("var/lib/dpkg/info"):
            if path.endswith(".list"):
                package = os.path.basename(path)[:-5].partition(":")[0]
                owners.update(dict.fromkeys(self._read(path).splitlines(), package))
        return owners

    def _packages(self) -> list[tuple[str, str, str]]:
        found = []
        for stanza in self._read("var/lib/dpkg/status").split("\n\n"):
            fields = dict(line.split(": ", 1) for line in stanza.splitlines() if ": " in line and line[0] != " ")
            if "Version" in fields:
                found.append((fields["Package"], fields["Version"], fields["Architecture"]))
        return found

    def _units(self) -> list[str]:
        names = {os.path.basename(path) for path in self._walk("usr/lib/systemd/system", "etc/systemd/system")}
        return sorted(name for name in names if name.endswith(".service") and "@" not in name)

    def _users(self) -> list[tuple[str, int]]:
        lines = [line.split(":") for line in self._read("etc/passwd").splitlines()]
        return [(parts[0], int(parts[2])) for parts in lines if len(parts) > 2 and parts[2].isdigit()]

    def _settings(self) -> list[str]:
        found = []
        for path in self._walk("proc/sys/kernel", "proc/sys/net/ipv4", "proc/sys/fs", "usr/lib/sysctl.d"):
            if path.startswith("/proc/sys/"):
                found.append(path[10:].replace("/", "."))
            else:
                lines = (line.partition("=")[0].strip(" -") for line in self._read(path).splitlines())
                found += [line for line in lines if "." in line and line[0].isalpha()]
        return found or ["kernel.kptr_restrict"]

    def _commands(self) -> list[tuple[str, ...]]:
        """What units and crontabs start."""
        found = []
        for path in self._walk("usr/lib/systemd/system", "etc/systemd/system"):
            for line in self._read(path).splitlines():
                key, _, words = line.partition("=")
                command = words.lstrip("-@+!:").split()
                if key.startswith("Exec") and command and command[0].startswith("/"):
                    found.append(tuple(command))
        for path in self._walk("etc/cron.d"):
            for line in self._read(path).splitlines():
                words = line.split(None, 6)
                if len(words) == 7 and words[0][0] != "#":
                    found.append(("/bin/sh", "-c", words[6]))
        return found or [("/bin/sh",)]


def _unwatched(path: str) -> int:
    """How far from what watches are about: programs and settings, then libraries and units, then all else."""
    if path.startswith(("/usr/bin/", "/usr/sbin/", "/etc/", "/boot/")):
        return 0
    return 2 if path.startswith("/usr/share/") or "/python3" in path else 1


def _processes() -> list[tuple[str, ...]]:
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                argv = Path(f"/proc/{name}/cmdline").read_bytes().split(b"\0")[:-1]
                exe = os.readlink(f"/proc/{name}/exe")
            except OSError:
                continue
            if argv and len(b" ".join(argv)) <= COMMAND_MAX:
                found.append((exe, *map(os.fsdecode, argv[1:])))
    return sorted(set(found))


def _ports() -> list[tuple[str, int]]:
    found = set()
    for protocol in ("tcp", "udp"):
        for line in Path(f"/proc/net/{protocol}").read_text().splitlines()[1:]:
            found.add((protocol, int(line.split()[1].rpartition(":")[2], 16)))
    return sorted(found)


def _sticks() -> list[tuple[str, str, int]]:
    found = []
    for device in Path("/sys/bus/usb/devices").glob("*/idVendor"):
        texts = [device.with_name(name) for name in ("manufacturer", "product")]
        if all(text.exists() for text in texts):
            found.append((*(text.read_text().strip() for text in texts), int(device.read_text(), 16)))
    return found  # type: ignore[return-value]


class Day:
    """What is made: things that happen on a machine, one after the other."""

    def __init__(self, machine: Machine, seed: int) -> None:
        self.machine = machine
        self.dice = dice = random.Random(seed)
        half = slice(seed % 2, None, 2)
        self.people = PEOPLE[half]
        self.sticks = (*STICKS[half], *machine.sticks)
        self.owners, self.reasons = OWNERS[half], REASONS[half]
        self.network = f"{dice.choice(('10', '192'))}.{dice.randrange(1, 200)}.{dice.randrange(256)}"
        self.rules = _rules()
        self.favourites = dice.sample(machine.commands, min(40, len(machine.commands)))
        self.user_of = {words: dice.choice((("root", 0),) * 9 + tuple(machine.users)) for words in machine.commands}
        self.unit_of = {words: dice.choice(machine.units) for words in machine.commands}
        self.paths = list(machine.files)
        self.records: list[Record] = []
        self.mono, self.wall, self.pid = 20_000, 1_795_416_177_140, 400
        self.open: list[Finding] = []
        self.session: Actor | None = None
        self.gauges = {
            "rss_kib": 15_000, "processes": 95, "listening": 7, "established": 3, "memory_free_kib": 310_000,
            "disk_free_kib": 5_120_000, "lost": 0, "spool_bytes": 300_000,
        }  # fmt: skip
        self.counters = {"cpu_ms": 9000, "received_bytes": 10**6, "sent_bytes": 10**5, "observations": 500}

    # --- time, people, programs

    def after(self, ms: float) -> None:
        self.mono += int(self.dice.expovariate(1 / ms)) + 1

    @property
    def moment(self) -> Moment:
        return Moment(self.mono, self.wall + self.mono, 2)

    @property
    def now(self) -> int:
        return self.wall + self.mono

    def process(self) -> int:
        self.pid = (self.pid + 1 + int(self.dice.expovariate(0.05))) % 4_194_304 or 300
        return self.pid

    def digest(self) -> bytes:
        return self.dice.randbytes(32)

    def person(self, path: str = "") -> Actor:
        """Somebody who is logged in, often as root by sudo; a session has some ten acts."""
        dice = self.dice
        if not self.session or dice.random() < 0.1:
            place = dice.randrange(len(self.people))
            self.session = Actor(
                self.process(), "/usr/bin/bash", ("-bash",), 1000 + place, self.people[place], 1000 + place,
                self.people[place], f"pts/{dice.randrange(3)}", f"{self.network}.{dice.randrange(2, 30)}",
                f"session-{dice.randrange(1, 60)}.scope",
                ((self.process(), "/usr/sbin/sshd"), (612, "/usr/sbin/sshd"), (1, "/usr/lib/systemd/systemd")),
            )  # fmt: skip
        shell, words = self.session, self.command(path or self.dice.choice(self.paths))
        assert shell.pid
        actor = shell._replace(
            pid=self.process(), exe=words[0], argv=(os.path.basename(words[0]), *words[1:]),
            parents=((shell.pid, shell.exe), *shell.parents),
        )  # fmt: skip
        return actor._replace(uid=0, user="root") if dice.random() < 0.7 else actor

    def service(self) -> Actor:
        words = self.routine()
        return Actor(self.process(), words[0], words[:3], 0, "root", None, "", "", "", self.unit_of[words])

    def routine(self) -> tuple[str, ...]:
        """One of the forty command lines that a device starts most, the n-th a n-th as often as the first."""
        weights = [1 / place for place in range(1, len(self.favourites) + 1)]
        return self.dice.choices(self.favourites, weights)[0]

    def command(self, path: str) -> tuple[str, ...]:
        """A command line that somebody types, on a file of this machine."""
        dice = self.dice
        verb = dice.choice(("cp", "vi", "sed", "tee", "mv", "chmod", "install", "systemctl", "dpkg", "nano", "python3"))
        last = {
            "cp": (f"/home/{dice.choice(self.people)}/{os.path.basename(path)}", path),
            "sed": ("-i", f"s/{dice.randrange(100)}/{dice.randrange(100)}/", path),
            "systemctl": ("restart", dice.choice(self.machine.units)),
            "chmod": (f"{dice.choice((644, 755, 4755, 600))}", path),
        }
        return (f"/usr/bin/{verb}", *last.get(verb, (path,)))

    # --- what the daemon would write

    def see(self, kind: str, subject: str, columns: dict[str, Any], expected: dict[str, Any] | None = None,
            actor: Actor = NOBODY, origin: Origin = Origin.LIVE) -> Observation:  # fmt: skip
        seen = Observation(kind, subject, columns, self.now, origin=origin, actor=actor)
        self.records.append(compose.observation(seen, self.moment, expected))
        return seen

    def find(self, seen: Observation, expected: dict[str, Any]) -> Finding:
        rule = self.dice.choice(self.rules_for(seen, next(iter(expected))))
        letters = "".join(self.dice.choices("23456789ABCDEFGHJKMNPQRSTVWXYZ", k=4))
        finding = Finding(
            f"F-{letters}", rule["code"], rule["id"], seen.kind, seen.subject, self.dice.choice(tuple(Severity)[1:]),
            State.OPEN, "", self.now, self.now, 1, seen.origin, expected,
            {name: seen.columns.get(name) for name in expected}, seen.actor, Outcome.FAIL, details=seen.columns,
            remediation=rule.get("remediation", "") and self.dice.choice(("", "restore: done")),
        )  # fmt: skip
        self.tell(Transition.OPENED, finding)
        self.open.append(finding)
        return finding

    def rules_for(self, seen: Observation, column: str) -> list[dict[str, Any]]:
        """Rules that look at this column of such a thing; any of its kind if there is none."""
        kind = [rule for rule in self.rules if rule["kind"] == seen.kind]
        exact = [rule for rule in kind if column in rule.get("expect", ())]
        category = seen.columns.get("category")
        named = [
            rule for rule in exact if category in (rule["where"].get("category"), *_list(rule["where"].get("category")))
        ]
        return named[:1] or exact or kind

    def tell(self, transition: Transition, finding: Finding) -> None:
        self.records.append(compose.finding(Change(transition, finding, None), self.moment))

    def resolve(self, kind: str, state: State = State.RESOLVED) -> Finding | None:
        found = next((finding for finding in self.open if finding.kind == kind), None)
        if found is not None:
            self.open.remove(found)
            found = found._replace(state=state)  # what it said stays
            self.tell(Transition.RESOLVED if state is State.RESOLVED else Transition.SUPPRESSED, found)
        return found

    # --- scenes

    def ordinary_program(self) -> None:
        for _ in range(self.dice.randrange(1, 4)):
            self.after(400)
            words = self.routine() if self.dice.random() < 0.9 else self.dice.choice(self.machine.commands)
            user, uid = self.user_of[words]
            parent = self.process()
            columns = {
                "exe": words[0], "argv": words, "pid": self.process(), "ppid": parent, "uid": uid, "user": user,
                "exe_state": "ok", "exe_known": True, "unit": self.unit_of[words],
                "parents": self.dice.choice((("/usr/bin/dash", "/usr/sbin/cron"), ("/usr/lib/systemd/systemd",))),
                "start": self.now - self.dice.randrange(30), "running": 1,
            }  # fmt: skip
            self.see("process", words[0], columns)

    def metric(self) -> None:
        """Counters grow, and what a gauge says is near to what it said a minute ago."""
        dice, gauges = self.dice, self.gauges
        for name, most in (("cpu_ms", 60), ("received_bytes", 90_000), ("sent_bytes", 40_000), ("observations", 30)):
            self.counters[name] += dice.randrange(most)
        for name, step in GAUGE_STEPS.items():
            gauges[name] = max(0, gauges[name] + dice.randint(-step, step))
        gauges["temperature_mc"] = 44_000 + 500 * dice.randrange(10)
        gauges["load_permille"] = dice.randrange(20, 400)
        gauges["disk_free_kib"] -= dice.randrange(90)
        gauges["open_findings"] = len(self.open)
        gauges["spool_bytes"] = (gauges["spool_bytes"] + dice.choice((0, 0, 2500))) % 900_000
        self.records.append(compose.metric({**self.counters, **gauges}, self.moment))

    def file_changed(self) -> None:
        paths = self.dice.sample(self.paths, self.dice.choice((1, 1, 2, 3)))
        actor = self.person(paths[0]) if self.dice.random() < 0.7 else self.service()
        for path in paths:
            self.after(900)
            known = self.machine.files[path]
            columns = {**known, "package": self.machine.owners.get(path)}
            if self.dice.random() < 0.75:
                columns.update(sha256=self.digest(), size=max(0, known["size"] + self.dice.randrange(-200, 400)))
                failed = "sha256"
            else:
                columns["mode"], failed = known["mode"] | self.dice.choice((0o020, 0o002, 0o4000)), "mode"
            origin = Origin.LIVE if self.dice.random() < 0.85 else Origin.SWEEP
            if columns[failed] != known[failed]:
                seen = self.see("file", path, columns, known, actor if origin is Origin.LIVE else NOBODY, origin)
                self.find(seen, {failed: known[failed]})

    def file_changed_back(self) -> None:
        found = self.resolve("file")
        if found is not None:
            known = self.machine.files[found.subject]
            self.see("file", found.subject, known, known, self.person(found.subject))

    def unusual_program(self) -> None:
        actor = self.person()
        name = (
            f"/{self.dice.choice(('tmp', 'dev/shm', 'var/tmp', f'home/{actor.login_user}'))}/{self.digest().hex()[:6]}"
        )
        columns = {
            "exe": name, "argv": (name, *actor.argv[1:2]), "pid": self.process(), "ppid": actor.pid, "uid": actor.uid,
            "user": actor.user, "login_uid": actor.login_uid, "tty": actor.tty, "unit": actor.unit, "exe_state": "ok",
            "writable_dir": True, "parents": tuple(exe for _, exe in actor.parents), "start": self.now, "running": 1,
        }  # fmt: skip
        self.find(self.see("process", name, columns), {"writable_dir": False})

    def port(self) -> None:
        dice, words = self.dice, self.routine()
        protocol, number = dice.choice(self.machine.ports or [("tcp", 22)])
        if dice.random() < 0.7:
            number = dice.randrange(1024, 61000)
        address, scope = dice.choice(
            (("0.0.0.0", "any"), ("::", "any"), ("127.0.0.1", "loopback"), (f"{self.network}.7", "address"))
        )
        shown = f"[{address}]" if ":" in address else address
        columns = {
            "protocol": protocol, "address": address, "port": number, "scope": scope, "exe": words[0], "uid": 0,
            "user": "root", "unit": dice.choice(self.machine.units), "pid": self.process(), "owner": "process",
            "package": self.machine.owners.get(words[0], ""),
        }  # fmt: skip
        seen = self.see("listener", f"{protocol}/{shown}:{number}", columns)
        if dice.random() < 0.2:
            self.find(seen, {"known": True})

    def setting(self) -> None:
        name = self.dice.choice(self.machine.settings)
        columns = {"value": str(self.dice.randrange(3)), "level": 0, "ordered": True}
        seen = self.see("sysctl", name, columns, {"level": 1}, self.person() if self.dice.random() < 0.5 else NOBODY)
        self.find(seen, {"level": 1, "value": "1"})

    def account(self) -> None:
        name = self.dice.choice(self.people)
        columns = {
            "name": name, "type": "user", "uid": 1000 + self.dice.randrange(9), "gid": 1000, "home": f"/home/{name}",
            "shell": "/bin/bash", "password": "set", "groups": ("sudo", "users", name), "privileged": True,
        }  # fmt: skip
        self.find(self.see("account", f"user/{name}", columns, {}, self.person()), {"groups": ("users", name)})

    def usb(self) -> None:
        maker, name, vendor = self.dice.choice(self.sticks)
        product, serial = self.dice.randrange(65536), self.digest().hex()[:12].upper()
        columns = {
            "vendor": f"{vendor:04x}", "product": f"{product:04x}", "serial": serial, "manufacturer": maker,
            "name": name, "interfaces": self.dice.choice(INTERFACES),
            "port": f"1-1.{self.dice.randrange(1, 5)}", "authorized": True,
            "driver": "usb-storage",
        }  # fmt: skip
        self.find(self.see("usb", f"{vendor:04x}:{product:04x}/{serial}", columns), {"known": True})
        self.after(60_000)
        self.resolve("usb")

    def upgrade(self) -> None:
        for name, version, architecture in self.dice.sample(self.machine.packages, self.dice.randrange(1, 9)):
            self.after(300)
            after = f"{version}+u{self.dice.randrange(9)}"
            counts = (self.dice.randrange(3, 90), 0, self.dice.choice((0, 0, 1)), 0)
            package = {
                "name": name, "architecture": architecture, "before": version, "after": after,
                "word": "archive", "sha256": self.digest(), "signed": counts[0], "other": counts[1], "kept": counts[2],
                "removed": counts[3], "others": (), "text": f"{name}: {counts[0]} files as in the package",
            }  # fmt: skip
            self.records.append(compose.upgrade(package, self.moment, Severity.INFORMATIONAL))
        self.state(
            "sweep", f"upgrade: {self.dice.randrange(2, 90)} files made of packages, their content is not proven"
        )

    def start(self) -> None:
        self.state("start", "edgeguardd 0.1.0")
        for sensor, rung in zip(SENSORS, RUNGS, strict=True):
            self.after(40)
            columns = {"rung": rung, "proven": True, "blind": (), "tried": ()}
            self.state("sensor", f"{sensor}: {rung}", subject=f"sensor {sensor}", columns=columns)
        self.state("baseline installed", f"revision {self.dice.randrange(1, 40)} (signed)")

    def sweep(self) -> None:
        self.state(
            "sweep", f"{len(self.machine.files) + self.dice.randrange(400)} files, {self.dice.randrange(3)} changed"
        )

    def acceptance(self) -> None:
        for kind in ("process", "sysctl", "listener", "account"):
            found = self.resolve(kind, self.dice.choice((State.RESOLVED, State.SUPPRESSED)))
            if found is not None:
                words = f"{self.dice.choice(self.owners)}: {self.dice.choice(self.reasons)}"
                self.state("accepted", words, subject=found.id)

    def loss(self) -> None:
        self.records.append(compose.drop(3, "memory full", self.moment, count=self.dice.randrange(1, 200)))

    def state(self, what: str, text: str, **more: Any) -> None:
        self.records.append(compose.state(what, self.moment, text, **more))


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _rules() -> list[dict[str, Any]]:
    return list(tomllib.loads((TOP / "packaging/policy.d/20-rules.toml").read_text())["rule"])


def corpus(machine: Machine, seed: int, events: int = EVENTS) -> list[Record]:
    """At least so many records, oldest first."""
    day = Day(machine, seed)
    day.start()
    names, weights = list(SCENES), list(SCENES.values())
    while len(day.records) < events:
        day.after(60_000)
        scene = day.dice.choices(names, weights)[0]
        getattr(day, scene.replace(" ", "_"))()
    return day.records


class Baseline:
    """The manifest of a machine's files, as far as segments refer to it."""

    def __init__(self, machine: Machine) -> None:
        paths = sorted(machine.files)
        self._numbers = {path: number for number, path in enumerate(paths)}
        self._digests = [machine.files[path]["sha256"] for path in paths]
        self._paths = paths

    def reference(self, text: str) -> int | None:
        return self._numbers.get(text)

    def resolve(self, number: int) -> str:
        return self._paths[number]

    def digest(self, number: int) -> bytes:
        return self._digests[number]


def streams(records: list[Record]) -> list[list[Record]]:
    """The same by stream: a segment holds records of one."""
    return [[record for record in records if record.stream == stream] for stream in range(4)]
