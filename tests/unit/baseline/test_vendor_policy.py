"""The policy in the package: it parses, names every finding code, finds what it should, and its twins stay silent.

Each deviation has a neighbour that looks alike and is an ordinary day: a false alarm weighs as much as a miss.
"""

import os
import tomllib

import pytest

from edgeguard.baseline import policy, store
from edgeguard.baseline.document import Baseline, References, compile_baseline
from edgeguard.evaluate.engine import Engine
from edgeguard.model import Mode, Observation, Outcome, Severity, Status
from edgeguard.remediations import TABLE as REMEDIATIONS
from edgeguard.sensors import TABLE as SENSORS
from edgeguard.sensors import sensor_class
from edgeguard.sensors.copies import compared
from edgeguard.sensors.watching import Plan

HOUSE = os.path.join(os.path.dirname(__file__), "..", "..", "..")
VENDOR = os.path.join(HOUSE, "packaging", "policy.d")
NOW = 1_790_000_000_000


@pytest.fixture(scope="module")
def codes():
    with open(os.path.join(HOUSE, "edgeguard", "codes.toml"), "rb") as file:
        return {code: (entry["title"], entry["severity"]) for code, entry in tomllib.load(file).items()}


@pytest.fixture(scope="module")
def kinds():
    found = {}
    for name in SENSORS:
        found.update(sensor_class(name).kinds)
    return found


@pytest.fixture(scope="module")
def vendor(codes, kinds):
    return policy.parse(store.read_policy_dirs(VENDOR, ""), codes, kinds)


def test_it_is_clean(vendor):
    assert vendor.warnings == ()
    assert all(rule.mode is Mode.AUDIT for rule in vendor.rules)
    assert Baseline.from_cbor(compile_baseline(vendor, {}, None, 1, NOW).to_cbor()).policy == vendor


def test_the_manual_speaks_the_truth(codes, kinds):
    """Every TOML example in docs/policy.md is a good site policy over ours."""
    with open(os.path.join(HOUSE, "docs", "policy.md"), encoding="utf-8") as file:
        examples = [part.split("```")[0] for part in file.read().split("```toml\n")[1:]]
    assert len(examples) >= 5
    vendor_files = store.read_policy_dirs(VENDOR, "")
    for example in examples:
        found = policy.parse([*vendor_files, ("50-site.toml", example.encode())], codes, kinds)
        assert found.warnings == ()


def test_it_reads_without_the_sensors(vendor):
    """Where sensors cannot be imported (a fleet's build machine), names and types are taken as they come."""
    found = policy.parse(store.read_policy_dirs(VENDOR, ""))
    assert [(rule.id, rule.where, rule.expect) for rule in found.rules] == [
        (rule.id, rule.where, rule.expect) for rule in vendor.rules
    ]


def test_every_code_has_a_rule(vendor, codes):
    assert {rule.code for rule in vendor.rules} == set(codes)


def test_remediations_are_those_that_exist(vendor):
    assert set(policy.REMEDIATIONS) == set(REMEDIATIONS)
    assert {rule.remediation for rule in vendor.rules} == {*REMEDIATIONS, ""}


def test_every_category_is_judged(vendor):
    """A watch whose files no content rule names would be watched for nothing."""
    judged = set()
    for rule in vendor.rules:
        if any(condition.column == "sha256" for condition in rule.expect):
            judged |= {condition.operand for condition in rule.where if condition.column == "category"}
    watched = {watch.category for watch in vendor.watches if watch.content}
    assert watched <= judged


def test_protected_copies_hold_no_secret(vendor):
    for watch in vendor.watches:
        if watch.protect:
            assert watch.category not in {"key", "account"}
            assert not watch.path.startswith(("/home", "/root/.ssh", "/etc/ssl"))


SHA, OTHER = b"a" * 32, b"b" * 32


def file(category="program", **changes):
    columns = {
        "type": "file",
        "sha256": SHA,
        "size": 10,
        "mode": 0o755,
        "uid": 0,
        "gid": 0,
        "target": "",
        "caps": "",
        "xattrs": b"",
        "category": category,
        "setid": False,
        "world_writable": False,
        "package": "",
        "continuity": "",
        "lost": 0,
    }
    return {**columns, **changes}


def log(continuity="kept", lost=0, **changes):
    return file("log", sha256=None, size=0, mode=0o640, continuity=continuity, lost=lost, **changes)


def listener(protocol="tcp", port=4444, **changes):
    columns = {
        "protocol": protocol,
        "address": "0.0.0.0",
        "port": port,
        "scope": "any",
        "exe": "/usr/bin/python3.11",
        "uid": 0,
        "user": "root",
        "unit": "",
        "ephemeral": False,
        "exe_known": True,
        "sharers": (),
    }
    return {**columns, **changes}


def process(**changes):
    columns = {
        "exe": "",
        "exe_state": "ok",
        "writable_dir": False,
        "exe_known": True,
        "script_writable": False,
        "parents": (),
        "unit": "",
    }
    return {**columns, **changes}


def account(kind="user", **changes):
    columns = {
        "type": kind,
        "uid": 1000 if kind == "user" else None,
        "gid": 1000,
        "home": "/home/a",
        "shell": "/bin/bash",
        "password": "set",
        "members": (),
        "admins": (),
        "system": False,
        "privileged": False,
        "reaching": False,
    }
    return {**columns, **changes}


def sshd(keyword, value, level, match=""):
    return {"keyword": keyword, "value": value, "level": level, "match": match}


def module(taint=""):
    return {"size": 1, "used_by": (), "taint": taint}


def mount(category="disk", **changes):
    return {"fstype": "ext4", "source": "/dev/sda1", "options": ("nodev",), "category": category, **changes}


def sysctl(value, level, ordered=True):
    return {"value": value, "level": level, "ordered": ordered}


OWN = "/usr/lib/edgeguard/edgeguardd"
OWNED = "/usr/lib/python3/dist-packages/edgeguard/"
UP = "/etc/systemd/system/x.service"
RUNC = "memfd:runc_cloned:/proc/self/exe"
SYSTEMD = "/usr/lib/systemd/systemd"
ZONES = "/usr/share/zoneinfo/"
ROME = file("config", type="symlink", sha256=None, mode=0o777, target=ZONES + "Europe/Rome")

# (kind, subject, reference value or None, what is seen or None for absent, {rule: severity})
ORDINARY = {"vouched": "", "files": 0, "came_from": ""}  # a package that an archive vouches for
CASES = [
    # -- files
    ("file", "/usr/sbin/sshd", file(), file(), {}),
    ("file", "/usr/sbin/sshd", file(), file(sha256=OTHER), {"file.content.program": "CRITICAL"}),
    ("file", "/usr/sbin/sshd", file(), file(mode=0o777), {"file.attributes": "MEDIUM"}),
    ("file", "/usr/sbin/sshd", file(), file(mode=0o4755, setid=True), {"file.setid": "CRITICAL"}),
    ("file", "/usr/bin/ping", file(), file(caps="01", setid=True), {"file.setid": "CRITICAL"}),
    ("file", "/usr/bin/su", file(mode=0o4755), file(), {"file.attributes": "MEDIUM"}),
    ("file", "/usr/sbin/sshd", file(), None, {"file.missing": "HIGH"}),
    (
        "file",
        "/usr/sbin/sshd",
        file(),
        file(type="symlink", sha256=None, target="/tmp/x", mode=0o777),
        {"file.type": "HIGH"},
    ),
    ("file", "/usr/lib/x.so", None, file(), {"file.new.other": "LOW"}),
    ("file", "/usr/lib/newdir", None, file(type="directory", sha256=None), {}),
    ("file", "/usr/local/bin/x", None, file(), {"file.new.command": "MEDIUM"}),
    ("file", "/usr/lib/python3/dist-packages/x.pth", None, file(), {"file.new.hook": "MEDIUM"}),
    ("file", "/usr/lib/python3/dist-packages/x.py", None, file(), {"file.new.other": "LOW"}),
    ("file", "/usr/lib/aarch64-linux-gnu/security/pam_x.so", None, file(), {"file.new.hook": "MEDIUM"}),
    ("file", "/usr/lib/modules/6.1.0-1-arm64/updates/x.ko.xz", None, file(), {"file.new.hook": "MEDIUM"}),
    ("file", "/usr/lib/aarch64-linux-gnu/libx.so.1", None, file(), {"file.new.other": "LOW"}),
    ("file", "/etc/pam.d/x", None, file("config"), {"file.new.hook": "MEDIUM"}),
    ("file", "/etc/pam.d", None, file("config", type="directory", sha256=None), {}),
    ("file", "/tmp/.x", None, file("other", setid=True, mode=0o4755), {"file.new.setid": "CRITICAL"}),
    (
        "file",
        "/usr/lib/python3/dist-packages/a/__pycache__/b.cpython-311.pyc",
        None,
        file(),
        {"file.new.derived": "INFORMATIONAL"},
    ),
    (
        "file",
        "/usr/lib/python3/dist-packages/a/__pycache__/b.cpython-311.pyc",
        file(),
        file(sha256=OTHER),
        {"file.content.program": "CRITICAL"},
    ),
    ("file", "/boot/firmware/config.txt", file("boot"), file("boot"), {}),
    ("file", "/boot/firmware/config.txt", file("boot"), file("boot", sha256=OTHER), {"file.content.boot": "CRITICAL"}),
    ("file", "/boot/cmdline.txt", file("boot"), file("boot", sha256=OTHER), {"file.content.boot": "CRITICAL"}),
    ("file", "/boot/firmware/autoboot.txt", None, file("boot"), {"file.new.boot": "HIGH"}),
    ("file", "/boot/firmware/user-data", None, file("boot"), {"file.new.boot": "HIGH"}),
    ("file", "/boot/ssh", None, file("boot"), {"file.new.boot": "HIGH"}),
    ("file", "/boot/firmware/pieeprom.upd", None, file("boot"), {"file.new.other": "LOW"}),  # by rpi-eeprom-update
    ("file", "/boot/firmware/overlays/x.dtbo", None, file("boot"), {"file.new.other": "LOW"}),
    (
        "file",
        "/boot/firmware/overlays/x.dtbo",
        file("boot"),
        file("boot", sha256=OTHER),
        {"file.content.boot": "CRITICAL"},
    ),
    ("file", "/boot/firmware/kernel8.img", file("boot"), file("boot", sha256=OTHER), {"file.content.boot": "CRITICAL"}),
    ("file", "/boot/firmware/armstub8.bin", None, file("boot"), {"file.new.boot": "HIGH"}),
    ("file", "/boot/firmware/start4.elf", None, file("boot"), {"file.new.boot": "HIGH"}),
    ("file", "/usr/lib/raspi-firmware/autoboot.txt", None, file("boot"), {"file.new.boot": "HIGH"}),
    (
        "file",
        "/usr/lib/raspi-firmware/start.elf",
        file("boot"),
        file("boot", sha256=OTHER),
        {"file.content.boot": "CRITICAL"},
    ),
    ("file", "/etc/default/raspi-extra-cmdline", None, file("boot"), {"file.new.boot": "HIGH"}),
    ("file", "/boot/efi/EFI/BOOT/BOOTAA64.EFI", None, file("boot"), {"file.new.boot": "HIGH"}),
    ("file", "/boot/efi/EFI/new", None, file("boot", type="directory", sha256=None), {}),
    ("file", "/var/log/syslog", log(), log(), {}),
    ("file", "/var/log/syslog", log(), log("unknown"), {}),
    ("file", "/var/log/syslog", log(), log("shortened", 10), {"file.log": "HIGH"}),
    ("file", "/var/log/new", None, log("rewritten", 10), {"file.log": "HIGH"}),
    ("file", "/var/log/new", None, log(), {}),
    ("file", "/var/log/syslog", log(), log(uid=5), {"file.attributes": "MEDIUM"}),
    ("file", "/etc/hosts", file("config"), file("config", sha256=OTHER), {"file.content.config": "HIGH"}),
    ("file", "/etc/hostname", file("config"), file("config", sha256=OTHER), {"file.content.place": "LOW"}),
    ("file", "/etc/localtime", ROME, ROME, {}),
    ("file", "/etc/localtime", ROME, {**ROME, "target": ZONES + "Etc/UTC"}, {"file.type.zone": "LOW"}),
    ("file", "/etc/localtime", ROME, {**ROME, "target": "/tmp/x"}, {"file.type.no-zone": "HIGH"}),
    ("file", "/etc/localtime", file("config"), {**ROME, "target": "/tmp/x"}, {"file.type.no-zone": "HIGH"}),
    ("file", "/etc/shadow", file("account", sha256=None), file("account", sha256=None), {}),
    (
        "file",
        "/etc/shadow",
        file("account", sha256=None, mode=0o640),
        file("account", sha256=None, mode=0o644),
        {"file.attributes.secret": "HIGH"},
    ),
    ("file", "/etc/ld.so.preload", None, file("preload"), {"file.new.preload": "CRITICAL"}),
    ("file", "/etc/ld.so.preload", file("preload"), file("preload"), {}),
    (
        "file",
        "/etc/ld.so.preload",
        file("preload"),
        file("preload", sha256=OTHER),
        {"file.content.preload": "CRITICAL"},
    ),
    ("file", "/etc/ld.so.conf.d/x.conf", None, file("preload"), {"file.new.linker": "HIGH"}),
    ("file", UP, None, file("unit"), {"file.new.unit": "HIGH"}),
    ("file", UP, file("unit"), file("unit", sha256=OTHER), {"file.content.unit": "HIGH"}),
    ("file", "/etc/cron.d/x", None, file("cron"), {"file.new.cron": "HIGH"}),
    ("file", "/etc/sudoers.d/x", None, file("sudoers"), {"file.new.sudoers": "HIGH"}),
    ("file", "/etc/profile.d/x.sh", None, file("script"), {"file.new.script": "MEDIUM"}),
    ("file", "/home/a/.bashrc", file("script"), file("script", sha256=OTHER), {"file.content.script.home": "LOW"}),
    ("file", "/root/.bashrc", file("script"), file("script", sha256=OTHER), {"file.content.script": "MEDIUM"}),
    ("file", "/home/a/.ssh/authorized_keys", None, file("key"), {}),  # authorized_key.new says it better
    ("file", "/home/a/.ssh/authorized_keys", file("key"), file("key", sha256=OTHER), {}),
    ("file", "/etc/ssh/ssh_host_rsa_key", file("key"), file("key", sha256=OTHER), {"file.content.key": "HIGH"}),
    ("file", "/home/a/.ssh/id_rsa", None, file("key"), {"file.new.other": "LOW"}),
    ("file", OWN, file("own"), file("own", sha256=OTHER), {"file.content.own": "CRITICAL"}),
    ("file", OWN, file("own"), file("own", mode=0o777), {"file.attributes.own": "HIGH"}),
    ("file", OWN, file("own"), None, {"file.missing.own": "CRITICAL"}),
    ("file", OWNED + "__pycache__", file("own", type="directory", sha256=None), None, {}),
    ("file", OWNED + "__pycache__/model.cpython-311.pyc", file("own"), None, {}),
    ("file", "/usr/lib/python3/dist-packages/a/__pycache__", file(type="directory", sha256=None), None, {}),
    ("file", "/usr/lib/python3/dist-packages/a/__pycache__/b.cpython-311.pyc", file(), None, {}),
    ("file", "/usr/lib/python3/dist-packages/a", file(type="directory", sha256=None), None, {"file.missing": "HIGH"}),
    ("file", OWN + ".bak", None, file("own"), {"file.new.own": "HIGH"}),
    ("file", "/home/a/.bashrc", file("script"), None, {"file.missing.home": "LOW"}),
    # -- listeners
    ("listener", "tcp/0.0.0.0:22", listener(port=22), listener(port=22), {}),
    ("listener", "tcp/0.0.0.0:4444", None, listener(), {"listener.tcp": "HIGH"}),
    ("listener", "tcp/[::]:4444", None, listener(scope="any"), {"listener.tcp": "HIGH"}),
    ("listener", "tcp/10.0.0.5:4444", None, listener(scope="address"), {"listener.tcp": "HIGH"}),
    ("listener", "tcp/127.0.0.1:6010", None, listener(scope="loopback"), {"listener.tcp.loopback": "LOW"}),
    ("listener", "tcp/0.0.0.0:22", listener(port=22), None, {}),
    (
        "listener",
        "tcp/0.0.0.0:22",
        listener(port=22, exe="/usr/sbin/sshd"),
        listener(port=22, exe="/tmp/x", exe_known=False),
        {"listener.program": "HIGH"},
    ),
    (
        "listener",
        "tcp/127.0.0.1:631",
        listener(exe=SYSTEMD),
        listener(exe="/usr/sbin/cupsd", sharers=("/usr/sbin/cupsd", SYSTEMD)),
        {},
    ),
    ("listener", "tcp/127.0.0.1:631", listener(exe="/usr/sbin/cupsd"), listener(exe=SYSTEMD), {}),
    ("listener", "tcp/0.0.0.0:22", listener(exe="/usr/sbin/sshd"), listener(exe=""), {}),
    ("listener", "udp/0.0.0.0:5555", None, listener("udp", 5555), {"listener.udp": "MEDIUM"}),
    ("listener", "udp/0.0.0.0:40000", None, listener("udp", 40000, ephemeral=True), {}),
    (
        "listener",
        "udp/0.0.0.0:40000",
        None,
        listener("udp", 40000, ephemeral=True, exe="/tmp/x", exe_known=False),
        {"listener.udp.ephemeral": "MEDIUM"},
    ),
    ("listener", "udp/0.0.0.0:40000", None, listener("udp", 40000, ephemeral=True, exe="", exe_known=False), {}),
    ("listener", "udp/10.0.0.9%eth0:68", None, listener("udp", 68, scope="address"), {}),
    (
        "listener",
        "udp/10.0.0.9%eth0:68",
        None,
        listener("udp", 68, exe="/tmp/x", exe_known=False),
        {"listener.udp.client": "MEDIUM"},
    ),
    # -- processes
    ("process", "/usr/bin/ls", None, process(), {}),
    ("process", "/usr/sbin/sshd", None, process(exe_state="replaced", exe_known=False), {}),  # an upgrade
    (
        "process",
        "/tmp/.x",
        None,
        process(exe_state="deleted", exe_known=False, writable_dir=True),
        {"process.deleted": "CRITICAL"},
    ),
    (
        "process",
        "/usr/bin/gone",
        None,
        process(exe_state="deleted"),
        {"process.deleted.installed": "LOW"},
    ),
    (
        "process",
        "/usr/bin/gone",
        None,
        process(exe_state="deleted", exe_known=False),
        {"process.deleted.unknown": "MEDIUM"},
    ),
    ("process", "memfd:x", None, process(exe_state="memfd", exe_known=False), {"process.memfd": "CRITICAL"}),
    ("process", RUNC, None, process(exe_state="memfd", exe_known=False), {"process.memfd.runc": "CRITICAL"}),
    ("process", RUNC, None, process(exe_state="memfd", exe_known=False, parents=("/usr/bin/dockerd", SYSTEMD)), {}),
    ("process", "/tmp/x", None, process(writable_dir=True, exe_known=False), {"process.writable": "HIGH"}),
    ("process", "/opt/new", None, process(exe_known=False), {"process.unknown": "MEDIUM"}),
    ("process", "/home/a/bin/x", None, process(exe_known=False), {"process.unknown.home": "LOW"}),
    ("process", "/usr/bin/nginx", None, process(exe_state="foreign", exe_known=False), {}),  # in a container
    (
        "process",
        "/tmp/x",  # in the PrivateTmp= of a service
        None,
        process(exe_state="private", exe_known=False, writable_dir=True),
        {"process.writable": "HIGH"},
    ),
    (
        "process",
        "/usr/sbin/cron",  # another file mounted over it, for this process alone
        None,
        process(exe_state="private", exe_known=False),
        {"process.unknown": "MEDIUM"},
    ),
    (
        "process",
        "/tmp/x",
        None,
        process(writable_dir=True, exe_known=False, exe_state="unknown"),
        {"process.writable": "HIGH"},
    ),
    ("process", "/tmp/x.py", None, process(exe="/usr/bin/python3.11", script_writable=True), {"process.script": "LOW"}),
    (
        "process",
        "/tmp/x",
        None,
        process(exe="/usr/lib/ld-linux-aarch64.so.1", script_writable=True),
        {"process.loader": "HIGH"},
    ),
    ("process", "/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2", None, process(), {}),
    # -- USB
    ("usb", "0951:1666/1", None, {"interfaces": ("080650",)}, {"usb.unknown": "MEDIUM"}),
    ("usb", "0951:1666/1", {"interfaces": ("080650",)}, {"interfaces": ("080650",)}, {}),
    (
        "usb",
        "0951:1666/1",
        {"interfaces": ("080650",)},
        {"interfaces": ("030101", "080650")},
        {"usb.functions": "HIGH"},
    ),
    ("usb", "0951:1666/1", {"interfaces": ("080650",)}, None, {}),
    # -- host
    ("sysctl", "kernel.kptr_restrict", sysctl("1", 1), sysctl("0", 0), {"sysctl.weakened": "HIGH"}),
    ("sysctl", "kernel.kptr_restrict", sysctl("1", 1), sysctl("2", 2), {}),
    ("sysctl", "kernel.kptr_restrict", sysctl("1", 1), sysctl("9", -1), {"sysctl.weakened": "HIGH"}),
    (
        "sysctl",
        "kernel.core_pattern",
        sysctl("core", 0, False),
        sysctl("|/tmp/x", 0, False),
        {"sysctl.changed": "HIGH"},
    ),
    ("module", "usb_storage", None, module(), {"module.new": "LOW"}),
    ("module", "rootkit", None, module("OE"), {"module.tainted": "HIGH"}),
    ("module", "vboxdrv", module("OE"), module("OE"), {}),
    ("mount", "/mnt", None, mount(), {"mount.new": "MEDIUM"}),
    ("mount", "/mnt", None, mount("memory", fstype="tmpfs"), {"mount.new.memory": "LOW"}),
    ("mount", "/boot/efi", None, mount(), {"mount.new": "MEDIUM"}),
    ("mount", "/etc/cron.d", None, mount("memory", fstype="tmpfs"), {"mount.over": "HIGH"}),
    ("mount", "/etc/passwd", None, mount(), {"mount.over": "HIGH"}),
    ("mount", "/var/lib/edgeguard", None, mount("memory", fstype="tmpfs"), {"mount.over": "HIGH"}),
    ("mount", "/usr", None, mount("pseudo", fstype="overlay"), {"mount.over": "HIGH"}),
    ("mount", "/proc/321", None, mount("memory", fstype="tmpfs"), {"mount.over": "HIGH"}),  # hides a process
    ("mount", "/proc/fs/nfsd", None, mount("pseudo", fstype="nfsd"), {"mount.new.memory": "LOW"}),
    ("mount", "/run/user/1000", None, mount("transient", fstype="tmpfs"), {}),
    ("mount", "/", mount(), mount(options=()), {"mount.options": "MEDIUM"}),
    ("mount", "/", mount(), mount(source="/dev/sdb1"), {}),  # disks are numbered anew at each boot
    # -- sshd
    (
        "sshd",
        "permitrootlogin",
        sshd("permitrootlogin", "no", 3),
        sshd("permitrootlogin", "yes", 0),
        {"sshd.root": "HIGH"},
    ),
    (
        "sshd",
        "permitrootlogin",
        sshd("permitrootlogin", "yes", 0),
        sshd("permitrootlogin", "yes", 0),
        {"sshd.root": "HIGH"},
    ),
    (
        "sshd",
        "permitrootlogin",
        sshd("permitrootlogin", "no", 3),
        sshd("permitrootlogin", "without-password", 1),
        {"sshd.root.weakened": "MEDIUM"},
    ),
    ("sshd", "permitrootlogin", sshd("permitrootlogin", "yes", 0), sshd("permitrootlogin", "no", 3), {}),
    ("sshd", "x11forwarding", sshd("x11forwarding", "yes", 0), sshd("x11forwarding", "no", 1), {}),
    (
        "sshd",
        "x11forwarding",
        sshd("x11forwarding", "no", 1),
        sshd("x11forwarding", "yes", 0),
        {"sshd.weakened": "MEDIUM"},
    ),
    ("sshd", "port", sshd("port", "22", 0), sshd("port", "2222", 0), {"sshd.changed": "MEDIUM"}),
    ("sshd", "port", None, sshd("port", "22", 0), {}),  # sshd was installed
    ("sshd", "x11forwarding match user a", None, sshd("x11forwarding", "yes", 0, "user a"), {"sshd.match": "MEDIUM"}),
    # -- libraries
    ("library_dir", "/lib", None, {"origin": "loader", "library": ""}, {}),
    ("library_dir", "/srv/x", None, {"origin": "neither", "library": "a.so"}, {"library-dir.foreign": "HIGH"}),
    ("library_dir", "/srv/x", {}, {"origin": "neither", "library": "a.so"}, {"library-dir.foreign": "HIGH"}),
    # -- accounts
    ("account", "user root", account(uid=0, gid=0), account(uid=0, gid=0), {}),
    (
        "account",
        "user toor",
        None,
        account(uid=0, system=True),
        {"account.root": "CRITICAL"},
    ),
    ("account", "user toor", account(uid=0, system=True), account(uid=0, system=True), {"account.root": "CRITICAL"}),
    ("account", "user root#2", None, account(uid=0, system=True), {"account.root": "CRITICAL"}),
    ("account", "user a", None, account(), {"account.new": "MEDIUM"}),
    ("account", "user _chrony", None, account(uid=102, system=True, password="locked"), {"account.new.system": "LOW"}),
    (
        "account",
        "user a",
        account(),
        account(password="none"),
        {"account.password-removed": "HIGH"},
    ),
    (
        "account",
        "user root",
        account(password="none"),
        account(password="none"),
        {"account.no-password-learned": "LOW"},
    ),
    ("account", "user a", account(), account(password="expired"), {}),
    ("account", "user a", account(password="locked"), account(), {"account.unlocked": "MEDIUM"}),
    ("account", "user a", account(shell="/usr/sbin/nologin"), account(), {"account.changed": "MEDIUM"}),
    ("account", "user a", account(), None, {"account.removed": "LOW"}),
    (
        "account",
        "group sudo",
        account("group", privileged=True),
        account("group", privileged=True, members=("a",)),
        {"account.privileged": "HIGH"},
    ),
    ("account", "group audio", account("group"), account("group", members=("a",)), {"account.group": "LOW"}),
    ("account", "group new", None, account("group"), {"account.new.group": "LOW"}),
    ("account", "group docker", None, account("group", privileged=True), {"account.new.group": "LOW"}),
    (
        "account",
        "group docker",
        None,
        account("group", privileged=True, members=("a",)),
        {"account.new.privileged": "HIGH", "account.new.group": "LOW"},
    ),
    (
        "account",
        "group sudo",
        account("group", privileged=True),
        account("group", privileged=True, admins=("a",)),
        {"account.privileged.admins": "HIGH"},
    ),
    ("account", "group audio", account("group"), account("group", admins=("a",)), {}),
    (
        "account",
        "group sudo",
        account("group", privileged=True, password="locked"),
        account("group", privileged=True),
        {"account.privileged.password": "HIGH"},
    ),
    ("account", "group sudo", account("group", privileged=True), account("group", privileged=True), {}),
    ("account", "user a", account(), account(reaching=True), {"account.reaching": "HIGH"}),
    (
        "account",
        "user s",
        None,
        account(system=True),
        {"account.new.system": "LOW", "account.new.system-password": "MEDIUM"},
    ),
    ("authorized_key", "a SHA256:x", None, {"type": "ssh-rsa"}, {"authorized-key.new": "HIGH"}),
    ("authorized_key", "a /home/a/.ssh/authorized_keys", None, {"type": "unread"}, {"authorized-key.unread": "MEDIUM"}),
    ("authorized_key", "a /home/a/.ssh/authorized_keys", {"options": ()}, {"type": "unread", "options": ()}, {}),
    ("authorized_key", "a SHA256:x", {"options": ("restrict",)}, {"options": ()}, {"authorized-key.options": "HIGH"}),
    ("authorized_key", "a SHA256:x", {"options": ()}, None, {"authorized-key.removed": "LOW"}),
    ("file", "/root/.ssh/authorized_keys", file(category="key"), None, {}),
    ("file", "/etc/apt/sources.list.d/x.list", None, file("config"), {"file.new.hook": "MEDIUM"}),
    ("file", "/etc/sysctl.d/x.conf", None, file("config"), {"file.new.hook": "MEDIUM"}),
    ("file", "/etc/newapp/x.conf", None, file("config"), {"file.new.other": "LOW"}),
    ("file", "/usr/lib/NetworkManager/dispatcher.d/pre-up.d/x", None, file("program"), {"file.new.hook": "MEDIUM"}),
    ("file", "/var/lib/dpkg/info/x.postinst", None, file("script"), {"file.new.script.package": "LOW"}),
    (
        "file",
        "/var/lib/dpkg/info/x.postinst",
        file("script"),
        file("script", sha256=OTHER),
        {"file.content.script.package": "MEDIUM"},
    ),
    ("file", "/run/systemd/system/x.service", file(category="unit"), None, {}),
    (
        "file",
        "/root",
        file("other", type="directory", sha256=None, mode=0o700),
        file("other", type="directory", sha256=None, mode=0o777),
        {"file.attributes": "MEDIUM"},
    ),
    # -- packages and health
    ("package", "bash", {"version": "1"}, {"version": "2", "status": "installed", **ORDINARY}, {}),
    (
        "package",
        "bash",
        {"version": "1"},
        {"version": "1", "status": "half-configured", **ORDINARY},
        {"package.incomplete": "INFORMATIONAL"},
    ),
    (
        "package",
        "own",
        None,
        {"version": "1", "status": "installed", "vouched": "nobody", "files": 3, "came_from": ""},
        {"package.stranger": "HIGH"},
    ),
    (
        "package",
        "bash",
        {"version": "2"},
        {"version": "1", "status": "installed", "vouched": "", "files": 0, "came_from": "2"},
        {"package.older": "MEDIUM"},
    ),
    ("package", "bash", {"version": "1"}, None, {}),
    ("health", "clock", None, {"ok": True, "code": ""}, {}),
    ("health", "clock", None, {"ok": False, "code": "EG-HLTH-003"}, {"health.hlth-003": "MEDIUM"}),
    ("health", "sensor usb", None, {"ok": True, "code": "EG-HLTH-002"}, {}),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]} {case[1]}")
def test_deviations_and_their_twins(vendor, kinds, case):
    kind, subject, reference, seen, expected = case
    known = {name for name, column in kinds[kind].items() if column.reference}
    assert set(reference or {}) | set(seen or {}) <= set(kinds[kind])
    kept = None if reference is None else {name: value for name, value in reference.items() if name in known}
    tables = {kind: {} if kept is None else {subject: kept}}
    engine = Engine(vendor.rules, (), References(compile_baseline(vendor, tables, None, 1, NOW)))
    status = Status.ABSENT if seen is None else Status.PRESENT
    category = {"category": reference["category"]} if kind == "file" and seen is None else {}
    results = engine.evaluate(Observation(kind, subject, seen or category, NOW, status), NOW)
    assert [result.rule.id for result in results if result.outcome is Outcome.UNKNOWN] == []
    found = {result.rule.id: result.rule.severity.name for result in results if result.outcome is Outcome.FAIL}
    assert found == expected


@pytest.mark.parametrize(
    ("known", "continuity", "expected"),
    [
        (True, "gone", {"file.log.gone": "HIGH"}),
        (False, "gone", {"file.log.gone.new": "LOW"}),
        (True, "rotated", {}),
        (True, "unknown", {}),
    ],
)
def test_a_log_that_is_gone(vendor, known, continuity, expected):
    tables = {"file": {"/var/log/x": {"type": "file", "mode": 0o640}}} if known else {}
    engine = Engine(vendor.rules, (), References(compile_baseline(vendor, tables, None, 1, NOW)))
    seen = {"category": "log", "continuity": continuity, "lost": 9}
    results = engine.evaluate(Observation("file", "/var/log/x", seen, NOW, Status.ABSENT), NOW)
    assert {r.rule.id: r.rule.severity.name for r in results if r.outcome is Outcome.FAIL} == expected


def test_unreadable(vendor):
    engine = Engine(vendor.rules, (), References(compile_baseline(vendor, {}, None, 1, NOW)))
    seen = Observation("file", "/etc/x", {}, NOW, Status.UNREADABLE, note="Permission denied")
    failed = [result.rule for result in engine.evaluate(seen, NOW) if result.outcome is Outcome.FAIL]
    assert [(rule.id, rule.severity) for rule in failed] == [("file.unreadable", Severity.LOW)]


def test_which_watch_decides(vendor):
    """Through the sensor's own decision, on the paths that matter."""
    watching = pytest.importorskip("edgeguard.sensors.watching")
    plan = watching.Plan(vendor.watches)
    expected = {
        "/usr/sbin/sshd": "program",
        "/usr/lib/systemd/systemd": "program",
        "/usr/lib/systemd/system/ssh.service": "unit",
        "/usr/lib/systemd/system/edgeguard.service": "own",
        "/usr/share/doc/bash/README": "other",
        "/usr/share/perl5/x.pm": "program",
        "/usr/lib/firmware/x.bin": "boot",
        "/etc/hosts": "config",
        "/run/systemd/system/x.service": "unit",
        "/run/systemd/transient/x.service": None,
        "/run/systemd/generator/x.service": None,
        "/run/modprobe.d/x.conf": "script",
        "/run/udev/data/b8:0": None,
        "/run/tmpfiles.d/static-nodes.conf": None,
        "/root/.local/share/systemd/user/x.service": "unit",
        "/root/.local/lib/python3.13/site-packages/x.pth": "script",
        "/root/.local/lib/python3.13/site-packages/x.py": "other",
        "/root/.ssh/rc": "script",
        "/root": "other",
        "/root/.ssh/id_ed25519": "key",
        "/var/lib/dpkg/info/bash.postinst": "script",
        "/var/lib/dpkg/info/bash.list": "other",
        "/etc/shadow-": "account",
        "/etc/passwd-": None,
        "/etc/rc3.d/S01x": "script",
        "/etc/ssh/sshd_config": "config",
        "/etc/ssh/ssh_host_rsa_key": "key",
        "/var/lib/edgeguard/keys/device.pub": "key",
        "/var/lib/edgeguard/ledger.cbor": "other",
        "/etc/ld.so.preload": "preload",
        "/etc/ld.so.conf.d/x.conf": "preload",
        "/etc/systemd/system/x.service": "unit",
        # what dpkg leaves for a moment is nothing; what only looks so is read like any other
        "/etc/systemd/system/x.service.dpkg-new": None,
        "/etc/systemd/system/x.dpkg-y.service": "unit",
        "/etc/profile.d/x.dpkg-y.sh": "script",
        "/etc/apt/apt.conf.d/50x.dpkg-backup": None,
        "/etc/apt/apt.conf.d/x.dpkg-y.conf": "script",
        "/etc/apt/sources.list.d/x.dpkg-y.list": "config",
        "/etc/ssh/sshd_config.d/x.dpkg-y.conf": "config",
        "/etc/pam.d/su.dpkg-divert.tmp": None,
        "/usr/lib/udev/rules.d/9.dpkg-y.rules": "program",
        "/usr/lib/x.so.dpkg-tmp": None,
        "/etc/systemd/system-generators/x": "unit",
        "/etc/systemd/journald.conf": "config",
        "/etc/tmpfiles.d/x.conf": "script",
        "/etc/cron.d/x": "cron",
        "/etc/crontab": "cron",
        "/var/spool/cron/crontabs/root": "cron",
        "/etc/sudoers": "sudoers",
        "/etc/sudoers.d/x": "sudoers",
        "/etc/shadow": "account",
        "/etc/profile.d/x.sh": "script",
        "/etc/apt/apt.conf.d/99x": "script",
        "/root/.bashrc": "script",
        "/home/anna/.bashrc": "script",
        "/root/.ssh/authorized_keys": "key",
        "/home/anna/.ssh/authorized_keys": "key",
        "/home/anna/.config/systemd/user/x.service": "unit",
        "/boot/vmlinuz": "boot",
        "/boot/firmware/config.txt": "boot",
        "/opt/app/run": "program",
        "/usr/lib/edgeguard/edgeguardd": "own",
        "/usr/bin/edgeguard": "own",
        "/etc/edgeguard/agent.toml": "own",
        "/etc/edgeguard/policy.d/50-site.toml": "config",
        "/tmp/x": "other",
        "/home/anna/x": "other",
        "/var/lib/x": "other",
    }
    for path, category in expected.items():
        watch = plan.decide(path)
        assert (watch.category if watch else None) == category, path
    for path in (
        "/proc/1/mem",
        "/run/systemd/transient/x.scope",
        "/etc/mtab",
        "/etc/passwd.lock",
        "/etc/gshadow.4711",
        "/etc/shadow+",
        "/etc/resolv.conf",
        "/boot/grub/grubenv",
        "/home/anna/.ssh/known_hosts",
        "/usr/bin/x.dpkg-new",
        "/etc/passwd.dpkg-old",
    ):
        assert plan.decide(path) is None, path
    for path in ("/tmp/x", "/usr/share/doc/x", "/home/anna/x"):
        assert plan.decide(path).only == "setid"
    assert plan.decide("/usr/sbin/sshd").protect
    assert not plan.decide("/etc/shadow").content


COMPARED = (
    *("/etc/hosts", "/etc/fstab", "/etc/nsswitch.conf", "/etc/ssh/sshd_config", "/etc/ssh/sshd_config.d/a.conf"),
    *("/etc/pam.d/common-password", "/etc/sudoers", "/etc/sudoers.d/pump", "/etc/crontab", "/etc/cron.d/pump"),
    *("/var/spool/cron/crontabs/pi", "/etc/systemd/system/pump.service", "/etc/systemd/system/a.service.d/o.conf"),
    *("/home/pi/.config/systemd/user/a.service", "/etc/profile", "/home/pi/.bashrc", "/etc/nftables.conf"),
    *("/etc/sysctl.d/local.conf", "/etc/apt/sources.list", "/etc/apt/sources.list.d/a.sources", "/etc/ld.so.preload"),
    *("/boot/firmware/config.txt", "/boot/cmdline.txt", "/etc/edgeguard/agent.toml", "/etc/udev/rules.d/9.rules"),
)
SECRET = (
    *("/etc/shadow", "/etc/gshadow", "/etc/shadow-", "/etc/NetworkManager/system-connections/home.nmconnection"),
    *("/etc/wpa_supplicant/wpa_supplicant.conf", "/etc/ssl/private/a.pem", "/etc/app.key", "/etc/default/a.secret"),
    *(
        "/etc/ssh/ssh_host_ed25519_key",
        "/root/.ssh/authorized_keys",
        "/home/pi/.ssh/id_ed25519",
        "/etc/ppp/chap-secrets",
    ),
    *("/etc/apt/auth.conf", "/etc/apt/auth.conf.d/a", "/etc/security/opasswd", "/var/lib/edgeguard/keys/device.key"),
    *("/etc/apt/trusted.gpg.d/a.gpg", "/usr/bin/sudo", "/usr/lib/systemd/system/ssh.service", "/etc/krb5.keytab"),
)


@pytest.mark.parametrize(("path", "told"), [(path, True) for path in COMPARED] + [(path, False) for path in SECRET])
def test_what_changed_in_it_is_told_of_settings_and_never_of_secrets(vendor, path, told):
    watch = Plan(vendor.watches).decide(path)
    assert (watch is not None and compared(watch, path)) is told
