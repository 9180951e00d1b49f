"""What programs that we start inherit."""

from schemas.outbound_rules import INHERITED_NAMES, build_child_environment
from schemas.settings_loader import select_variables
from tests.schemas.test_settings import SampleSettings

OURS = {"LAMPLIGHTER_BROKER__PASSWORD": "x", "LAMPLIGHTER_KEY": "y", "AWS_SECRET_ACCESS_KEY": "z", "LC_ALL": "C"}


def test_what_any_program_needs_and_nothing_that_is_ours() -> None:
    usual = dict.fromkeys(INHERITED_NAMES, "v")
    assert build_child_environment(usual | OURS) == usual | {"LC_ALL": "C"}
    assert not any(name.startswith("LAMPLIGHTER") for name in INHERITED_NAMES)


def test_more_by_name_or_by_its_beginning() -> None:
    assert build_child_environment(OURS, "AWS_SECRET_ACCESS_KEY") == {"AWS_SECRET_ACCESS_KEY": "z", "LC_ALL": "C"}
    assert build_child_environment(OURS, prefixes=("AWS_",)) == {"AWS_SECRET_ACCESS_KEY": "z", "LC_ALL": "C"}


def test_a_process_is_given_its_own_settings_and_no_other_ones() -> None:
    given = {"LAMPLIGHTER_WATTS": "5", "LAMPLIGHTER_PLUG__NAME": "left", "LAMPLIGHTER_KEY": "y", "WATTS": "6"}
    assert select_variables(SampleSettings, given) == {"LAMPLIGHTER_WATTS": "5", "LAMPLIGHTER_PLUG__NAME": "left"}
