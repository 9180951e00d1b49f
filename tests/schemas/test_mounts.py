"""`[[volumes]]` and `[[caches]]` of endpoint.toml: what is read, and what each wrong key is told."""

import hashlib
from typing import Any

import msgspec
import pytest

from schemas.endpoint import Endpoint, EndpointInvalid, parse_endpoint
from schemas.endpoint_parts import Cache, Volume, VolumeFile, folder_variable

A, B = hashlib.sha256(b"a").hexdigest(), hashlib.sha256(b"b").hexdigest()
HEAD = 'name = "lips"\nimage = "lips"\n'
VOLUME = f"""
[[volumes]]
name = "weights"
path = "/weights"
env = ["HF_HOME"]
[[volumes.files]]
path = "model/unet.pth"
url = "https://models.test/unet.pth"
sha256 = "{A}"
bytes = 7
[[volumes.files]]
path = "vae.pth"
sha256 = "{B}"
"""
CACHE = '\n[[caches]]\nname = "kernels"\npath = "/kernels"\nmax_mb = 64\n'


def test_both_tables_are_read() -> None:
    endpoint = parse_endpoint(HEAD + VOLUME + CACHE)
    files = (
        VolumeFile(path="model/unet.pth", url="https://models.test/unet.pth", sha256=A, bytes=7),
        VolumeFile(path="vae.pth", sha256=B),
    )
    assert endpoint.volumes == (Volume(name="weights", path="/weights", files=files, env=("HF_HOME",)),)
    assert endpoint.caches == (Cache(name="kernels", path="/kernels", max_mb=64),)
    assert folder_variable(endpoint.volumes[0]) == "LAMPLIGHTER_VOLUME_WEIGHTS"
    assert folder_variable(endpoint.caches[0]) == "LAMPLIGHTER_CACHE_KERNELS"


def test_what_a_host_offers_has_no_url_of_weights() -> None:
    offered = msgspec.json.encode(parse_endpoint(HEAD + VOLUME + CACHE).offered)
    assert b"models.test" not in offered
    assert msgspec.json.decode(offered, type=Endpoint).name == "lips"


def volume(*files: tuple[str, str], **changes: Any) -> Volume:
    made = Volume(name="v", path="/v", files=tuple(VolumeFile(path=path, sha256=sha256) for path, sha256 in files))
    return msgspec.structs.replace(made, **changes)


def test_a_volume_is_its_content() -> None:
    one = volume(("a", A), ("d/b", B))
    assert one.digest == hashlib.sha256("".join(sorted([f"{A}  a\n", f"{B}  d/b\n"])).encode()).hexdigest()
    assert one.digest == volume(("d/b", B), ("a", A), name="other", path="/other").digest
    others = [volume(("a", B), ("d/b", A)), volume(("a", A)), volume(("a", A), ("d/c", B))]
    assert one.digest not in {other.digest for other in others}


WRONG = {
    "an unknown key": (VOLUME.replace("path =", "paht =", 1), r"volumes\[0\].paht is an unknown field .*mean path"),
    "an unknown key of a file": (
        VOLUME.replace("bytes", "size"),
        r"volumes\[0\]\.files\[0\]\.size is an unknown field: allowed are path, sha256, url, bytes",
    ),
    "no digest": (
        VOLUME.replace(f'sha256 = "{A}"', ""),
        r"volumes\[0\]\.files\[0\]\.sha256 is missing: set it to sha256 in 64 lower-case hex digits",
    ),
    "half a digest": (VOLUME.replace(A, A[:60]), r"files\[0\]\.sha256 is .*: it must be sha256 in 64 lower-case hex"),
    "a file outside": (
        VOLUME.replace("model/unet", "../unet"),
        r"files\[0\]\.path .* it must be the path of a file in",
    ),
    "a full path": (VOLUME.replace('"model/', '"/model/'), r"files\[0\]\.path .* it must be the path of a file in"),
    "another scheme": (VOLUME.replace("https:", "ftp:"), r"files\[0\]\.url .* starts with http:// or https://"),
    "a negative size": (VOLUME.replace("= 7", "= -7"), r"files\[0\]\.bytes is -7: it must be a whole number of at"),
    "no files": ('\n[[volumes]]\nname = "weights"\npath = "/weights"\nfiles = []\n', r"volumes\[0\]\.files is \[\]"),
    "not a list": ('\n[volumes]\nname = "weights"\n', r"volumes is a table: it must be a list"),
    "a name in capitals": (VOLUME.replace('"weights"', '"Weights"'), r"volumes\[0\]\.name .* up to 32 lower-case"),
    "a relative folder": (VOLUME.replace('"/weights"', '"weights"'), r"volumes\[0\]\.path .* full path of a folder"),
    "the root": (VOLUME.replace('"/weights"', '"/"'), r"volumes\[0\]\.path .* full path of a folder"),
    "the job's folder": (VOLUME.replace('"/weights"', '"/job/in"'), r"volumes\[0\]\.path /job/in is in /job, which"),
    "a wrong variable": (VOLUME.replace("HF_HOME", "HF-HOME"), r"volumes\[0\]\.env\[0\] is \"HF-HOME\""),
    "a file twice": (VOLUME.replace("vae.pth", "model/unet.pth"), r"files\[1\]\.path model/unet.pth is in the volume"),
    "a file that is a folder": (VOLUME.replace("vae.pth", "model"), r"files\[1\]\.path model is also a folder"),
    "a name twice": (VOLUME + VOLUME.replace("/weights", "/more"), r"volumes\[1\]\.name weights is also the name"),
    "folders inside each other": (VOLUME + CACHE.replace('"/kernels"', '"/weights/k"'), r"overlap: use separate"),
    "a cache without a limit": (CACHE.replace("max_mb = 64", ""), r"caches\[0\]\.max_mb is missing"),
    "a cache of no size": (CACHE.replace("= 64", "= 0"), r"caches\[0\]\.max_mb is 0: it must be a whole number from 1"),
    "a warm container of nobody": ("\nwarm = true\n" + CACHE, r"warm = true .* belong to one: remove warm"),
    "a container of several owners": (CACHE + '\n[reuse]\nscope = "endpoint"\n', r"reuse.scope is .* set scope"),
}


@pytest.mark.parametrize("case", WRONG)
def test_each_wrong_key_says_what_is_allowed(case: str) -> None:
    text, why = WRONG[case]
    with pytest.raises(EndpointInvalid, match=why) as refused:
        parse_endpoint(HEAD + text)
    assert "\n" not in str(refused.value)
