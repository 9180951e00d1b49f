"""Names in a shared settings file that nobody has, and names of the last release."""

from typing import Annotated

import pytest
from msgspec import Meta, Struct, field

from edge.settings import EdgeSettings
from runner.settings import RunnerSettings
from schemas.settings_loader import (
    SettingsInvalid,
    load_settings,
    renamed_from,
    renamed_settings,
    select_variables,
    unknown_settings,
)


class Volt(Struct, frozen=True, tag="volt", tag_field="kind"):
    pin: int = 0


class SampleWire(Struct, frozen=True, tag="wire", tag_field="kind"):
    length: int = 0


class SamplePlug(Struct, frozen=True):
    name: str = ""
    parts: dict[str, Volt | SampleWire] = field(default_factory=dict)
    rows: tuple[SampleWire, ...] = ()


class SampleSettings(Struct, frozen=True):
    watts: float | None = None
    plug: SamplePlug | None = None


TEXT = """
watts = 5
wats = 6
[plug]
name = "left"
nmae = "right"
[plug.parts.a]
kind = "volt"
pin = 1
pim = 1
[[plug.rows]]
length = 1
[[plug.rows]]
lenght = 2
[plugs]
name = "x"
"""


def test_what_no_struct_has_is_named_where_it_stands():
    assert [fault.name for fault in unknown_settings([SampleSettings], TEXT)] == [
        "wats",
        "plug.nmae",
        "plug.parts.a.pim",
        "plug.rows.lenght",
        "plugs",
    ]


def test_one_of_several_structs_is_enough():
    class Other(Struct, frozen=True):
        plugs: SamplePlug = SamplePlug()
        wats: int = 0

    assert unknown_settings([SampleSettings, Other], "wats = 6\n[plugs]\nname = 'x'") == []


class Fan(Struct, frozen=True):
    speed_rpm: Annotated[int, Meta(gt=0), renamed_from("speed")] = 1


class FanSettings(Struct, frozen=True):
    fan: Annotated[Fan, renamed_from("blower")] = Fan()
    fans: dict[str, Fan] = field(default_factory=dict)
    rack: Annotated[tuple[Fan, ...], renamed_from("shelf")] = ()


OLD_TEXT = """
[blower]
speed = 2
[fans.left]
speed = 3
[[shelf]]
speed = 4
[[shelf]]
speed_rpm = 5
"""


def test_a_setting_is_read_under_its_name_of_the_last_release() -> None:
    settings = load_settings(FanSettings, OLD_TEXT, {"LAMPLIGHTER_FANS__RIGHT__SPEED": "6"})
    assert settings == FanSettings(
        fan=Fan(speed_rpm=2), fans={"left": Fan(speed_rpm=3), "right": Fan(speed_rpm=6)}, rack=(Fan(4), Fan(5))
    )


def test_a_variable_overrides_the_file_whichever_of_the_two_names_each_uses() -> None:
    for name in ("LAMPLIGHTER_BLOWER__SPEED", "LAMPLIGHTER_FAN__SPEED_RPM"):
        for text in ("[blower]\nspeed = 2", "[fan]\nspeed_rpm = 2"):
            assert load_settings(FanSettings, text, {name: "9"}).fan.speed_rpm == 9


def test_both_names_of_a_setting_in_one_place_are_refused() -> None:
    with pytest.raises(SettingsInvalid, match=r"fans\.left\.speed is the old name of fans\.left\.speed_rpm, and both"):
        load_settings(FanSettings, "[fans.left]\nspeed = 1\nspeed_rpm = 2", {})


def test_settings_under_an_old_name_are_named_with_the_new_one() -> None:
    assert renamed_settings([FanSettings], OLD_TEXT, {"LAMPLIGHTER_FAN__SPEED": "6", "PATH": "/bin"}) == [
        ("blower", "fan"),
        ("blower.speed", "fan.speed_rpm"),
        ("fans.left.speed", "fans.left.speed_rpm"),
        ("shelf", "rack"),
        ("shelf.speed", "rack.speed_rpm"),
        ("fan.speed", "fan.speed_rpm"),
    ]
    assert renamed_settings([FanSettings], "[fan]\nspeed_rpm = 2", {}) == []


def test_an_old_name_is_not_misspelt_and_its_variable_is_handed_on() -> None:
    assert [fault.name for fault in unknown_settings([FanSettings], OLD_TEXT + "wight = 1")] == ["shelf.wight"]
    given = {"LAMPLIGHTER_BLOWER__SPEED": "2", "LAMPLIGHTER_SPEED": "3"}
    assert select_variables(FanSettings, given) == {"LAMPLIGHTER_BLOWER__SPEED": "2"}


@pytest.mark.parametrize(
    ("text", "kind", "expected"),
    [
        ('[hosts.h]\ndriver = "wol"\nmac = "a4:bb:6d:00:11:22"\nrank = 3', EdgeSettings, "hosts.h.wake_priority"),
        ('[hosts.h]\ndriver = "wol"\nmac = "a4:bb:6d:00:11:22"\nquiet = []', EdgeSettings, "hosts.h.quiet_hours"),
        ('[hosts.h]\ndriver = "wol"\nmac = "a4:bb:6d:00:11:22"\nstays_for = []', EdgeSettings, "hosts.h.keep_on_for"),
        ('[enrollment]\nfolder = "/etc/nats"', EdgeSettings, "enrollment.nats_conf_dir"),
        ('[enrollment]\nreload = ["true"]', EdgeSettings, "enrollment.reload_command"),
        ("[joining]", EdgeSettings, "enrollment"),
        ("[dead_man]\nstays_for = []", RunnerSettings, "dead_man.keep_on_for"),
    ],
)
def test_the_settings_of_the_last_release_are_still_read(text: str, kind: type[Struct], expected: str) -> None:
    assert [name.new_name for name in renamed_settings([kind], text, {})] == [expected]
    assert load_settings(kind, text, {}) != load_settings(kind, "", {}) or text == "[joining]"
