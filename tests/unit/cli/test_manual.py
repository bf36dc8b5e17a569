"""The manual and the completion know every command and option, and no others; imports stay lazy."""

import argparse
import re
import subprocess
from importlib import import_module
from pathlib import Path

import pytest

from edgeguard.cli.main import VERBS, parser_for
from edgeguard.settings import Budget, Identity, Paths, Second, Settings, Uplink

TOP = Path(__file__).resolve().parents[3]
PAGE = (TOP / "packaging/man/edgeguard.1").read_text()
MANUAL = re.sub(r"\\f[RBI]", "", PAGE).replace("\\-", "-")
COMPLETION = (TOP / "packaging/completions/edgeguard.bash").read_text()


def options(parser):
    """Every option string and sub-command below a parser."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, below in action.choices.items():
                yield name
                yield from options(below)
        elif action.help != argparse.SUPPRESS:
            yield from action.option_strings


def parser_of(verb):
    return parser_for(verb, import_module(f"edgeguard.cli.{verb}").arguments)


WITH_MODULE = [verb for verb in VERBS if verb != "help"]


@pytest.mark.parametrize("verb", WITH_MODULE)
def test_every_option_is_in_the_manual(verb):
    assert re.search(rf"\b{verb}\b", MANUAL)
    for option in options(parser_of(verb)):
        assert option in MANUAL, option


@pytest.mark.parametrize("verb", WITH_MODULE)
def test_every_option_is_completed(verb):
    for option in (verb, *options(parser_of(verb))):
        assert re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", COMPLETION), option


def test_the_manual_promises_no_option_that_is_not_there():
    known = {option for verb in WITH_MODULE for option in options(parser_of(verb))}
    assert set(re.findall(r"--[a-z]+(?:-[a-z]+)*", MANUAL)) <= known


def test_settings_are_all_described():
    page = (TOP / "packaging/man/agent.toml.5").read_text()
    for shape in (Settings, Paths, Uplink, Second, Budget, Identity):
        for name in shape._fields:
            assert name in page, name


def test_completion_is_bash():
    subprocess.run(["/bin/bash", "-n", str(TOP / "packaging/completions/edgeguard.bash")], check=True)


def test_status_imports_nothing_but_built_ins():
    """A module from a file on the fast path costs more than the path itself."""
    code = (
        "import sys; sys.argv = ['edgeguard', '--socket=/nowhere']; "
        "text = open('%s').read(); "
        "head = text[:text.index('code = fast(')]; space = {'__name__': 'x', '__file__': '/usr/bin/edgeguard'}; "
        "before = set(sys.modules); exec(head, space); space['fast'](['status', '--socket=/nowhere']); "
        "print(sorted(set(sys.modules) - before))"
    ) % (TOP / "packaging/bin/edgeguard")
    done = subprocess.run(["/usr/bin/python3", "-IS", "-c", code], capture_output=True, check=True, text=True)
    assert done.stdout.strip() in {"[]", "['_socket']"}


@pytest.mark.parametrize("words", [("-o", "json", "show"), ("show", "-o", "json")])
def test_common_options_stand_before_or_after_an_action(words):
    given = parser_of("baseline").parse_args(words)
    assert (given.output, given.action, given.quiet) == ("json", "show", False)
