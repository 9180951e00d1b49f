"""Names in a shared settings file that nobody has."""

from msgspec import Struct, field

from schemas.settings_loader import unknown_names


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
    assert unknown_names([SampleSettings], TEXT) == [
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

    assert unknown_names([SampleSettings, Other], "wats = 6\n[plugs]\nname = 'x'") == []
