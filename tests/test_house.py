"""The rules of the house, checked on the house: what no linter knows and a reader should not have to look for.

Each rule is a function from a repository's root to a list of complaints, so that the same function can be shown a
small house in which the rule is broken: a check that cannot fail is none. The layers are import-linter's to check; here
stands the proof that its contracts catch what they say.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import broker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Rule = Callable[[Path], list[str]]

ROOT = Path(__file__).parents[1]
ROOMS = ("broker", "ext", "tests", "benchmarks", "loadtest", ".ci", ".github")
NATIVE = Path("ext/broker_native")
MICRO = Path("benchmarks/micro")
CODE = (".py", ".pyi", ".pyx", ".pxd", ".h")
TEXT = (*CODE, ".md", ".toml", ".yaml", ".yml", ".txt", "Makefile", "run")

# Written so that this file does not find itself.
UNFINISHED = re.compile(r"\b(T[O]DO|FI[X]ME|X[X]X|NotImplemented[E]rror)\b")
ONE_MACHINE = re.compile(r"(?<![\w.}])/(w[o]rk|r[o]ot|h[o]me|U[s]ers|f[a]rm)/\w")
SWALLOWED = re.compile(
    r"^\s*except\s*:|^\s*except\s+(Base)?Exception\s*:\s*(#.*)?\n?\s*(pass|\.\.\.)\s*$", re.MULTILINE
)
SWITCHED_OFF = re.compile(r"pytest\.s[k]ip\(|mark\.s[k]ip\b|mark\.x[f]ail")
IMPORTS_BROKER = re.compile(r"^\s*(from|c?import)\s+broker(\.|\s|$)", re.MULTILINE)
MADE_IN_PLACE = re.compile(r"\[\s*[\w.]*\([^\n]*\n?[^\n]*?\bfor\s+\w+(?:,\s*\w+)*\s+in\b")
MAKE_WORD = re.compile(r"`make ([a-z-]+)")
USES = re.compile(r"^\s*-?\s*uses:\s*(.+)$", re.MULTILINE)
PINNED = re.compile(r"[\w.-]+(/[\w.-]+)+@[0-9a-f]{40} # v\d+(\.\d+)*$")
RUNS_MAKE = re.compile(r"run: make ([a-z-]+)")
COVERS = re.compile(r"^COVERS = \((.*)\)$", re.MULTILINE)
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")


def files(root: Path, endings: tuple[str, ...], *rooms: str) -> Iterator[Path]:
    """Walk over what is ours: the files at the top (when no rooms are named) and those of the rooms."""
    found = [root / room for room in rooms or ROOMS]
    paths = [path for room in found if room.exists() for path in sorted(room.rglob("*"))]
    if not rooms:
        paths += sorted(root.iterdir())
    for path in paths:
        if path.is_file() and path.name.endswith(endings) and "__pycache__" not in path.parts:
            yield path


def matches(root: Path, pattern: re.Pattern[str], paths: Iterator[Path]) -> list[str]:
    """Return a complaint for each place where the pattern stands."""
    complaints = []
    for path in paths:
        text = path.read_text(encoding="utf-8")
        for match in pattern.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            complaints.append(f"{path.relative_to(root)}:{line}: {match.group().strip()}")
    return complaints


def unfinished_work(root: Path) -> list[str]:
    """Nothing is left for later in the code."""
    return matches(root, UNFINISHED, files(root, TEXT))


def paths_of_one_machine(root: Path) -> list[str]:
    """Nothing names a folder that only one machine has."""
    return matches(root, ONE_MACHINE, files(root, TEXT))


def swallowed_errors(root: Path) -> list[str]:
    """An error that may be ignored is named, with the reason."""
    return matches(root, SWALLOWED, files(root, (".py", ".pyx")))


def switched_off_tests(root: Path) -> list[str]:
    """A test runs or is deleted."""
    return matches(root, SWITCHED_OFF, files(root, (".py",), "tests", "benchmarks"))


def native_code_that_knows_the_broker(root: Path) -> list[str]:
    """`ext` imports nothing of `broker`; import-linter reads no Cython, so this does. A stub may name its types."""
    return matches(root, IMPORTS_BROKER, files(root, (".pyx", ".pxd"), "ext"))


def native_modules_without_their_files(root: Path) -> list[str]:
    """A native module is a contract, a body, types and a test that imports it."""
    tests = [
        path.read_text(encoding="utf-8") for path in files(root, (".py",), "tests") if path.name.startswith("test_")
    ]
    complaints = []
    for path in sorted((root / NATIVE).glob("*.pyx")):
        name = path.relative_to(root)
        partners = [path.with_suffix(".pxd"), path.with_suffix(".pyi")]
        complaints += [f"{name}: no {partner.relative_to(root)}" for partner in partners if not partner.exists()]
        if not any(re.search(rf"\bbroker_native(\.| import .*\b){path.stem}\b", test) for test in tests):
            complaints.append(f"{name}: no test imports it")
    return complaints


def native_modules_without_a_benchmark(root: Path) -> list[str]:
    """A native module has works, which are timed and counted, or is part of one that has."""
    complaints = []
    benches = [path.read_text(encoding="utf-8") for path in sorted((root / MICRO).glob("bench_*.py"))]
    covered = {name for text in benches for listed in COVERS.findall(text) for name in re.findall(r"\w+", listed)}
    for path in sorted((root / NATIVE).glob("*.pyx")):
        bench = root / MICRO / f"bench_{path.stem}.py"
        text = bench.read_text(encoding="utf-8") if bench.exists() else ""
        own = f'\nWORKS = Works("{path.stem}")\n' in text and "@WORKS.work(" in text
        if not own and path.stem not in covered:
            complaints.append(f"{path.relative_to(root)}: no works in {MICRO}/bench_{path.stem}.py")
    return complaints


def lists_that_drop_twice(root: Path) -> list[str]:
    """A native list of what is made for it is made by `append`.

    Cython gives the element of a comprehension away when it has made it for that; when the list then cannot grow, it
    lets the element go once more.
    """
    return matches(root, MADE_IN_PLACE, files(root, (".pyx",), "ext"))


def modules_without_purpose(root: Path) -> list[str]:
    """Each module says first what it is for."""
    complaints = [
        f"{path.relative_to(root)}: no docstring"
        for path in files(root, (".py",))
        if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    ]
    complaints += [
        f"{path.relative_to(root)}: does not begin with its purpose"
        for path in files(root, (".pyx", ".pxd", ".h"), "ext")
        if not path.read_text(encoding="utf-8").startswith(('"""', "#", "/*", "//"))
    ]
    return complaints


def public_names_without_purpose(root: Path) -> list[str]:
    """Each public class, and each function that another module of the product imports, says what it does."""
    modules = {path: ast.parse(path.read_text(encoding="utf-8")) for path in files(root, (".py",), "broker")}
    imported = {
        alias.name
        for tree in modules.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    return [
        f"{path.relative_to(root)}:{node.lineno}: {node.name} has no docstring"
        for path, tree in modules.items()
        for node in tree.body
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if not node.name.startswith("_") and not ast.get_docstring(node)
        if isinstance(node, ast.ClassDef) or node.name in imported
    ]


def guides_that_lie(root: Path) -> list[str]:
    """What the guides tell a reader to type or to open exists."""
    words = re.findall(r"^([a-z-]+):", (root / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    complaints = []
    for path in files(root, (".md",)):
        text = path.read_text(encoding="utf-8")
        name = path.relative_to(root)
        complaints += [f"{name}: no `make {word}`" for word in MAKE_WORD.findall(text) if word not in words]
        complaints += [f"{name}: no {link}" for link in LINK.findall(text) if not (path.parent / link).exists()]
    return complaints


def workflows_that_trust(root: Path) -> list[str]:
    """A workflow has no rights but those that a job asks for, runs actions of one commit, and makes what there is."""
    words = re.findall(r"^([a-z-]+):", (root / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    complaints = []
    for path in files(root, (".yml", ".yaml"), ".github"):
        text = path.read_text(encoding="utf-8")
        name = path.relative_to(root)
        complaints += [f"{name}: {action} is no commit" for action in USES.findall(text) if not PINNED.match(action)]
        complaints += [f"{name}: no `make {word}`" for word in RUNS_MAKE.findall(text) if word not in words]
        if "\npermissions: {}\n" not in text:
            complaints.append(f"{name}: its jobs have rights that they did not ask for")
    return complaints


def public_names_missing(root: Path) -> list[str]:
    """`broker.__all__` names all that `broker/__init__.py` makes public, once each."""
    tree = ast.parse((root / "broker" / "__init__.py").read_text(encoding="utf-8"))
    named: list[str] = []
    public: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets):
                named = list(ast.literal_eval(node.value))
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "broker":
            public |= {alias.asname or alias.name for alias in node.names}
    public = {name for name in public if not name.startswith("_") or name == "__version__"}
    complaints = [f"__all__ lacks {name}" for name in sorted(public - set(named))]
    return complaints + [f"__all__ names {name} twice" for name in sorted(set(named)) if named.count(name) > 1]


RULES: list[Rule] = [
    unfinished_work,
    paths_of_one_machine,
    swallowed_errors,
    switched_off_tests,
    native_code_that_knows_the_broker,
    native_modules_without_their_files,
    native_modules_without_a_benchmark,
    lists_that_drop_twice,
    modules_without_purpose,
    public_names_without_purpose,
    guides_that_lie,
    workflows_that_trust,
    public_names_missing,
]

HOUSE = {
    "Makefile": "build: ## make it\n",
    "README.md": "`make build`, then [read](README.md)\n",
    ".github/workflows/tests.yml": (
        f"name: a\npermissions: {{}}\nsteps:\n  - uses: a/b@{40 * '1'} # v1.2\n  - run: make build\n"
    ),
    "broker/__init__.py": '"""The API."""\n\nfrom broker.bus import Bus\n\n__all__ = ["Bus"]\n',
    "broker/bus.py": '"""The bus."""\n\n\nclass Bus:\n    """It carries."""\n',
    "ext/broker_native/trie.pyx": '"""A trie."""\n\nfrom broker_native.layout cimport load_u16\n',
    "ext/broker_native/trie.pxd": "# A trie.\n",
    "ext/broker_native/trie.pyi": "def find() -> int: ...\n",
    "tests/native/test_trie.py": '"""The trie."""\n\nfrom broker_native.trie import find\n',
    "benchmarks/micro/bench_trie.py": '"""T."""\n\nWORKS = Works("trie")\n\n\n@WORKS.work(1, 1)\ndef match(): ...\n',
}

BROKEN: list[tuple[Rule, str, str]] = [
    (unfinished_work, "broker/bus.py", '"""The bus."""\n# TO' + "DO: more\n"),
    (unfinished_work, "Makefile", "build: # FIX" + "ME\n"),
    (unfinished_work, "ext/broker_native/trie.pyx", '"""A trie."""\n# X' + "XX\n"),
    (paths_of_one_machine, "README.md", "see /ho" + "me/somebody/notes\n"),
    (paths_of_one_machine, ".ci/run", "cd /ro" + "ot/checkout\n"),
    (swallowed_errors, "broker/bus.py", '"""The bus."""\ntry:\n    pass\nexcept' + ":\n    raise\n"),
    (swallowed_errors, "ext/broker_native/trie.pyx", '"""T."""\ntry:\n    f()\nexcept Exception' + ":\n    pass\n"),
    (switched_off_tests, "tests/native/test_trie.py", '"""T."""\n\n@pytest.mark.s' + "kip\ndef test(): ...\n"),
    (native_code_that_knows_the_broker, "ext/broker_native/trie.pyx", '"""T."""\nfrom broker.model import names\n'),
    (native_code_that_knows_the_broker, "ext/broker_native/trie.pxd", "# T.\ncimport broker\n"),
    (native_modules_without_their_files, "ext/broker_native/ring.pyx", '"""A ring."""\n'),
    (native_modules_without_their_files, "tests/native/test_trie.py", '"""Nothing."""\n'),
    (native_modules_without_a_benchmark, "ext/broker_native/ring.pyx", '"""A ring."""\n'),
    (native_modules_without_a_benchmark, "benchmarks/micro/bench_trie.py", '"""T."""\n\nWORKS = Works("trie")\n'),
    (lists_that_drop_twice, "ext/broker_native/trie.pyx", '"""T."""\nall = [place(&found[at]) for at in range(9)]\n'),
    (
        lists_that_drop_twice,
        "ext/broker_native/trie.pyx",
        '"""T."""\nall = [\n    (at, found[at].x)\n    for at in x]\n',
    ),
    (modules_without_purpose, "broker/bus.py", "import os\n"),
    (modules_without_purpose, "ext/broker_native/trie.pxd", "cdef int find()\n"),
    (public_names_without_purpose, "broker/bus.py", '"""The bus."""\n\n\nclass Bus: ...\n'),
    (public_names_without_purpose, "broker/bus.py", '"""B."""\nfrom broker.bus import ride\n\n\ndef ride(): ...\n'),
    (guides_that_lie, "README.md", "type `make coffee`\n"),
    (guides_that_lie, "README.md", "read [the guide](GUIDE.md)\n"),
    (workflows_that_trust, ".github/workflows/tests.yml", "name: a\npermissions: {}\nsteps:\n  - uses: a/b@v4\n"),
    (workflows_that_trust, ".github/workflows/tests.yml", "name: a\npermissions: {}\nsteps:\n  - run: make tea\n"),
    (workflows_that_trust, ".github/workflows/tests.yml", "name: a\non: push\n"),
    (public_names_missing, "broker/__init__.py", '"""A."""\nfrom broker.bus import Bus\n__all__: list[str] = []\n'),
    (public_names_missing, "broker/__init__.py", '"""A."""\n__all__ = ["Bus", "Bus"]\n'),
]


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A small house in order."""
    for name, text in HOUSE.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_house_is_in_order(rule: Rule) -> None:
    complaints = rule(ROOT)
    if complaints:
        pytest.fail("\n".join([rule.__doc__ or "", *complaints]), pytrace=False)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rule_leaves_good_code_alone(rule: Rule, house: Path) -> None:
    assert rule(house) == []


@pytest.mark.parametrize(("rule", "name", "text"), BROKEN, ids=lambda value: getattr(value, "__name__", None))
def test_rule_catches_bad_code(rule: Rule, name: str, text: str, house: Path) -> None:
    path = house / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    complaints = rule(house)
    assert complaints != []


def test_every_rule_has_been_shown_bad_code() -> None:
    assert {rule for rule, _, _ in BROKEN} == set(RULES)


def test_public_names_exist() -> None:
    assert [name for name in broker.__all__ if not hasattr(broker, name)] == []
    assert list(broker.__all__) == sorted(broker.__all__, key=str.lower) or list(broker.__all__) == sorted(
        broker.__all__
    )


# Importer and what it must not import, at least one for each contract and each step of the layers.
PLANTED = [
    ("broker.model", "lmdb"),
    ("broker.model", "broker.core"),
    ("broker.core", "time"),
    ("broker.core", "broker.log"),
    ("broker.core", "broker.wire"),
    ("broker.access", "broker.log"),
    ("broker.log", "broker.node"),
    ("broker.log", "broker.wire"),
    ("broker.wire", "broker.log"),
    ("broker.node", "broker.edge"),
    ("broker.node", "broker.wire"),
    ("broker.edge", "broker.client"),
    ("broker.blocking", "broker.client"),
    ("broker.blocking", "asyncio"),
    ("broker.blocking", "selectors"),
    ("broker.blocking", "lmdb"),
    ("broker.client", "broker.blocking"),
    ("broker.remote", "broker.blocking"),
    ("broker.remote", "threading"),
    ("broker.wire", "broker.remote"),
    ("broker.client", "broker.shared"),
    ("broker.shared", "broker.bench"),
    ("broker.shared", "lmdb"),
    ("broker.client", "broker.bench"),
    ("broker.client", "lmdb"),
    ("broker.bench", "broker.cli"),
    ("broker_native", "broker.model"),
    ("broker.bench", "loadtest"),
    ("broker.blocking", "gevent"),
    ("loadtest", "broker.client"),
    ("loadtest", "asyncio"),
]


def lint_imports(root: Path) -> subprocess.CompletedProcess[str]:
    """Run import-linter over a copy of the house."""
    return subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as main; main()", "--no-cache"],
        cwd=root,
        env={**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{root / 'ext'}", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def copied_house(tmp_path: Path) -> Path:
    """The Python code of this house, to break."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for package in ("broker", "ext/broker_native", "loadtest"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    return tmp_path


def test_layers_hold(copied_house: Path) -> None:
    result = lint_imports(copied_house)
    assert result.returncode == 0, result.stdout + result.stderr


def test_layers_catch_what_is_planted(copied_house: Path) -> None:
    for number, (importer, imported) in enumerate(PLANTED):
        package = copied_house / ("ext" if importer == "broker_native" else "") / importer.replace(".", "/")
        (package / f"planted_{number}.py").write_text(f"import {imported}\n", encoding="utf-8")
    result = lint_imports(copied_house)
    assert result.returncode != 0
    missed = [
        (importer, imported)
        for number, (importer, imported) in enumerate(PLANTED)
        if not re.search(rf"{importer}\.planted_{number} -> {imported}\b", result.stdout)
    ]
    assert missed == [], result.stdout


def test_room_without_a_layer_is_caught(copied_house: Path) -> None:
    (copied_house / "broker" / "attic").mkdir()
    (copied_house / "broker" / "attic" / "__init__.py").write_text('"""Nobody\'s."""\n', encoding="utf-8")
    result = lint_imports(copied_house)
    assert result.returncode != 0
    assert "attic" in result.stdout
