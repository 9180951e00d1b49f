"""The changes that `just mutants` makes to a module, one at a time.

Not changed: annotations, docstrings, f-strings, log calls, and the keywords of a class statement.
"""

import ast
import copy
import re
from collections.abc import Iterator
from typing import NamedTuple

COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.FloorDiv: ast.Mult,
    ast.Div: ast.Mult,
    ast.Mod: ast.Mult,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.Pow: ast.Mult,
}
LOG_CALL = re.compile(r"(\w+\.)*(_?log|bind_log)\b")
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
NAMED_BLOCKS = (*FUNCTIONS, ast.ClassDef)


class Mutant(NamedTuple):
    """One change of one module. `function` is the qualified name around it, "" outside of functions and classes."""

    path: str
    function: str
    line: int
    lines: range  # of the statement, without its block: a test that runs none of them cannot notice the change
    change: str
    start: int  # bytes of the source text that `text` replaces
    end: int
    text: str

    def apply(self, source: bytes) -> bytes:
        """Return the changed source text."""
        return source[: self.start] + self.text.encode() + source[self.end :]


class _Site(NamedTuple):
    """A node and what stands there instead. `before` and `after` show the change, with as much around it as needed."""

    node: ast.AST
    text: str
    before: str
    after: str


def mutants_of(path: str, source: bytes) -> list[Mutant]:
    """Return every mutant of a module, in the order of the source text."""
    tree = ast.parse(source)
    lines = [0]
    for line in source.splitlines(keepends=True):
        lines.append(lines[-1] + len(line))
    found = _Walk(path, lines)
    found.walk_block(tree.body, "", frozenset())
    return sorted(found.mutants, key=lambda mutant: (mutant.start, mutant.end, mutant.text))


class _Walk:
    def __init__(self, path: str, line_starts: list[int]) -> None:
        self._path = path
        self._line_starts = line_starts
        self.mutants: list[Mutant] = []

    def walk_block(self, body: list[ast.stmt], function: str, bound: frozenset[str]) -> None:
        """Walk statements; `bound` are the names that have a value before them."""
        for statement in body:
            lines = _own_lines(statement)
            inside = f"{function}.{statement.name}".lstrip(".") if isinstance(statement, NAMED_BLOCKS) else function
            for site in _sites_of_statement(statement, bound):
                self._add(site, inside, lines)
            for root in _own_expressions(statement):
                for site in _sites_of_expression(root):
                    self._add(site, inside, lines)
            inner = _arguments(statement) if isinstance(statement, FUNCTIONS) else bound
            for block in _blocks(statement):
                self.walk_block(block, inside, inner)
            bound |= _bound_names(statement)

    def _add(self, site: _Site, function: str, lines: range) -> None:
        node = site.node
        assert isinstance(node, ast.expr | ast.stmt | ast.arg)
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        start = self._line_starts[node.lineno - 1] + node.col_offset
        end = self._line_starts[node.end_lineno - 1] + node.end_col_offset
        change = f"{site.before} → {site.after}"
        self.mutants.append(Mutant(self._path, function, node.lineno, lines, change, start, end, site.text))


def _own_lines(statement: ast.stmt) -> range:
    """The lines of a statement; of a compound statement, those before its block."""
    blocks = _blocks(statement)
    last = statement.end_lineno or statement.lineno
    if isinstance(statement, ast.Try):
        return range(statement.lineno, statement.lineno + 1)
    return range(statement.lineno, max(statement.lineno, blocks[0][0].lineno - 1 if blocks else last) + 1)


def _blocks(statement: ast.stmt) -> list[list[ast.stmt]]:
    blocks = [getattr(statement, name, []) for name in ("body", "orelse", "finalbody")]
    handlers = [handler.body for handler in getattr(statement, "handlers", [])]
    cases = [case.body for case in getattr(statement, "cases", [])]
    return [block for block in (blocks[0], *handlers, *cases, *blocks[1:]) if block]


def _own_expressions(statement: ast.stmt) -> Iterator[ast.AST]:
    """The expressions of a statement itself that can be changed."""
    if isinstance(statement, FUNCTIONS):
        yield statement.args
    elif isinstance(statement, ast.ClassDef):
        pass
    elif isinstance(statement, ast.AnnAssign):
        if statement.value is not None:
            yield statement.value
    else:
        for name, value in ast.iter_fields(statement):
            if name in {"body", "orelse", "finalbody", "handlers", "cases"}:
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield child


def _arguments(function: ast.FunctionDef | ast.AsyncFunctionDef) -> frozenset[str]:
    return frozenset(node.arg for node in ast.walk(function.args) if isinstance(node, ast.arg))


def _bound_names(statement: ast.stmt) -> frozenset[str]:
    if isinstance(statement, NAMED_BLOCKS):
        return frozenset()
    return frozenset(
        node.id for node in ast.walk(statement) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    )


def _is_log_call(node: ast.AST) -> bool:
    if isinstance(node, ast.Await):
        node = node.value
    return isinstance(node, ast.Call) and LOG_CALL.match(ast.unparse(node.func)) is not None


def _sites_of_statement(statement: ast.stmt, bound: frozenset[str]) -> Iterator[_Site]:
    """What changes a statement as a whole: it is removed, or it returns None, or its condition is negated."""
    removed = False
    match statement:
        case ast.Expr(value=ast.Call() | ast.Await()):
            removed = not _is_log_call(statement.value)
        case ast.Assign(targets=[ast.Name(id=name)]):
            removed = name in bound  # without another value, the name would not exist: a type checker refuses that
        case ast.Assign() | ast.AugAssign() | ast.Raise() | ast.Delete() | ast.Break() | ast.Continue():
            removed = not (isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Tuple))
        case ast.Return(value=ast.expr() as value) if not (isinstance(value, ast.Constant) and value.value is None):
            yield _Site(statement, "return None", ast.unparse(statement), "return None")
        case ast.If(test=test) | ast.While(test=test):
            yield from _negated(test, "if " if isinstance(statement, ast.If) else "while ")
    if removed:
        yield _Site(statement, "pass", ast.unparse(statement), "pass")


def _negated(test: ast.expr, before: str) -> Iterator[_Site]:
    if isinstance(test, ast.Name | ast.Attribute | ast.Call | ast.Await | ast.NamedExpr | ast.Subscript):
        text = ast.unparse(test)
        yield _Site(test, f"(not ({text}))", before + text, f"{before}not {text}")


def _sites_of_expression(root: ast.AST) -> Iterator[_Site]:
    parents: list[tuple[ast.AST, ast.AST | None]] = [(root, None)]
    while parents:
        node, parent = parents.pop()
        if isinstance(node, ast.JoinedStr) or _is_log_call(node):
            continue
        yield from _sites_of_node(node, parent)
        if isinstance(node, ast.arguments):
            parents += [(default, node) for default in [*node.defaults, *node.kw_defaults] if default is not None]
        else:
            parents += [(child, node) for child in ast.iter_child_nodes(node)]


def _sites_of_node(node: ast.AST, parent: ast.AST | None) -> Iterator[_Site]:
    match node:
        case ast.Compare():
            yield from _sites_of_comparison(node)
        case ast.BoolOp():
            yield from _sites_of_boolean(node)
        case ast.UnaryOp(op=ast.Not()):
            yield _replaced(node, node.operand)
        case ast.BinOp() if type(node.op) in ARITHMETIC:
            changed_binary = copy.copy(node)
            changed_binary.op = ARITHMETIC[type(node.op)]()
            yield _replaced(node, changed_binary)
        case ast.IfExp(test=test):
            yield from _negated(test, "… if ")
        case ast.Constant(value=bool() | int() | float() as value):
            for other_value in [not value] if isinstance(value, bool) else [value + 1, value - 1]:
                yield _constant(node, other_value, parent)


def _sites_of_comparison(node: ast.Compare) -> Iterator[_Site]:
    for place, operator in enumerate(node.ops):
        for other in COMPARISONS[type(operator)]:
            changed = copy.copy(node)
            changed.ops = [*node.ops[:place], other(), *node.ops[place + 1 :]]
            yield _replaced(node, changed)


def _sites_of_boolean(node: ast.BoolOp) -> Iterator[_Site]:
    """`and` and `or` change places, and each operand is left out."""
    swapped = copy.copy(node)
    swapped.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
    yield _replaced(node, swapped)
    for place in range(len(node.values)):
        fewer = copy.copy(node)
        fewer.values = [*node.values[:place], *node.values[place + 1 :]]
        yield _replaced(node, fewer if len(fewer.values) > 1 else fewer.values[0])


def _replaced(node: ast.expr, changed: ast.expr) -> _Site:
    text = ast.unparse(changed)
    return _Site(node, f"({text})", ast.unparse(node), text)


def _constant(node: ast.Constant, value: float, parent: ast.AST | None) -> _Site:
    """A constant is shown inside of the expression that it is part of."""
    text = repr(value)
    if parent is None or isinstance(parent, ast.arguments):
        return _Site(node, f"({text})", repr(node.value), text)
    if isinstance(parent, ast.Dict) and node in parent.values:
        key = parent.keys[parent.values.index(node)]
        name = "**" if key is None else ast.unparse(key)
        return _Site(node, f"({text})", f"{name}: {node.value!r}", f"{name}: {text}")
    before = ast.unparse(parent)
    original = node.value
    try:
        node.value = value
        return _Site(node, f"({text})", before, ast.unparse(parent))
    finally:
        node.value = original
