"""docs/volumes.md says what is so: its example is an endpoint.toml, and its table has every key."""

import re
from pathlib import Path

from schemas.endpoint import parse_endpoint
from schemas.endpoint_parts import RESERVED_PATHS, VOLUMES_OWNER, Cache, Volume, VolumeFile, folder_variable
from tests.support.doc_pages import DOCS, read_blocks

PAGE = DOCS / "volumes.md"


def keys_of(*kinds: str) -> set[str]:
    """The keys that the table has for these kinds of tables."""
    rows = re.findall(r"^\| `([a-z_0-9]+)` \| (\w+) \|", Path(PAGE).read_text(), re.MULTILINE)
    return {key for key, kind in rows if kind in kinds}


def test_its_example_is_an_endpoint_with_both() -> None:
    (example,) = read_blocks(PAGE, "toml")
    endpoint = parse_endpoint(example)
    for mount in (*endpoint.volumes, *endpoint.caches):
        assert f"`{folder_variable(mount)}`" in PAGE.read_text()
    assert [file.url is None for file in endpoint.volumes[0].files] == [False, True]


def test_its_table_has_every_key() -> None:
    assert keys_of("both", "volumes") == {*Volume.__struct_fields__}
    assert keys_of("both", "caches") == {*Cache.__struct_fields__}
    assert keys_of("files") == {*VolumeFile.__struct_fields__}


def test_it_names_the_owner_and_the_reserved_folders() -> None:
    text = PAGE.read_text()
    assert f"`{VOLUMES_OWNER}`" in text
    assert all(f"`{path}`" in text for path in RESERVED_PATHS)
