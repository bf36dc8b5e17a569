"""Manual pages against the programs: every option of every command is in its page, and no page promises another."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

import pytest

from edgeguard.cli.main import VERBS, parser_for
from edgeguard.collector import main as collector
from edgeguard.daemon import main as daemon
from edgeguard.records import uplink

TOP = Path(__file__).resolve().parents[3]
OPTION = re.compile(r"(?<![\w/.-])(--[a-z][a-z-]*[a-z]|-[A-Za-z])(?![\w-])")
# Options of other programs that a page shows in an example.
OTHERS = {"edgeguard.1": {"-t"}, "edgeguard-collector.1": {"--now"}}


def plain(page: str) -> str:
    """The text of a page without roff."""
    return re.sub(r"\\f[RBI]|\\&", "", page).replace("\\-", "-").replace("\\ ", " ")


def promised(name: str) -> set[str]:
    """The options that a page names."""
    return set(OPTION.findall(plain((TOP / "packaging/man" / name).read_text()))) - OTHERS.get(name, set())


def of_parser(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Every option below a parser but help, which needs no page."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from of_parser(below)
        elif action.help != argparse.SUPPRESS and not isinstance(action, argparse._HelpAction):
            yield from action.option_strings


def of_edgeguard() -> set[str]:
    verbs = [verb for verb in VERBS if verb != "help"]
    parsers = [parser_for(verb, import_module(f"edgeguard.cli.{verb}").arguments) for verb in verbs]
    return {option for parser in parsers for option in of_parser(parser)}


def of_usage(main: Callable[[list[str]], int], capsys: pytest.CaptureFixture[str]) -> set[str]:
    """A program without a parser says its options when it does not understand."""
    assert main(["--nonsense"]) != 0
    said = capsys.readouterr().err
    assert said.startswith("usage: ")
    return set(OPTION.findall(said))


def test_each_command_of_the_collector_has_its_own_options_in_the_synopsis() -> None:
    text = plain((TOP / "packaging/man/edgeguard-collector.1").read_text())
    synopsis = text[text.index(".SH SYNOPSIS") : text.index(".SH DESCRIPTION")]
    shown = {part.split(maxsplit=1)[0]: set(OPTION.findall(part)) for part in synopsis.split(".B edgeguard-collector ")}
    (verbs,) = (one for one in collector._parser()._actions if isinstance(one, argparse._SubParsersAction))
    for verb, parser in verbs.choices.items():
        short = {"-o": "--output", "-f": "--follow"}
        assert {short.get(option, option) for option in shown[verb]} == set(of_parser(parser)) - set(short), verb


def test_edgeguard() -> None:
    assert promised("edgeguard.1") - {"--help", "-h", "--version"} == of_edgeguard()


def test_collector() -> None:
    assert promised("edgeguard-collector.1") - {"--help", "-h"} == set(of_parser(collector._parser()))


@pytest.mark.parametrize(("page", "main"), [("edgeguardd.8", daemon.main), ("edgeguard-uplink.8", uplink.main)])
def test_programs_without_a_parser(
    page: str, main: Callable[[list[str]], int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert promised(page) == of_usage(main, capsys)


@pytest.mark.parametrize(
    ("roff", "found"),
    [
        (".RB [ \\-\\-max\\-age", {"--max-age"}),
        ("edgeguard\\-collector add\\-device", set()),
        (".B \\-o, \\fB\\-\\-output\\fR", {"-o", "--output"}),
        ("a-b, 24\\-7, ssh\\-ed25519", set()),
    ],
)
def test_options_are_found_in_roff(roff: str, found: set[str]) -> None:
    assert set(OPTION.findall(plain(roff))) == found


def test_every_command_of_the_collector_is_in_its_page_and_the_other_way_round() -> None:
    page = plain((TOP / "packaging/man/edgeguard-collector.1").read_text())
    commands = next(a for a in collector._parser()._actions if isinstance(a, argparse._SubParsersAction)).choices
    shown = set(re.findall(r"^\.B edgeguard-collector ([a-z][a-z-]*)$", page, re.MULTILINE))
    assert shown == set(commands)


def test_every_program_has_a_page() -> None:
    pages = {path.name.rpartition(".")[0] for path in (TOP / "packaging/man").iterdir()}
    for name in ("edgeguard", "edgeguard-collector", "edgeguardd", "edgeguard-uplink"):
        assert name in pages
