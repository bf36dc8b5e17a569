"""Every verb through the real program: what it prints, where, and with which exit code."""

import json
import os
import socket
import subprocess
import time
from pathlib import Path

import pytest
from fakes import BAD, GOOD, LEARNING, Fake

TOP = Path(__file__).resolve().parents[3]
LAUNCHER = str(TOP / "packaging/bin/edgeguard")
PYTHON = "/usr/bin/python3"


def edgeguard(*arguments, env=None, **options):
    environment = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "TERM": "xterm", **(env or {})}
    done = subprocess.run(
        [PYTHON, "-IS", LAUNCHER, *arguments], env=environment, capture_output=True, timeout=30, check=False, **options
    )
    assert b"Traceback" not in done.stderr, done.stderr.decode()
    return done


@pytest.fixture
def daemon(tmp_path):
    with Fake(str(tmp_path / "control.sock")) as fake:
        yield fake


def at(daemon):
    return f"--socket={daemon.path}"


@pytest.mark.parametrize(("document", "code"), [(GOOD, 0), (BAD, 2), (LEARNING, 0)])
def test_status_and_its_code(daemon, document, code):
    daemon.document = document
    done = edgeguard(at(daemon))
    assert done.returncode == code
    assert done.stdout.decode().startswith(document["verdict"])
    assert done.stderr == b""
    assert edgeguard(at(daemon), "status", "-q").returncode == code
    assert edgeguard(at(daemon), "-q").stdout == b""


def test_the_fast_path_and_the_long_way_say_the_same(daemon):
    daemon.document = {**BAD, "name": "pümp-🦀-07"}
    fast = edgeguard(at(daemon))
    slow = edgeguard("--socket", daemon.path, "status")
    assert fast.stdout == slow.stdout
    assert "pümp-🦀-07" in fast.stdout.decode()
    assert fast.returncode == slow.returncode == 2


def test_ascii_where_the_terminal_shows_no_more(daemon):
    daemon.document = {**GOOD, "name": "pümp"}
    for env in ({"LANG": "C"}, {"TERM": "vt100"}):
        assert edgeguard(at(daemon), env=env).stdout.isascii()


def test_learning_with_strict_asks_for_attention(daemon):
    daemon.document = LEARNING
    assert edgeguard(at(daemon), "status", "--strict").returncode == 1


def test_status_json_is_the_document(daemon):
    for form in (("-ojson",), ("-o", "json")):
        assert json.loads(edgeguard(at(daemon), *form).stdout) == GOOD


def test_findings(daemon):
    daemon.document = BAD
    done = edgeguard("findings", at(daemon))
    assert done.returncode == 2
    assert b"port 4444/tcp opened by /tmp/.x" in done.stdout
    lines = edgeguard("findings", "-o", "jsonl", at(daemon)).stdout.splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["F-7K2M", "F-3XQ9"]
    assert json.loads(edgeguard("findings", "-o", "json", at(daemon)).stdout)["open"] == 2


def test_explain_fits_the_screen(daemon):
    done = edgeguard("explain", "F-7K2M", at(daemon))
    assert done.returncode == 0
    lines = done.stdout.decode().splitlines()
    assert len(lines) <= 24
    assert any("cp (pid 2198) <- bash (pid 2100)" in line for line in lines)
    assert 'sudo edgeguard accept F-7K2M --reason "..."' in done.stdout.decode()


def test_explain_a_code_needs_no_daemon():
    done = edgeguard("explain", "eg-file-002", "--socket=/nowhere")
    assert done.returncode == 0
    assert done.stdout.startswith(b"EG-FILE-002")
    assert edgeguard("explain", "EG-NONE-001", "--socket=/nowhere").returncode == 1


def test_no_such_finding(daemon):
    done = edgeguard("explain", "F-0000", at(daemon))
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"no finding F-0000" in done.stderr


def test_why_shows_rule_and_place(daemon):
    done = edgeguard("why", ":4444", at(daemon))
    assert b"10-default.toml:22" in done.stdout
    assert daemon.asked == [("Why", {"subject": ":4444"})]


VENDOR = str(TOP / "packaging/policy.d")


def test_which_line_decides_without_a_daemon(tmp_path):
    settings = tmp_path / "agent.toml"
    settings.write_text(
        f'[paths]\nvendor_policy = "{VENDOR}"\nsite_policy = "{tmp_path}/site"\nruntime = "{tmp_path}"\n'
    )
    (tmp_path / "site").mkdir()
    (tmp_path / "site/50.toml").write_text('[[watch]]\npath = "/etc/pump/cache"\noff = true\n')
    (tmp_path / "here").touch()

    def why(*words, **options):
        done = edgeguard("--settings", str(settings), *words, **options)
        return done.returncode, done.stdout.decode()

    code, text = why("policy", "why", "/etc/pump/cache/x", "/etc/pump/x", "/no/such/file", "/proc/1")
    assert code == 1
    one, two, three, four = text.splitlines()
    assert one.endswith(f"not watched: excluded by {tmp_path}/site/50.toml:1: /etc/pump/cache")
    assert f"watched as config by {VENDOR}/10-watches.toml:" in two
    assert two.endswith("/etc; checks type, sha256, mode, uid, gid, target, caps, xattrs")
    assert "only if it runs with other rights" in three
    assert "not watched: excluded by" in four
    code, text = why("policy", "why", "here", cwd=tmp_path)
    assert (code, text.split()[0]) == (0, f"{tmp_path}/here")
    code, text = why("policy", "why", b"/etc/\x1b[31m\xff")
    assert (code, text.split()[0]) == (0, "/etc/\\x1b[31m\\xff")
    code, text = why("-o", "json", "policy", "why", "/etc/ssh/x~")
    (answer,) = json.loads(text)["answers"]
    assert (code, answer["watch"]["watched"], answer["watch"]["excluded"]["glob"]) == (1, False, "**/*~")
    assert why("why", "/etc/passwd")[0] == why("why", "here", cwd=tmp_path)[0] == 3
    assert "watched as account" in why("why", "/etc/passwd")[1]
    assert edgeguard("policy", "why").returncode == 64
    (tmp_path / "site/60.toml").write_text("[[watch]\n")
    done = edgeguard("--settings", str(settings), "policy", "why", "/etc")
    assert (done.returncode, b"60.toml" in done.stderr) == (1, True)
    done = edgeguard("policy", "why", "/etc", "--in", str(tmp_path / "nothing"))
    assert (done.returncode, b"there is no policy file" in done.stderr) == (1, True)


def test_import_of_aide(tmp_path):
    settings = tmp_path / "agent.toml"
    settings.write_text(f'[paths]\nvendor_policy = "{VENDOR}"\nsite_policy = "{tmp_path}/site"\n')
    (tmp_path / "new").mkdir()
    conf, to = tmp_path / "aide.conf", tmp_path / "new/60-aide.toml"
    conf.write_bytes(b"Full = p+u+g+H\n/srv/pump$ Full\n!/srv/pump/[0-9]+$\n/a\x1b[31m Full\n/etc Full\n")
    words = ("--settings", str(settings), "policy", "import-aide", str(conf))
    done = edgeguard(*words, "--to", str(to))
    assert done.returncode == 0
    assert f"{conf}:3: note: /srv/pump/[0-9]+$ cannot be a glob".encode() in done.stderr
    assert f"{conf}:4: warning:".encode() in done.stderr
    assert b"\x1b" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith(b"1 path watched, 0 left out, ")
    assert b'path = "/srv/pump"' in to.read_bytes()
    assert edgeguard("policy", "lint", VENDOR, str(to.parent)).returncode == 0
    assert edgeguard(*words, "--to", str(to)).returncode != 0  # never over a file
    assert edgeguard(*words, "--strict").returncode == 1
    document = json.loads(edgeguard(*words, "-o", "json").stdout)
    assert document["policy"].encode() == to.read_bytes()
    assert {item["line"] for item in document["said"]} >= {3, 4}
    assert edgeguard(*words[:-1], str(tmp_path / "none")).returncode == 3
    os.mkfifo(tmp_path / "fifo")
    assert edgeguard(*words[:-1], str(tmp_path / "fifo")).returncode == 3


def test_log_escapes_what_came_from_outside(daemon):
    done = edgeguard("log", "-n", "3", at(daemon))
    assert done.stdout.count(b"\n") == 3
    assert b"\x1b" not in done.stdout
    assert b"\\x1b[2J" in done.stdout


def test_a_closed_pipe_is_no_error(daemon):
    command = f"{PYTHON} -IS {LAUNCHER} log -n 2000 {at(daemon)} | head -1"
    done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, timeout=30, check=False)
    assert done.stderr == b""
    assert done.stdout.count(b"\n") == 1


def test_scan_tells_progress_beside_the_answer(daemon):
    done = edgeguard("scan", "--quick", at(daemon))
    assert done.returncode == 1
    assert b"2 files checked" in done.stdout
    assert b"Files" in done.stderr


@pytest.mark.parametrize(
    ("option", "asked"), [([], (False, False)), (["--quick"], (True, False)), (["--cached"], (False, True))]
)
def test_scan_asks_for_as_much_as_is_wanted(daemon, option, asked):
    edgeguard("scan", *option, at(daemon))
    ((_, given),) = daemon.asked
    assert (given["quick"], given["cached"]) == asked


def test_scan_is_quick_or_from_memory(daemon):
    done = edgeguard("scan", "--quick", "--cached", at(daemon))
    assert b"not allowed with" in done.stderr
    assert not daemon.asked


def test_accept_shows_what_it_accepts(daemon):
    done = edgeguard("accept", "F-7K2M", "--reason", "hotfix", "--for", "8h", at(daemon))
    assert done.returncode == 0
    assert b"/usr/sbin/sshd changed" in done.stdout
    ((_, given),) = daemon.asked
    assert (given["ids"], given["marks"], given["reason"]) == (["F-7K2M"], ["0badf00d"], "hotfix")
    assert given["until"] > time.time() * 1000


def test_undo_doctor_reload_version(daemon):
    assert b"put /usr/sbin/sshd back" in edgeguard("undo", "F-7K2M", at(daemon)).stdout
    assert edgeguard("doctor", at(daemon)).returncode == 0
    daemon.checks = [{"level": "FAIL", "name": "uplink", "text": "no DNS", "fix": "check the cable"}]
    done = edgeguard("doctor", at(daemon))
    assert done.returncode == 1
    assert b"check the cable" in done.stdout
    done = edgeguard("reload", at(daemon))
    assert (done.returncode, b"unknown key" in done.stderr) == (1, True)
    assert b"daemon 9.9" in edgeguard("version", at(daemon)).stdout


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("statsu",), b"did you mean `status`?"),
        (("findings", "--al"), b"--al"),  # no guessing
        (("accept", "F-1"), b"--reason"),
        (("explain",), b"ID|CODE"),
        (("policy", "lint", "a", "b", "c"), b"at most two"),
        (("status", "\x1b[2J"), b"\\x1b[2J"),
        (("accept", "F-1", "--reason", "x", "--for", "6hours", "--socket=/nowhere"), b"6hours"),
    ],
)
def test_usage_errors(arguments, hint):
    done = edgeguard(*arguments)
    assert done.returncode == 64
    assert hint in done.stderr
    assert b"\x1b" not in done.stderr
    assert done.stdout == b""


def test_help():
    for arguments in (("help",), ("--help",), ("-h",)):
        done = edgeguard(*arguments)
        assert done.returncode == 0
        assert len(done.stdout.splitlines()) <= 24
        assert max(map(len, done.stdout.decode().splitlines())) <= 80
    assert b"--reason" in edgeguard("help", "accept").stdout
    assert b"--follow" in edgeguard("log", "--help").stdout
    for action, does in (("show", b"whether it signs"), ("create", b"make the key in the TPM")):
        assert does in edgeguard("identity", action, "--help").stdout


def test_nobody_there(tmp_path):
    where = f"--socket={tmp_path}/control.sock"
    done = edgeguard(where)
    assert done.returncode == 3
    assert b"UNKNOWN" in done.stdout
    assert b"not running" in done.stdout
    assert b"This device is not being watched now." in done.stdout
    (tmp_path / "status.json").write_text(json.dumps({**BAD, "name": "evil\x1b[2J"}))
    done = edgeguard(where)
    assert b"CRIT" in done.stdout
    assert b"\x1b" not in done.stdout
    assert json.loads(edgeguard(where, "-o", "json").stdout)["verdict"] == "UNKNOWN"
    assert edgeguard("findings", where).returncode == 3
    assert edgeguard("doctor", where).returncode == 3


def test_a_damaged_status_json_is_as_none(tmp_path):
    (tmp_path / "status.json").write_bytes(b"\xff" * 100)
    assert b"not there" in edgeguard(f"--socket={tmp_path}/control.sock").stdout


def test_a_mute_daemon_is_unknown_after_two_seconds(tmp_path):
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(str(tmp_path / "control.sock"))
        mute.listen()
        began = time.monotonic()
        done = edgeguard(f"--socket={tmp_path}/control.sock")
        assert time.monotonic() - began < 3.5
    assert done.returncode == 3
    assert b"waited 2 s" in done.stdout


def test_settings_lead_to_a_second_daemon(daemon, tmp_path):
    file = tmp_path / "agent.toml"
    file.write_text(f'[paths]\nruntime = "{os.path.dirname(daemon.path)}"\n')
    assert edgeguard("--settings", str(file), "status").returncode == 0
    file.write_text("colour = 1\n")
    done = edgeguard("--settings", str(file), "status")
    assert done.returncode == 1
    assert b"unknown setting" in done.stderr
