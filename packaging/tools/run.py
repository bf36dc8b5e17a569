#!/usr/bin/python3
"""`make run`: a collector and a daemon on this machine, in mode audit, with everything below build/run.

Learns a small real baseline of this machine, then follows the findings until Ctrl-C, which ends what was started here.
Nothing outside build/run is written, and no port but one on 127.0.0.1 is opened.
"""

from __future__ import annotations

import contextlib
import getpass
import grp
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TOP = Path(__file__).resolve().parents[2]
RUN = TOP / "build/run"
BIN = TOP / "packaging/bin"
DEMO = RUN / "demo"
PYTHON = "/usr/bin/python3"
START_S = 30.0  # until the daemon shows a status, the collector its port: a Raspberry Pi takes five
LEARN_S = 1800.0  # /etc, /usr/bin and /usr/sbin are 15 s here and some minutes on the slowest board
STOP_S = 10.0
# The vendor policy of a device watches the whole system; for a first look the programs and settings are enough.
SMALL = ("/etc", "/usr/bin", "/usr/sbin")


class Failed(Exception):
    """Something did not start; the message says what and where to look."""


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def toml(value: str | Path) -> str:
    return json.dumps(str(value))  # JSON's strings are TOML's


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def settings(port: int) -> Path:
    """agent.toml and a site policy for this run."""
    group = grp.getgrgid(os.getgid()).gr_name
    uplink = RUN / "uplink"
    lines = [
        f"reader_group = {toml(group)}",
        f"admin_group = {toml(group)}",
        "",
        "[paths]",
        f"state = {toml(RUN / 'state')}",
        f"runtime = {toml(RUN / 'run')}",
        f"exchange = {toml(RUN / 'exchange')}",
        f"vendor_policy = {toml(TOP / 'packaging/policy.d')}",
        f"site_policy = {toml(RUN / 'policy.d')}",
        f"trust = {toml(RUN / 'trust.d')}",
        f"libexec = {toml(BIN)}",
        f"act_socket = {toml(RUN / 'run/act.sock')}",
        "",
        "[uplink]",
        f'url = "https://127.0.0.1:{port}"',
        f"ca = {toml(uplink / 'ca.pem')}",
        f"certificate = {toml(uplink / 'client.pem')}",
        f"key = {toml(uplink / 'client.key')}",
        f"collector_key = {toml(uplink / 'collector.pub')}",
        "flush_s = 20",
        "spawn = true",
    ]
    path = RUN / "agent.toml"
    write(path, "\n".join(lines) + "\n")
    return path


def policy() -> None:
    """The vendor's rules, with fewer watched trees: a site file of the same name takes the place of the vendor's."""
    DEMO.mkdir(parents=True, exist_ok=True)
    write(DEMO / "hello", "#!/bin/sh\necho hello\n")
    (DEMO / "hello").chmod(0o755)
    watches = [("/etc", "config"), ("/usr/bin", "program"), ("/usr/sbin", "program"), (str(DEMO), "program")]
    text = "".join(f"[[watch]]\npath = {toml(path)}\ncategory = {toml(category)}\n\n" for path, category in watches)
    write(RUN / "policy.d/10-watches.toml", "# What `make run` watches.\n\n" + text)


class Run:
    """What was started, to be ended in reverse order."""

    def __init__(self) -> None:
        self._started: list[tuple[str, subprocess.Popen[bytes]]] = []

    def start(self, name: str, *words: str | Path) -> subprocess.Popen[bytes]:
        """A program in the background; its words go to build/run/NAME.log."""
        with (RUN / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                # the last words: even if we are killed, nothing that was started here stays
                ["/usr/bin/setpriv", "--pdeathsig", "TERM", *(str(word) for word in words)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C comes to us; we end the others in order
            )
        self._started.append((name, process))
        return process

    def check(self) -> None:
        """Raises Failed when something that should run has ended."""
        for name, process in self._started:
            if process.poll() is not None:
                log = (RUN / f"{name}.log").read_text(errors="replace")[-1500:]
                raise Failed(f"{name} ended with exit code {process.returncode}:\n{log}")

    def stop(self) -> None:
        for name, process in reversed(self._started):
            if process.poll() is None:
                process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                print(f"{name} does not end; killed", file=sys.stderr)
                process.kill()
                process.wait()


def once(*words: str | Path) -> str:
    """A command to its end. Raises Failed with its words."""
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failed(f"{' '.join(str(word) for word in words[:4])}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def status() -> dict[str, Any]:
    """The daemon's last word, {} before its first."""
    try:
        document: dict[str, Any] = json.loads((RUN / "run/status.json").read_text())
    except (OSError, ValueError):
        return {}
    return document


def waiting(run: Run, seconds: float) -> Iterator[None]:
    """Turns of a loop that waits. Raises Failed when something ends or the time is over."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        yield
        run.check()
        time.sleep(0.2)
    raise Failed(f"nothing within {seconds:.0f} s; see build/run/*.log")


def learn(run: Run) -> None:
    """Show progress until the baseline stands."""
    terminal = sys.stderr.isatty()
    shown = ""
    for _ in waiting(run, LEARN_S):
        document = status()
        progress = document.get("learning")
        if document.get("verdict") not in (None, "LEARNING", "UNKNOWN") and document.get("policy"):
            break
        if not progress:
            continue
        filled = int(progress["percent"]) * 30 // 100
        line = (
            f"Learning  [{'#' * filled}{'.' * (30 - filled)}] {progress['percent']:3} %  "
            f"{progress['files']:,} files, {progress['bytes'] / 1e6:,.0f} MB"
        )
        if terminal:
            print(f"\r{line}", end="", file=sys.stderr, flush=True)
        elif line[:45] != shown[:45]:
            print(line, file=sys.stderr)
        shown = line
    if terminal and shown:
        print(file=sys.stderr)


def collector(run: Run, port: int) -> None:
    """A collector on 127.0.0.1."""
    program, folder = BIN / "edgeguard-collector", RUN / "collector"
    once(program, "init", folder)
    run.start("collector", program, "serve", folder, "--listen", f"127.0.0.1:{port}")
    for _ in waiting(run, START_S):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return


def introduce(run: Run) -> None:
    """Once the daemon has made the device's key: the collector gets to know it and gives it a certificate."""
    key = RUN / "state/keys/device.pub"
    for _ in waiting(run, START_S):
        if key.exists():
            break
    device = RUN / "collector/devices/here"
    once(BIN / "edgeguard-collector", "add-device", RUN / "collector", "--name", "here", "--key", key)
    shutil.copytree(device, RUN / "uplink", dirs_exist_ok=True)


def tell(command: str) -> None:
    shown = [
        (f"echo 'echo changed' >> {DEMO.relative_to(TOP)}/hello", "a watched program changes"),
        ("cp /bin/sleep /tmp/eg-demo; /tmp/eg-demo 20", "a program runs from /tmp, and ends"),
        (f"timeout 20 {PYTHON} -m http.server 8099", "a port opens, and closes"),
    ]
    examples = "\n".join(f"  {words:<48} # {meaning}" for words, meaning in shown)
    print(
        f"""
The findings follow as they come. In a second terminal, for instance:

{examples}

and to look:

  {command} status
  {command} findings

Ctrl-C ends the daemon and the collector. What they wrote stays in {RUN.relative_to(TOP)}.
"""
    )


def main() -> int:
    try:
        if RUN.exists():
            shutil.rmtree(RUN)
        RUN.mkdir(parents=True)
    except PermissionError as error:
        print(f"make run: {error}. An earlier run as root? Then: sudo make clean", file=sys.stderr)
        return 1
    port = free_port()
    file = settings(port)
    policy()
    run = Run()
    client = [BIN / "edgeguard", "--settings", file]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for what it starts with `&`
    for number in (signal.SIGTERM, signal.SIGHUP):  # `kill`, and a terminal that is closed
        signal.signal(number, lambda number, _frame: sys.exit(128 + number))
    try:
        small = ", ".join(SMALL)
        print(f"Everything is below {RUN.relative_to(TOP)}. Learning how this machine looks: {small}.", flush=True)
        collector(run, port)
        run.start("edgeguardd", BIN / "edgeguardd", "--settings", file)
        for _ in waiting(run, START_S):
            if status():
                break
        introduce(run)
        learn(run)
        subprocess.run([*client, "status"], check=False)
        if os.geteuid():
            print(f"\nYou are {getpass.getuser()}, not root, so EdgeGuard sees less here:", flush=True)
            subprocess.run([*client, "doctor"], check=False)
        tell(f"{BIN.relative_to(TOP)}/edgeguard --settings {file.relative_to(TOP)}")
        sys.stdout.flush()
        follow = subprocess.Popen([*client, "log", "-f"])
        try:
            while follow.poll() is None:
                run.check()
                time.sleep(0.5)
        finally:
            with contextlib.suppress(ProcessLookupError):
                follow.terminate()
            follow.wait()
    except KeyboardInterrupt:
        print("\nStopping.")
    except Failed as error:
        print(f"make run: {error}", file=sys.stderr)
        return 1
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        run.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
