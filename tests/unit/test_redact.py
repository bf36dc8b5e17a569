"""Secrets in arguments are covered, ordinary arguments are left alone, and hostile ones cost no time."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeguard.redact import ARGV_MAX, ITEM_MAX, text
from edgeguard.redact import shown as redact

COVERED = [
    ("mysql", "-pS3cret", "-h", "db"),
    ("mysqldump", "--password=S3cret"),
    ("x", "--password", "S3cret"),
    ("x", "--db-password", "S3cret", "-v"),
    ("env", "AWS_SECRET_ACCESS_KEY=S3cret"),
    ("x", "-Dapi.token=S3cret"),
    ("curl", "-u", "bob:S3cret", "https://h/"),
    ("curl", "https://bob:S3cret@h/x"),
    ("curl", "https://h/x?a=1&token=S3cret&b=2"),
    ("curl", "-H", "Authorization: Bearer S3cret"),
    ("curl", "-d", '{"password": "S3cret"}'),
    ("sshpass", "-p", "S3cret", "ssh", "host"),
    ("mosquitto_pub", "-P", "S3cret"),
    ("wpa_passphrase", "net", "S3cret"),
    ("redis-cli", "-a", "S3cret"),
]


@pytest.mark.parametrize("argv", COVERED)
def test_secrets_are_covered(argv):
    shown = redact(argv)
    assert "S3cret" not in " ".join(shown)
    assert "***" in " ".join(shown)
    assert len(shown) == len(argv)


@pytest.mark.parametrize(
    "argv",
    [
        ("ssh", "-p", "22", "host"),
        ("cat", "/etc/passwd"),
        ("passwd", "root"),
        ("git", "commit", "--author=joe"),
        ("apt-key", "add"),
        ("docker", "run", "-p", "80:80", "x"),
        ("python3", "-m", "http.server", "8080"),
        ("x", "--password", "--verbose"),
        (),
    ],
)
def test_the_rest_is_left_alone(argv):
    assert redact(argv) == argv


@given(st.lists(st.text(max_size=600), max_size=70).map(tuple))
def test_bounds(argv):
    shown = redact(argv)
    assert all(len(item) <= ITEM_MAX for item in shown)
    assert sum(map(len, shown)) <= ARGV_MAX + ITEM_MAX + 1


def test_hostile_arguments_cost_no_time():
    began = time.process_time()
    for item in ("a" * 4096, "pass-" * 1000, "pass=" * 1000, "://" * 1000, "token" * 800 + "=", "-" * 4096):
        redact(("x", item, item))
    assert time.process_time() - began < 0.5


HOSTILE = ("-pass", "-", "pass", "-a", "token-", "http://", "a.b@", "eyJ-", "eyJaaaaaaaaa.", "sk-", "glpat-", "bearer ")
HOSTILE += ("-----BEGIN ", "-----BEGIN A PRIVATE KEY----", "authorization: ", "-pass  ", "pass \t", "x pass=", "a:b@")


@pytest.mark.parametrize("part", HOSTILE)
def test_no_text_costs_more_than_linear_time(part):
    """The comment of somebody's SSH key once held the daemon for 38 s."""
    began = time.process_time()
    text(part * (20_000 // len(part)))
    assert time.process_time() - began < 0.25


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("mysql --password abc; x", "mysql --password ***"),
        ("key ssh-ed25519 of the author: anna", "key ssh-ed25519 of the author: anna"),
        ("the authority: local", "the authority: local"),
        ("digest differs, basic settings", "digest differs, basic settings"),
        ("eyJhbGciOiJI.eyJzdWIiOiI.abc tail", "*** tail"),
    ],
)
def test_secrets_in_texts(said, kept):
    assert text(said).startswith(kept)
