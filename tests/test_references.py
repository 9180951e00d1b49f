"""Every reference in pages, docstrings and comments resolves in this repository.

Checked are paths (`edge/app.py`), dotted names (`schemas.lifecycle.next_record`), a class with its member
(`JobFeed.follow`) and file names (`test_fuzz.py`). Documents that are not in the repository are not named at all.
"""

import ast
import io
import re
import subprocess
import tokenize
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("bus", "edge", "runner", "schemas", "lamplighter", "images", "jobkit", "tests", "bench", "deploy", "docs")
# Where a container has its own root, or where jobkit is installed by its own name.
PACKAGE_FOLDERS = {"jobkit": "images/jobkit/jobkit", "heygem_worker": "images/heygem/heygem_worker"}

# Written with brackets, so that this file does not hold what it looks for.
OUTSIDE = re.compile(r"\b(?:DESIG[N]|PROTOCOL[S]|STYL[E])(?: \d|\.md)|\bresearc[h]/\w|\bcoldrea[d]\b")
QUOTED = re.compile(r"`([^`\n]+)`")
FILE_PATH = re.compile(rf"(?:{'|'.join(PACKAGES)})(?:/[\w.*<>-]+)+/?")
BARE_PATH = re.compile(rf"(?<![\w/.`-])(?:{'|'.join(PACKAGES)})(?:/[\w-]+)+\.(?:py|md|toml|sh)\b")
DOTTED = re.compile(r"[a-z_]\w*(?:\.\w+)+(?:\(\))?")
MEMBER = re.compile(r"_?[A-Z]\w*[a-z]\w*\.[a-z_]\w*(?:\(\))?")
FILE_NAME = re.compile(r"[\w-]+(?:/[\w-]+)*\.(?:py|md|conf)")
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)#([^)\s]+)\)")
NAME_IN_FILE = re.compile(rf"`(\w+)`\s+(?:in\s+|\()\[?`((?:{'|'.join(PACKAGES)})/[\w/]+\.py)`")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)

# Names of files that are not in the repository.
FOREIGN_FILES = {
    "accounts.conf": "the broker's accounts, written by `lamplighter up`",
    "broker/accounts.conf": "likewise, in the data folder",
    "hosts.conf": "the accounts of enrolled hosts, written by the edge",
    "users.conf": "written by releases before the broker had accounts",
    "ours.conf": "likewise",
    "joined.conf": "likewise",
    "slurm.conf": "the configuration of a Slurm cluster",
    "run.py": "the vendor's own program in the HeyGem image",
}
# Dotted words that begin like a package and are something else.
FOREIGN_NAMES = {
    "lamplighter.toml": "the file of settings",
    "lamplighter.up": "a value of `by` in the audit trail",
    "lamplighter.edge": "likewise",
    "lamplighter.power_drivers": "the entry point group of power drivers",
}
# What pages call an object of the API, and the class behind it.
API_OBJECTS = {"Job": "JobView", "Host": "HostView"}


class Reference(NamedTuple):
    """A reference and the place where it stands."""

    place: str
    text: str


Definition = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@cache
def tracked_files() -> tuple[Path, ...]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return tuple(ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file())


@cache
def file_names() -> frozenset[str]:
    """Every tracked file by its name, and by the ends of its path: `heygem/routes.py`."""
    parts = (path.relative_to(ROOT).parts for path in tracked_files())
    return frozenset("/".join(one[start:]) for one in parts for start in range(len(one)))


def read_text(path: Path) -> str | None:
    """The text of a file; None for a file that is not text."""
    data = path.read_bytes()
    return None if b"\0" in data else data.decode(errors="replace")


def definitions(tree: ast.Module) -> Iterator[Definition]:
    """Yield the module, and every class and function at any depth. ast.walk would visit each expression too."""
    pending: list[Any] = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, Definition):
            yield node
        for block in ("body", "orelse", "finalbody", "handlers", "cases"):
            pending += getattr(node, block, ())


def prose_of_python(source: str) -> Iterator[tuple[int, str]]:
    """Docstrings and comments, with their lines."""
    for node in definitions(ast.parse(source)):
        if node.body:
            first = node.body[0]
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                yield first.lineno, first.value.value
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def prose_of_page(text: str) -> Iterator[tuple[int, str]]:
    """The lines of a page outside its blocks of code."""
    in_block = False
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("```"):
            in_block = not in_block
        elif not in_block:
            yield number, line


@cache
def prose() -> tuple[Reference, ...]:
    """The text of every page, docstring and comment."""
    found: list[Reference] = []
    for path in tracked_files():
        if path.suffix in {".py", ".md"}:
            text = read_text(path) or ""
            parts = prose_of_python(text) if path.suffix == ".py" else prose_of_page(text)
            found += (Reference(f"{path.relative_to(ROOT)}:{line}", words) for line, words in parts)
    return tuple(found)


def quoted_words() -> Iterator[Reference]:
    """What stands in backticks in the prose."""
    for place, words in prose():
        yield from (Reference(place, quoted) for quoted in QUOTED.findall(words))


def anchors(page: Path) -> set[str]:
    """The anchors that a page's headings get."""
    titles = HEADING.findall(page.read_text())
    return {re.sub(r"[^\w -]", "", title.lower()).strip().replace(" ", "-") for title in titles}


# -- names in the code


class Names(NamedTuple):
    """What a module, or a class, defines."""

    names: frozenset[str]
    bases: tuple[str, ...] = ()


def _assigned(target: ast.expr) -> Iterator[str]:
    match target:
        case ast.Name(id=name):
            yield name
        case ast.Attribute(value=ast.Name(id="self"), attr=name):
            yield name
        case ast.Tuple(elts=elements):
            for element in elements:
                yield from _assigned(element)


def _names_of(body: list[ast.stmt]) -> Iterator[str]:
    for node in body:
        match node:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                yield name
            case ast.Assign(targets=targets):
                for target in targets:
                    yield from _assigned(target)
            case ast.AnnAssign(target=target):
                yield from _assigned(target)
            case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
                yield from (alias.asname or alias.name.partition(".")[0] for alias in aliases)
            case ast.If(body=inner, orelse=other) | ast.Try(body=inner, orelse=other):
                yield from _names_of(inner)
                yield from _names_of(other)


def _members_of(node: ast.ClassDef) -> frozenset[str]:
    assigned = (inner for inner in ast.walk(node) if isinstance(inner, ast.Assign | ast.AnnAssign))
    targets = (target for one in assigned for target in (one.targets if isinstance(one, ast.Assign) else [one.target]))
    return frozenset((*_names_of(node.body), *(name for target in targets for name in _assigned(target))))


@cache
def module_tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def classes() -> dict[str, list[Names]]:
    """Every class of the tree by its name."""
    found: dict[str, list[Names]] = {}
    for path in tracked_files():
        if path.suffix == ".py":
            for node in definitions(module_tree(path)):
                if isinstance(node, ast.ClassDef):
                    bases = tuple(ast.unparse(base).partition("[")[0].rpartition(".")[2] for base in node.bases)
                    found.setdefault(node.name, []).append(Names(_members_of(node), bases))
    return found


def has_member(name: str, member: str) -> bool:
    """Whether a class of that name, or one that it inherits from, has the member. Foreign bases are not judged."""
    pending, seen = [name], set[str]()
    while pending:
        one = pending.pop()
        if one in seen:
            continue
        seen.add(one)
        defined = classes().get(one)
        if defined is None:
            if one not in {"Struct", "Protocol", "NamedTuple", "StrEnum", "Enum", "object", "Generic"}:
                return True
            continue
        if any(member in names.names for names in defined):
            return True
        pending += [base for names in defined for base in names.bases]
    return False


def _module_path(parts: tuple[str, ...]) -> Path | None:
    folder = ROOT / PACKAGE_FOLDERS.get(parts[0], parts[0])
    base = folder.joinpath(*parts[1:])
    if base.with_suffix(".py").is_file():
        return base.with_suffix(".py")
    return base if base.is_dir() else None


def dotted_name_resolves(name: str) -> bool:
    """Whether `package.module.symbol.member` names something. Other packages are not judged."""
    parts = tuple(name.removesuffix("()").split("."))
    if parts[0] not in {*PACKAGES, *PACKAGE_FOLDERS}:
        return True
    for length in range(len(parts), 0, -1):
        path = _module_path(parts[:length])
        if path is None:
            continue
        rest = parts[length:]
        if not rest:
            return True
        if path.is_dir():
            path /= "__init__.py"
            if not path.is_file():
                return False
        return rest[0] in set(_names_of(module_tree(path).body)) and (len(rest) == 1 or has_member(rest[0], rest[1]))
    return False


def path_resolves(path: str) -> bool:
    """Whether a path from the root names a file or folder; `*` stands for anything."""
    cleaned = path.rstrip("/.")
    if "<" in cleaned:
        return True
    return any(ROOT.glob(cleaned)) if "*" in cleaned else (ROOT / cleaned).exists()


# -- the tests


def test_no_document_outside_the_repository_is_named() -> None:
    named = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in tracked_files()
        if (text := read_text(path)) is not None
        for number, line in enumerate(text.splitlines(), 1)
        if OUTSIDE.search(line)
    ]
    assert named == []


def _unresolved(pattern: re.Pattern[str], resolves: Callable[[str], bool]) -> list[Reference]:
    return [one for one in quoted_words() if pattern.fullmatch(one.text) and not resolves(one.text)]


def test_every_path_exists() -> None:
    assert _unresolved(FILE_PATH, path_resolves) == []
    bare = (Reference(one.place, path) for one in prose() for path in BARE_PATH.findall(one.text))
    assert [one for one in bare if not path_resolves(one.text)] == []


def test_every_file_name_exists() -> None:
    assert _unresolved(FILE_NAME, lambda name: name in file_names() or name in FOREIGN_FILES) == []


def test_every_dotted_name_exists() -> None:
    assert _unresolved(DOTTED, lambda name: name in FOREIGN_NAMES or dotted_name_resolves(name)) == []


def test_every_member_of_a_class_of_ours_exists() -> None:
    def resolves(name: str) -> bool:
        owner, member = name.removesuffix("()").split(".")
        return owner not in classes() or any(has_member(one, member) for one in (owner, API_OBJECTS.get(owner, owner)))

    assert _unresolved(MEMBER, resolves) == []


def test_every_name_that_a_page_places_in_a_file_is_there() -> None:
    """Such as `failure_of_run` in `runner/execution/verdict.py`."""
    pages = [path for path in tracked_files() if path.suffix == ".md"]
    placed = [(page, *found) for page in pages for found in NAME_IN_FILE.findall(page.read_text())]
    lost = [
        f"{page.relative_to(ROOT)}: {name} in {file}"
        for page, name, file in placed
        if not re.search(rf"\b{name}\b", (ROOT / file).read_text())
    ]
    assert placed
    assert lost == []


def stored_names(node: ast.ClassDef) -> frozenset[str]:
    """The names under which a Struct stores its fields, where they differ from the attributes."""
    calls = (inner.value for inner in node.body if isinstance(inner, ast.AnnAssign))
    keywords = (one for call in calls if isinstance(call, ast.Call) for one in call.keywords if one.arg == "name")
    return frozenset(str(one.value.value) for one in keywords if isinstance(one.value, ast.Constant))


def stored_names_in_docstring(node: ast.ClassDef) -> list[str]:
    """What a Struct's docstring calls a field that is no attribute of it, but the name under which one is stored."""
    quoted = QUOTED.findall(ast.get_docstring(node) or "")
    return [name for name in quoted if name in stored_names(node) and name not in _members_of(node)]


def test_docstrings_of_structs_name_attributes_and_not_stored_names() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {node.name}: {name}"
        for path in tracked_files()
        if path.suffix == ".py"
        for node in definitions(module_tree(path))
        if isinstance(node, ast.ClassDef)
        for name in stored_names_in_docstring(node)
    ]
    assert found == []


def test_the_check_tells_a_stored_name_from_an_attribute() -> None:
    source = """
class Row(Struct):
    '''`on` and `why`, `since` and `text`.'''
    on_since: int = field(default=0, name="on")
    why: str = field(name="reason")
    reason_text: str = field(name="text")
    text: str = ""
"""
    (node,) = ast.parse(source).body
    assert isinstance(node, ast.ClassDef)
    assert stored_names_in_docstring(node) == ["on"]


def test_every_anchor_exists() -> None:
    pages = [path for path in tracked_files() if path.suffix == ".md"]
    links = [(page, target, anchor) for page in pages for target, anchor in LINK.findall(page.read_text())]
    lost = [
        f"{page.relative_to(ROOT)}: {target}#{anchor}"
        for page, target, anchor in links
        if anchor not in anchors((page.parent / target).resolve() if target else page)
    ]
    assert lost == []


def test_nothing_is_excused_that_exists_or_that_nobody_names() -> None:
    """A stale exception would hide a dangling reference."""
    words = {one.text for one in quoted_words()}
    assert not file_names() & FOREIGN_FILES.keys()
    assert {*FOREIGN_FILES, *FOREIGN_NAMES} <= words


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("schemas.lifecycle.next_record", True),
        ("schemas.lifecycle.no_such_function", False),
        ("schemas.no_such_module", False),
        ("bus.interface.JobFeed.follow", True),
        ("bus.interface.JobFeed.no_such_call", False),
        ("msgspec.json.encode", True),
    ],
)
def test_the_check_tells_a_name_that_exists_from_one_that_does_not(name: str, known: bool) -> None:
    assert dotted_name_resolves(name) is known
