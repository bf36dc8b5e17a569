"""edgeguard-collector.toml: what is written is what counts, and whatever is wrong is named with its place."""

import contextlib
import os
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeguard.collector import config
from edgeguard.collector.config import Config, load, parse
from edgeguard.collector.main import main
from edgeguard.errors import SettingsError
from edgeguard.model import Severity

WHOLE = """
[alerts]
min_severity = "medium"
group_s = 120
repeat_s = 3600
quiet = ["22:00-06:30", "12:00-13:00"]
zone = "UTC"
quiet_break = "high"
incidents = false
give_up_s = 7200

[[alerts.webhook]]
name = "ops"
url = "https://hooks.example.org:8443/edgeguard?team=a"
secret_file = "hook.secret"
min_severity = "critical"

[[alerts.mail]]
name = "duty"
server = "mail.example.org"
from = "edgeguard@example.org"
to = ["duty@example.org", "boss@example.org"]
user = "edgeguard"
password_file = "mail.password"

[silence]
beats = 4
min_interval_s = 600
severity = "critical"

[metrics]
listen = "[::1]:9464"

[mqtt]
url = "mqtts://broker.example.org"
ca_file = "hook.secret"
certificate_file = "hook.secret"
key_file = "mail.password"
share = "edgeguard"

[store]
url = "postgresql://edgeguard@db.example.org/edgeguard"
password_file = "db.password"

[queue]
url = "tls://nats.example.org:4222"
user = "edgeguard"
password_file = "mail.password"
ca_file = "ca.pem"
certificate_file = "ca.pem"
key_file = "hook.secret"
wait_s = 30
max_mib = 64
max_age_s = 120
replicas = 3
"""

HOOK = '[[alerts.webhook]]\nname = "ops"\n'
QUEUE = '[store]\nurl = "postgresql://a/b"\n[queue]\n'
MAIL = '[[alerts.mail]]\nname = "m"\nserver = "s"\nfrom = "a@b.c"\nto = ["d@e.f"]\n'
WRONG = {
    "alert = 1": "alert: unknown",
    "[alerts]\ngroup = 1": "alerts.group: unknown",
    "alerts = 1": "alerts: expected a table",
    "[alerts]\nmin_severity = 4": "alerts.min_severity: expected a text",
    '[alerts]\nmin_severity = "bad"': "expected one of informational, low, medium, high, critical",
    "[alerts]\ngroup_s = 0": "alerts.group_s: expected a whole number from 1 to 86400",
    "[alerts]\ngroup_s = true": "alerts.group_s: expected a whole number",
    '[alerts]\nquiet = "22:00-06:00"': "alerts.quiet: expected a list",
    '[alerts]\nquiet = ["22-6"]': 'expected "HH:MM-HH:MM"',
    '[alerts]\nquiet = ["24:00-06:00"]': 'expected "HH:MM-HH:MM"',
    '[alerts]\nquiet = ["06:00-06:00"]': "begins when it ends",
    '[alerts]\nzone = "Mars/Base"': "no such time zone",
    '[alerts]\nzone = "../../etc/passwd"': "no such time zone",
    "[alerts]\nwebhook = 1": "alerts.webhook: expected [[alerts.webhook]]",
    HOOK: "alerts.webhook[0].url: is needed",
    '[[alerts.webhook]]\nurl = "https://a/"': "alerts.webhook[0].name: is needed",
    HOOK + 'url = "http://hooks.example.org/"': "http only to this machine itself",
    HOOK + 'url = "ftp://hooks.example.org/"': "expected https://HOST/PATH",
    HOOK + 'url = "https://me:pw@hooks.example.org/"': "without a name or password",
    HOOK + 'url = "https://a:99999/"': "alerts.webhook[0].url",
    HOOK + 'url = "https://a/b c"': "alerts.webhook[0].url",
    HOOK + 'url = "https://a/"\nsecret_file = "none"': "none: No such file",
    HOOK + 'url = "https://a/"\nsecret_file = "open.secret"': "anybody may read it",
    HOOK + 'url = "https://a/"\nsecret_file = "empty.secret"': "expected 1 to 4096 bytes",
    HOOK + 'url = "https://a/"\nca_file = "none.pem"': "none.pem: cannot be read",
    HOOK + 'url = "https://a/"\n' + HOOK + 'url = "https://b/"': "two are called 'ops'",
    '[[alerts.webhook]]\nname = "Ops team"\nurl = "https://a/"': "a name has a-z",
    MAIL + 'user = "me"': "user and password_file go together",
    MAIL + 'user = "me"\npassword_file = "hook.secret"\ntls = "none"': "a password is only sent over TLS",
    MAIL + 'tls = "maybe"': "expected one of starttls, implicit, none",
    MAIL + "port = 70000": "expected a whole number from 1 to 65535",
    MAIL.replace('"d@e.f"', '"d@e.f\\nBcc: x@y.z"'): "expected NAME@HOST",
    MAIL.replace('["d@e.f"]', "[]"): "expected 1 to 50 texts",
    MAIL.replace('"s"', '"s\\r\\nRSET"'): "expected a host's name or address",
    '[metrics]\nlisten = "9464"': "expected ADDRESS:PORT",
    '[store]\nurl = "mysql://a/b"': "expected postgresql://",
    '[store]\nurl = "postgresql://a:pw@b/c"': "a password belongs into a file",
    '[store]\npassword_file = "hook.secret"': "there is no url that it could be for",
    "[mqtt]": "mqtt.url: is needed",
    '[mqtt]\nurl = "mqtt://b"': "expected mqtts://HOST",
    '[mqtt]\nurl = "mqtts://me:pw@b"': "expected mqtts://HOST",
    '[mqtt]\nurl = "mqtts://b/topic"': "expected mqtts://HOST",
    '[mqtt]\nurl = "mqtts://b:99999"': "mqtt.url",
    '[mqtt]\nurl = "mqtts://b"\nshare = "a/b"': "a name has a-z",
    '[mqtt]\nurl = "mqtts://b"\nkey_file = "hook.secret"': "certificate_file and key_file go together",
    '[mqtt]\nurl = "mqtts://b"\nca_file = "none.pem"': "none.pem: cannot be read",
    '[mqtt]\nurl = "mqtts://b"\nqos = 2': "mqtt.qos: unknown",
    "mqtt = 1": "mqtt: expected a table",
    '[queue]\nurl = "nats://127.0.0.1"': "several workers need PostgreSQL: store.url",
    QUEUE + "wait_s = 5": "queue.url: is needed",
    QUEUE + 'url = "nats://nats.example.org"': "nats:// only to this machine itself",
    QUEUE + 'url = "https://127.0.0.1"': "expected nats://HOST:PORT or tls://HOST:PORT",
    QUEUE + 'url = "tls://me:pw@a"': "no name, password or path in it",
    QUEUE + 'url = "tls://a:99999"': "queue.url",
    QUEUE + 'url = "tls://a"\nuser = "me"': "queue.user: user and password_file go together",
    QUEUE + 'url = "tls://a"\nkey_file = "hook.secret"': "certificate_file and key_file go together",
    QUEUE + 'url = "tls://a"\nkey_file = "open.secret"': "anybody may read it",
    QUEUE + 'url = "tls://a"\nwait_s = 90': "queue.wait_s: expected a whole number from 1 to 50",
    "[silence]\nbeats = -1": "silence.beats: expected a whole number from 0 to 100",
    "a = ": "Invalid value",
    "a = 1" + "[" * 3000: "edgeguard-collector.toml",
}


@pytest.fixture
def place(tmp_path):
    for name, text, mode in (
        ("hook.secret", "s3cret\n", 0o600),
        ("mail.password", "pass word\r\n", 0o640),
        ("db.password", "p/w@d", 0o600),
        ("ca.pem", "a certificate", 0o644),
        ("open.secret", "x", 0o644),
        ("empty.secret", "\n", 0o600),
    ):
        path = tmp_path / name
        path.write_text(text)
        path.chmod(mode)
    return tmp_path


def write(place, text):
    (place / config.NAME).write_text(text)
    return str(place)


def test_everything_that_can_be_said(place):
    found = load(write(place, WHOLE))
    alerts = found.alerts
    assert (alerts.least, alerts.group_s, alerts.repeat_s, alerts.give_up_s) == (Severity.MEDIUM, 120, 3600, 7200)
    assert (alerts.quiet, alerts.breaks) == (((1320, 390), (720, 780)), Severity.HIGH)
    assert not alerts.incidents
    hook, mail = alerts.targets
    assert (hook.name, hook.secret, hook.least) == ("ops", b"s3cret", Severity.CRITICAL)
    assert (mail.port, mail.tls, mail.password, mail.to) == (
        587, "starttls", "pass word", ("duty@example.org", "boss@example.org"),
    )  # fmt: skip
    assert mail.least is Severity.MEDIUM
    assert found.silence == (4, 600, Severity.CRITICAL)
    assert found.metrics == ("::1", 9464)
    files = tuple(str(place / name) for name in ("hook.secret", "hook.secret", "mail.password"))
    assert found.mqtt == ("mqtts://broker.example.org", *files, "edgeguard")
    assert found.database == "postgresql://edgeguard:p%2Fw%40d@db.example.org/edgeguard"
    ca, key = str(place / "ca.pem"), str(place / "hook.secret")
    assert found.queue == ("tls://nats.example.org:4222", "edgeguard", "pass word", ca, ca, key, 30, 64, 120, 3)


def test_without_a_file_everything_is_at_its_default(tmp_path):
    assert load(str(tmp_path)) == Config()
    with pytest.raises(SettingsError, match="not there"):
        load(str(tmp_path), str(tmp_path / "other.toml"))
    (tmp_path / config.NAME).write_bytes(b"#" * (config.SIZE_MAX + 1))
    with pytest.raises(SettingsError, match="larger than"):
        load(str(tmp_path))


@pytest.mark.parametrize("text", WRONG, ids=lambda text: text[:40])
def test_what_is_wrong_is_named(place, text):
    with pytest.raises(SettingsError) as caught:
        load(write(place, text))
    assert WRONG[text] in str(caught.value)
    assert str(caught.value).startswith(str(place / config.NAME))


@given(st.binary(max_size=400))
def test_any_bytes_are_a_configuration_or_an_error(data):
    with contextlib.suppress(SettingsError):
        assert isinstance(parse(data, "/nowhere/x.toml"), Config)


def test_too_many_targets(place):
    text = "".join(f'[[alerts.webhook]]\nname = "w{n}"\nurl = "https://a/"\n' for n in range(config.TARGETS_MAX + 1))
    with pytest.raises(SettingsError, match="17 are more than 16"):
        load(write(place, text))


def test_check_config_says_what_it_means(place, capsys):
    directory = write(place, WHOLE)
    assert main(["check-config", directory]) == 0
    said = capsys.readouterr().out
    assert "webhook ops: from severity critical" in said
    assert "mail duty: from severity medium" in said
    assert "silent for 4 of its intervals (600 s at least" in said
    assert "Database: PostgreSQL." in said
    assert "by the broker mqtts://broker.example.org, too, shared by all workers of 'edgeguard'" in said
    assert "Queue: tls://nats.example.org:4222" in said
    assert "s3cret" not in said
    assert "pass word" not in said
    os.unlink(place / config.NAME)
    assert main(["check-config", directory]) == 0
    said = capsys.readouterr().out
    assert "everything is at its default" in said
    assert "Nobody is told of alerts" in said
    write(place, "[alerts]\nfoo = 1")
    assert main(["check-config", directory]) == 64
    assert "alerts.foo: unknown; known here: " in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["serve", "work"])
def test_a_queue_without_its_library_is_said_in_one_line(place, capsys, monkeypatch, verb):
    monkeypatch.setitem(sys.modules, "nats", None)
    directory = write(place, QUEUE + 'url = "nats://127.0.0.1:4222"')
    assert main([verb, directory]) == 64  # which the unit takes for a reason not to start it again
    said = capsys.readouterr().err
    assert "needs the Python library nats-py" in said
    assert said.count("\n") == 1


def test_nobody_works_without_a_queue(place, capsys):
    assert main(["work", write(place, "")]) == 64
    assert "no queue to work for" in capsys.readouterr().err
