"""Which branches of the C that Cython writes are its author's.

A *decision* is one condition that somebody wrote: what stands after `if`, `elif` and `while` and in a conditional
expression, each operand of `and` and `or`, each step of a chained comparison, the end of a `for`, what `min` and `max`
compare. A *branch* is one way out of a decision: it held, or it did not. Coverage counts branches.

Cython makes of each decision one `if` or `for` over its temporaries. A compiler that counts branches (`gcc --coverage`,
read by gcov) therefore counts decisions, and around them several thousand branches that nobody wrote. The rule:

- Looked at are the functions that Cython makes of a body (`__pyx_f_`, `__pyx_pf_`, `__pyx_gb_`), and in them the lines
  of C that a comment `/* "broker_native/x.pyx":LINE` gives to a statement with one of the words of WORDS or with a
  chained comparison.
- Of those, counted are `if (T) {`, `if (!T) {` and `if (!T) break;`, where T is a temporary, a variable or a field,
  bare or in `likely()` or `unlikely()`, and what ends a `for`. An object of unknown type is walked in three ways (list,
  tuple, iterator), which are one decision.
- Not counted is what leaves for an error after a call (`__PYX_ERR`), what looks at reference counts, types, bounds,
  None or the arguments of a call, the initialisation of the module, and which `except` or `with` takes an exception
  (their lines are counted, as lines). Nor is `assert`: it must never fail. Nor is BROKER_DEBUG, which is a constant.
- `if` over the result of an `and`, an `or` or a chain says nothing that its operands have not said, and is not counted.
  Their last operand, which Cython only copies, gets an `if` of its own before the C is compiled: `prepare`.
- A statement in a `finally` is written once for each way to leave its `try`, and an inline function once for each
  module that includes it. Such copies are added up.

A header (`.h`) is C of our own: all its branches count, but for `assert`.

A statement with such a word for which there is no decision in the C is `unread`, and that is an error: a Cython that
writes other C must not look like code without branches.
"""

from __future__ import annotations

import io
import re
import tokenize
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

WORDS = frozenset({"if", "elif", "while", "for", "and", "or"})
CALLS = frozenset({"min", "max"})
ASSERTS = frozenset({"assert", "debug_assert"})
HEADS = frozenset({"def", "cdef", "cpdef", "class", "@"})
CONSTANTS = frozenset({"BROKER_DEBUG", "True"})

MARKER = re.compile(r'\s*/\* "([^"]+)":(\d+)$')
FUNCTION = re.compile(r"\w[\w *]*?\b(\w+)\(.*\)(?: \{| /\* generator body \*/)$")
BODY = re.compile(r"__pyx_(f|pf|gb)_")
FINALLY_PART = re.compile(r"/\*(normal|exception) exit:\*/ ?\{|__pyx_L\d+_(return|break|continue|error): \{")

TEMPORARY = r"__pyx_t_\d+"
VALUE = r"\(?__pyx_[tv]_\w+(?:(?:->|\.)\w+|\[\d+\])*\)?"
CONDITION = re.compile(rf"(?:\}} else )?if \((?:(?:un)?likely\({VALUE}\)|!?{VALUE})\) (?:\{{|break;)$")
RANGE = re.compile(rf"for \({TEMPORARY} = .*\) \{{$")
WALK = re.compile(r"(for \(;;\)|while \(1\)) \{$")
WALK_END = re.compile(
    rf"if \({TEMPORARY} >= \w+(\(.*\))?\) break;$"
    rf"|if \(unlikely\({TEMPORARY} == 0\)\) break;$"
    rf"|if \(unlikely\(!{TEMPORARY}\)\) \{{$"
)
COPIED = re.compile(rf"({TEMPORARY}) = ({TEMPORARY});$")
JOINED = re.compile(r"__pyx_L\d+_bool_binop_done:;$")
ASSIGNED = re.compile(rf"({TEMPORARY}) = \(.*\);$")
BOXED = re.compile(rf"{TEMPORARY} = __Pyx_PyBool_FromLong\(({TEMPORARY})\);")
PASSED_ON = re.compile(rf"{TEMPORARY} = (\(!{TEMPORARY}\)|{TEMPORARY});$")
CAUGHT = re.compile(r"__Pyx_PyErr_(Given)?ExceptionMatches")
DEBUG = re.compile(r"= \(!?\(?BROKER_DEBUG\b")
BOXED_STEPS_MAX = 4
"""Lines of C from a bool made of the last operand to the label at which the operands meet."""
PROBE = '__asm__("");'
DECIDED = "/* decided */"


@dataclass(frozen=True)
class Statement:
    """One logical line of a source, from its first word to its last."""

    function: str
    words: tuple[str, ...]

    @property
    def decides(self) -> bool:
        """Whether somebody wrote a condition here."""
        if self.words[0] in ASSERTS:
            return False
        return any(
            word in WORDS or (word in CALLS and self.words[at : at + 2] == (word, "(") and self.words[at - 1] != ".")
            for at, word in enumerate(self.words)
        )

    @property
    def is_constant(self) -> bool:
        """Whether what it decides is known when it is compiled: `while True:`, `if BROKER_DEBUG:`."""
        return set(self.words) - {"if", "while", "not", ":"} <= CONSTANTS

    @property
    def runs(self) -> bool:
        """Whether it is part of a function's body, and not its head."""
        return bool(self.function) and not (self.words[-1] == ":" and self.words[0] in HEADS)


@dataclass(frozen=True)
class Decision:
    """One condition as gcov sees it.

    Several of them are copies of one when `place` is the same.
    """

    c_line: int
    place: tuple[str, int, int]
    """The source (`broker_native/x.pyx`), the line, and which of the line's decisions this is, from 1."""
    probe_holds: bool
    """Whether the line of C after it counts that the condition held, and not that it failed."""


@dataclass(frozen=True)
class Line:
    """One line of C that does something, with the line of the source that it does it for."""

    number: int
    text: str
    function: str
    source: str
    source_line: int
    block: int
    """Counts the comments that say which line follows."""
    part: int
    """Counts the copies of `finally` clauses that have begun before it."""


def statements(text: str) -> dict[int, Statement]:
    """Return the statements of a Cython source by the number of each line that they stand on."""
    found: dict[int, Statement] = {}
    open_functions: list[tuple[int, str]] = []
    tokens: list[tokenize.TokenInfo] = []
    # `except? -1` is no Python, and newer tokenizers refuse it.
    for token in tokenize.generate_tokens(io.StringIO(text.replace("?", " ")).readline):
        if token.type in (tokenize.COMMENT, tokenize.NL, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER):
            continue
        if token.type != tokenize.NEWLINE:
            tokens.append(token)
            continue
        words = tuple(token.string for token in tokens)
        indent = tokens[0].start[1]
        while open_functions and open_functions[-1][0] >= indent:
            open_functions.pop()
        if words[0] in ("def", "cdef", "cpdef") and words[-1] == ":" and "(" in words:
            open_functions.append((indent, words[words.index("(") - 1]))
        statement = Statement(open_functions[-1][1] if open_functions else "", words)
        found.update(dict.fromkeys(range(tokens[0].start[0], tokens[-1].end[0] + 1), statement))
        tokens = []
    return found


def prepare(c_text: str) -> str:
    """Make C countable; doing it twice does what doing it once does.

    The last operand of each `and`, `or` and chained comparison gets an `if` of its own. And each condition is followed
    by a line of its own, PROBE, which counts one of its ways: gcov counts both, and does not say which is which.
    """
    lines = c_text.splitlines()
    code = [(at, line.strip()) for at, line in enumerate(lines) if line.strip() and line.strip() != PROBE]
    for index, (at, line) in enumerate(code):
        before = code[index - 1][1]
        following = [text for _, text in code[index + 1 : index + 1 + BOXED_STEPS_MAX]]
        if (copied := COPIED.match(line)) and JOINED.match(following[0]):
            lines[at] = decide(copied[2], line, line)
        elif (boxed := BOXED.match(line)) and any(JOINED.match(text) for text in following):
            lines[at] = decide(boxed[1], line, line)
        elif (assigned := ASSIGNED.match(line)) and following[0] == "}" and before == f"if ({assigned[1]}) {{":
            lines[at] = f"{line}\n{decide(assigned[1], f'{assigned[1]} = 1;', f'{assigned[1]} = 0;')}"
        elif is_condition(line) and lines[at + 1 : at + 2] != [PROBE]:
            lines[at] = f"{line}\n{PROBE}"
    return "\n".join(lines) + "\n"


def decide(value: str, held: str, failed: str) -> str:
    """Return an `if` whose ways do the same, but not nothing: a compiler drops a condition without consequences."""
    return f"if ({value}) {{\n{PROBE}\n{held}\n}} else {{\n{failed}\n}} {DECIDED}"


def is_condition(text: str) -> bool:
    """Say whether a line of C has the form of a condition, whoever wrote it."""
    return any(form.match(text) for form in (CONDITION, RANGE, WALK_END))


def body_lines(c_text: str) -> Iterator[Line]:
    """Walk over the code of the functions that were made of a source's bodies."""
    function = source = ""
    source_line = block = part = 0
    in_comment = False
    for number, text in enumerate(c_text.splitlines(), 1):
        stripped = text.strip()
        if in_comment:
            in_comment = stripped != "*/"
        elif marker := MARKER.match(text):
            source, source_line = marker[1], int(marker[2])
            in_comment = True
            block += 1
        elif opened := FUNCTION.match(text):
            function = opened[1] if BODY.search(opened[1]) else ""
        elif text == "}":
            function = ""
        else:
            part += bool(FINALLY_PART.match(stripped))
            if function and source and stripped and stripped != PROBE:
                yield Line(number, stripped, function, source, source_line, block, part)


def decisions(c_text: str, sources: dict[str, dict[int, Statement]]) -> Iterator[Decision]:
    """Find the decisions in C that went through `prepare`.

    Args:
        c_text: what Cython wrote for one module.
        sources: the statements of each source that has a part in it, by the name under which the C speaks of it.
    """
    lines = [line for line in body_lines(c_text) if line.source in sources]
    orders: Counter[tuple[str, str, int, int]] = Counter()
    walk = walk_counted = -1
    for at, line in enumerate(lines):
        if WALK.match(line.text):
            walk = at
        if not is_decision(lines, at, sources[line.source].get(line.source_line)):
            continue
        copy = (line.function, line.source, line.source_line, line.part)
        # The three ways to walk are one decision.
        if not WALK_END.match(line.text) or walk != walk_counted:
            orders[copy] += 1
        if WALK_END.match(line.text):
            walk_counted = walk
        # Behind a `break` the loop goes on; where an iterator has ended, the probe stands before the `break`.
        probe_holds = line.text.endswith("break;") or "(!" not in line.text
        yield Decision(line.number, (line.source, line.source_line, orders[copy]), probe_holds)


def is_decision(lines: list[Line], at: int, statement: Statement | None) -> bool:
    """Say whether a line of C is a condition that somebody wrote."""
    text = lines[at].text
    if statement is None or statement.words[0] in ASSERTS:
        return False
    if WALK_END.match(text) and "for" in statement.words:
        return True
    if RANGE.match(text):
        return "for" in statement.words
    if not CONDITION.match(text):
        return False
    if CAUGHT.search(lines[at - 1].text) or DEBUG.search(lines[at - 1].text) or is_result(lines, at):
        return False
    return statement.decides or is_chain(lines, at)


def is_result(lines: list[Line], at: int) -> bool:
    """Say whether what an `if` looks at comes from operands that were all looked at."""
    at -= 1
    while PASSED_ON.match(lines[at].text):
        at -= 1
    if lines[at].text == "}":
        while lines[at].text == "}":
            at -= 1
        return lines[at].text.endswith(DECIDED)
    return JOINED.match(lines[at].text) is not None


def is_chain(lines: list[Line], at: int) -> bool:
    """Say whether an `if` is the step from one comparison of a chain to the next, or the last of them."""
    return (ASSIGNED.match(lines[at + 1].text) is not None and lines[at + 2].text == lines[at].text) or (
        ASSIGNED.match(lines[at - 1].text) is not None and lines[at - 2].text == lines[at].text
    )
