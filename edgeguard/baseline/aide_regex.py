"""Regular expressions of AIDE's rules as globs, as far as they can be ones. Pure.

A rule that selects may become wider (more is watched, and that is said), one that leaves out must not: what is no glob
exactly is refused with the reason. Nothing here runs a regular expression of somebody else's.
"""

from __future__ import annotations

from typing import NamedTuple

LENGTH_MAX = 4096  # characters of one expression, AIDE's own lines are shorter
GLOBS_MAX = 64  # that one expression may become: (a|b)(c|d) are four
DEPTH_MAX = 16  # groups within groups
REPEAT_MAX = 64  # {n}

ANY = "\0any"  # crosses directories: .*
STAR = "*"  # any within a name
DOT = "\0dot"  # any one character; in a name that is `?`
CUT = "\0cut"  # something that no glob is like: whoever selects takes the directory above
_SPECIAL = "*?["  # what globs read as wildcards, so it cannot stand for itself
_SETS = {"digit": "0-9", "alpha": "a-zA-Z", "alnum": "a-zA-Z0-9", "xdigit": "0-9a-fA-F", "lower": "a-z", "upper": "A-Z"}
_SHORT = {"d": "[0-9]", "w": "[a-zA-Z0-9_]"}

Tokens = tuple[str, ...]


class NoGlob(Exception):
    """Why an expression cannot be a glob, in plain words."""


class Globs(NamedTuple):
    paths: tuple[Tokens, ...]  # tokens: literal text, ?, *, [class], ANY, CUT
    anchored: bool  # it ends with $
    wider: bool  # the globs match more


def globs(expression: str, *, wider: bool) -> Globs:
    """The globs of an expression that begins with /. `wider`: they may match more. Raises NoGlob."""
    if len(expression) > LENGTH_MAX:
        raise NoGlob(f"longer than {LENGTH_MAX} characters")
    text = expression.removeprefix("^")
    anchored = text.endswith("$") and not text.endswith("\\$")
    parser = _Parser(text[:-1] if anchored else text, wider)
    found = parser.alternatives(0)
    if parser.at < len(parser.text):
        raise NoGlob("a parenthesis too many")
    return Globs(tuple(dict.fromkeys(found)), anchored, parser.widened)


class _Parser:
    def __init__(self, text: str, wider: bool) -> None:
        self.text = text
        self.at = 0
        self.widened = False
        self._wider = wider

    def _no(self, why: str) -> Tokens:
        """What no glob is like: refused, or cut off here."""
        if not self._wider:
            raise NoGlob(why)
        self.widened = True
        return (CUT,)

    def alternatives(self, depth: int) -> list[Tokens]:
        if depth > DEPTH_MAX:
            raise NoGlob(f"more than {DEPTH_MAX} groups within each other")
        found = self._sequence(depth)
        while self._peek() == "|":
            self.at += 1
            found += self._sequence(depth)
            self._bound(found)
        return found

    @staticmethod
    def _bound(found: list[Tokens]) -> None:
        if len(found) > GLOBS_MAX:
            raise NoGlob(f"more than {GLOBS_MAX} alternatives")

    def _peek(self) -> str:
        return self.text[self.at : self.at + 1]

    def _sequence(self, depth: int) -> list[Tokens]:
        found: list[Tokens] = [()]
        while self._peek() not in ("", "|", ")"):
            options = self._repeated(self._atom(depth))
            if len(found) * len(options) > GLOBS_MAX:
                raise NoGlob(f"more than {GLOBS_MAX} alternatives")
            found = [(*one, *other) for one in found for other in options]
            if sum(map(len, found)) > 64 * LENGTH_MAX:
                raise NoGlob("too long when it is written out")
        return found

    def _atom(self, depth: int) -> list[Tokens]:
        letter = self.text[self.at]
        self.at += 1
        if letter == "(":
            return self._group(depth)
        if letter == "[":
            return [(self._class(),)]
        if letter == "\\":
            return [self._escaped()]
        if letter == ".":
            return [(DOT,)]
        if letter in "*+?{":
            return [self._no(f"{letter} repeats nothing")]
        if letter in "$^":
            return [self._no(f"{letter} in the middle")]
        if letter in _SPECIAL:
            return [self._no(f"the character {letter} in a name")]
        return [(letter,)]

    def _group(self, depth: int) -> list[Tokens]:
        if self._peek() == "?":
            if self.text[self.at : self.at + 2] != "?:":
                raise NoGlob("a look ahead or behind, or an option")
            self.at += 2
        found = self.alternatives(depth + 1)
        if self._peek() != ")":
            raise NoGlob("a parenthesis is missing")
        self.at += 1
        return found

    def _escaped(self) -> Tokens:
        letter = self._peek()
        self.at += 1
        if not letter:
            raise NoGlob("a backslash at the end")
        if letter in _SHORT:
            return (_SHORT[letter],)
        if letter.isalnum():
            return self._no(f"\\{letter}")
        if letter in _SPECIAL:
            return self._no(f"the character {letter} in a name")
        return (letter,)

    def _class(self) -> str:
        """[...] as a glob has it; `?` for [^/]."""
        negated = self._peek() == "^"
        self.at += negated
        body = ""
        while self._peek() != "]" or not body:
            rest = self.text[self.at :]
            if not rest:
                raise NoGlob("a bracket is missing")
            if rest.startswith("[:"):
                name, end, _ = rest[2:].partition(":]")
                if not end or name not in _SETS:
                    raise NoGlob("a class of characters that globs do not know")
                body += _SETS[name]
                self.at += len(name) + 4
                continue
            if rest[0] in "[]!^\\" and not (rest[0] == "\\" and rest[1:2] and rest[1] in ".-_+~"):
                raise NoGlob("a class of characters that globs do not know")
            self.at += 2 if rest[0] == "\\" else 1
            body += rest[1] if rest[0] == "\\" else rest[0]
        self.at += 1
        if negated:
            return "?" if body == "/" else f"[!{body}]"
        return f"[{body}]"

    def _repeated(self, atom: list[Tokens]) -> list[Tokens]:
        low, high = self._quantifier()
        if (low, high) == (1, 1):
            return atom
        if high is not None and high <= REPEAT_MAX and high - low <= 8:
            return self._counted(atom, low, high)
        if high is None and low <= 1 and len(atom) == 1 and len(atom[0]) == 1:
            token = atom[0][0]
            if token in ("?", DOT):
                return [("?",) * low + ((ANY,) if token == DOT else (STAR,))]
            if token not in {"/", CUT} and self._wider:
                self.widened = True
                return [(STAR,)]
        return [self._no("a repetition that globs do not know")]

    def _counted(self, atom: list[Tokens], low: int, high: int) -> list[Tokens]:
        found: list[Tokens] = []
        for times in range(low, high + 1):
            options: list[Tokens] = [()]
            for _time in range(times):
                options = [(*one, *other) for one in options for other in atom]
                self._bound(options)
            found += options
        self._bound(found)
        return found

    def _quantifier(self) -> tuple[int, int | None]:
        mark = self._peek()
        if mark not in ("*", "+", "?", "{") or not mark:
            return 1, 1
        self.at += 1
        if mark != "{":
            found = {"*": (0, None), "+": (1, None), "?": (0, 1)}[mark]
        else:
            body, end, _ = self.text[self.at :].partition("}")
            low, comma, high = body.partition(",")
            if not end or not low.isdecimal() or len(body) > 9 or (high and not high.isdecimal()):
                raise NoGlob("a count that is none")
            self.at += len(body) + 1
            found = (int(low), (int(high) if high else None) if comma else int(low))
            if found[1] is not None and found[1] < found[0]:
                raise NoGlob("a count that is none")
        if self._peek() in ("*", "+", "?", "{") and self._peek():
            raise NoGlob("a repetition of a repetition")
        return found
