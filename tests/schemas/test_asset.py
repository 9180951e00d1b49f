"""Digests, the asset fields of an input, and names that are safe on any disk."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.asset import (
    NAME_LIMIT_BYTES,
    AssetField,
    Digest,
    InvalidDigest,
    asset_fields,
    guess_media_type,
    is_digest,
    parse_digest,
    reference_key,
    safe_name,
)

HEX = "ab" * 32


def test_a_digest_is_64_lower_case_hex_digits_after_its_scheme() -> None:
    assert parse_digest(f"sha256:{HEX}") == HEX
    assert reference_key("ann", HEX) == f"ann.{HEX}"
    assert msgspec.convert(HEX, Digest) == HEX


@pytest.mark.parametrize(
    "text",
    ["", "sha256:", HEX, f"sha256:{HEX}\n", f"sha256:{HEX.upper()}", f"sha256:{HEX}a", f"md5:{HEX}", "sha256:../../x"],
)
def test_anything_else_names_no_asset(text: str) -> None:
    with pytest.raises(InvalidDigest, match="names no asset"):
        parse_digest(text)


def test_a_trailing_newline_is_no_digest() -> None:
    assert not is_digest(HEX + "\n")
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(HEX + "\n", Digest)


ASSET = {"type": "string", "format": "asset"}


def test_asset_fields_are_found_where_the_schema_says_so() -> None:
    schema = {
        "properties": {
            "video": ASSET,
            "title": {"type": "string"},
            "clips": {"type": "array", "items": {"properties": {"audio": ASSET}}},
            "masks": {"type": "array", "items": ASSET},
            "either": {"anyOf": [ASSET, {"type": "null"}]},
        },
        "additionalProperties": ASSET,
    }
    given_input = {
        "extra": "e",
        "masks": ["m0", "m1"],
        "clips": [{"audio": "a0"}, {}, {"audio": "a2"}],
        "title": "sha256:not a file",
        "video": "v",
        "either": "x",
    }
    assert asset_fields(schema, given_input) == [
        AssetField("$.video", "video", "v"),
        AssetField("$.clips[0].audio", "audio", "a0"),
        AssetField("$.clips[2].audio", "audio", "a2"),
        AssetField("$.masks[0]", "masks", "m0"),
        AssetField("$.masks[1]", "masks", "m1"),
        AssetField("$.either", "either", "x"),
        AssetField("$.extra", "extra", "e"),
    ]


def test_a_field_that_two_branches_name_is_one_field() -> None:
    assert asset_fields({"allOf": [{"properties": {"v": ASSET}}], "properties": {"v": ASSET}}, {"v": "x"}) == [
        ("$.v", "v", "x")
    ]


@pytest.mark.parametrize(("schema", "value"), [({}, {"v": "x"}), ({"properties": {"v": ASSET}}, {"v": 3}), (ASSET, [])])
def test_nothing_is_found_where_no_file_is_meant(schema: dict[str, object], value: object) -> None:
    assert asset_fields(schema, value) == []


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("演讲 最终版.mp4", "演讲 最终版.mp4"),
        ("../../etc/passwd", "passwd"),
        ("C:\\videos\\me.MOV", "me.MOV"),
        ("a\r\nSet-Cookie: x", "a  Set-Cookie_ x"),
        ("x\u202egpj.exe", "xgpj.exe"),
        ("NUL", "_NUL"),
        ("com1.txt", "_com1.txt"),
        (".bashrc", "bashrc"),
        ("-rf", "rf"),
        ('a"b<c>.wav', "a_b_c_.wav"),
        ("..", "file"),
        ("dir/", "file"),
        ("", "file"),
        ("\ud800.mp4", "mp4"),
    ],
)
def test_names_become_one_plain_file(name: str, safe: str) -> None:
    assert safe_name(name) == safe


def test_a_long_name_keeps_its_extension_and_whole_letters() -> None:
    short = safe_name("视" * 80 + ".mp4")
    assert short == "视" * 32 + ".mp4"


@given(st.text())
def test_every_text_has_a_safe_name_and_is_its_own(text: str) -> None:
    name = safe_name(text)
    assert name
    assert len(name.encode()) <= NAME_LIMIT_BYTES
    assert name not in {".", ".."}
    assert not set(name) & set('/\\\0<>:"|?*')
    assert safe_name(name) == name


def test_the_media_type_never_makes_a_page() -> None:
    assert guess_media_type("a.MP4") == "video/mp4"
    assert guess_media_type("a.wav") == "audio/wav"
    assert (
        guess_media_type("page.html")
        == guess_media_type("picture.svg")
        == guess_media_type("none")
        == "application/octet-stream"
    )
