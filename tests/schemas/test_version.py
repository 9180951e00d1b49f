"""Which versions of edge and runner belong together."""

import sys

import pytest

from schemas.version import VERSION, are_neighbours, import_extra


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("0.2.0", "0.2.7", True),
        ("0.2.0", "0.3.1", True),
        ("0.3.0", "0.2.9", True),
        ("0.2.0", "0.4.0", False),
        ("0.9.0", "0.11.0", False),
        ("1.0.0", "2.0.0", False),
        ("0.2.0.dev3", "0.4", False),
        ("0.2.0", "", True),
        ("0.2.0", "newest", True),
    ],
)
def test_versions_are_neighbours_up_to_one_minor_release_apart(one: str, other: str, expected: bool):
    assert are_neighbours(one, other) is expected
    assert are_neighbours(other, one) is expected


def test_this_version_has_three_numbers():
    assert len([int(part) for part in VERSION.split(".")]) == 3


def test_a_missing_package_names_the_extra_that_installs_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "numpy", None)
    with pytest.raises(LookupError, match=r"^\[x\] needs numpy, .*: pip install 'lamplighter-server\[models\]'$"):
        import_extra("numpy", "models", "[x]", LookupError)
