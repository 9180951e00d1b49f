"""How the imports of a file follow when its packages get other names."""

import pytest

from deploy.relocation import ModuleMap, RelocationError, module_strings, rewrite_imports

MODULES = ModuleMap(
    {
        "schemas": "lamplighter._schemas",
        "bus": "lamplighter_server.bus",
        "lamplighter.cli.up": "lamplighter_server.cli.up",
    }
)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("from bus import nats\n", "from lamplighter_server.bus import nats\n"),
        ("from bus.nats.wire import read  # why\n", "from lamplighter_server.bus.nats.wire import read  # why\n"),
        ("import bus\n", "import lamplighter_server.bus as bus\n"),
        ("import os, bus.nats as n\n", "import os, lamplighter_server.bus.nats as n\n"),
        ("def f():\n    from bus import nats; return nats\n", None),
        ("from lamplighter.cli import context\n", "from lamplighter.cli import context\n"),
        (
            "from lamplighter.cli import context, up as u\n",
            "from lamplighter.cli import context; from lamplighter_server.cli import up as u\n",
        ),
        ("from lamplighter.cli.up import main\n", "from lamplighter_server.cli.up import main\n"),
        (
            "from schemas import (\n    job,  # one\n    host,\n)\nx = 1\n",
            "from lamplighter._schemas import job, host\n\n\n\nx = 1\n",
        ),
        ("import business\nfrom busy import x\n", "import business\nfrom busy import x\n"),
        ('"""Read bus.nats and schemas.job."""\nx = "é"; from bus import nats\n', None),
    ],
)
def test_imports_follow_and_nothing_else_changes(source: str, expected: str | None):
    """Where `expected` is None, only the name of the package differs."""
    rewritten = rewrite_imports(source, "x.py", MODULES)
    assert rewritten == (source.replace("from bus", "from lamplighter_server.bus") if expected is None else expected)
    assert rewritten.count("\n") == source.count("\n"), "a traceback shows the lines of the checkout"


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("import bus.nats\n", "x.py:1: write `from … import …`"),
        ("from . import nats\n", "x.py:1: a relative import"),
        ("x = 1\nfrom ..bus import nats\n", "x.py:2: a relative import"),
    ],
)
def test_an_import_that_cannot_follow_is_named(source: str, why: str):
    with pytest.raises(RelocationError, match=why):
        rewrite_imports(source, "x.py", MODULES)


def test_a_module_that_would_get_another_last_name_is_refused():
    with pytest.raises(RelocationError, match=r"x.py:1: lamplighter.schemas gets another last name, _schemas"):
        rewrite_imports("from lamplighter import schemas\n", "x.py", ModuleMap({"lamplighter.schemas": "l._schemas"}))


def test_strings_that_name_a_module_are_found():
    known = {"edge.store.remote", "edge", "runner.gpu.nvml"}
    source = (
        '"""See edge.store.remote."""\nload("edge.store.remote")\nrun(["-m", "runner.gpu.nvml"])\nopen("edge.pem")\n'
    )
    source += 'f"{x} runner.gpu.nvml"\n"python -m edge.store.remote:main"\n"lamplighter.edge"\n'
    found = sorted(line.split(":")[1] for line in module_strings(source, "x.py", known))
    assert found == ["2", "3", "5"], "neither docstrings and bare strings nor names of files count"
