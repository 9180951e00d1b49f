"""Names in the shared folder: how they are resolved, and that none leads out of it."""

import hashlib
import os
from pathlib import Path

import pytest

from edge.facades.heygem.facade import open_shared_file
from schemas.problems import ProblemError
from tests.edge.facades.heygem.conftest import AUDIO, VIDEO, HeygemClient, parse_body

FAULT = {"code": 9999, "data": {}, "msg": "系统异常", "success": False}


@pytest.fixture
def shared(root: Path, tmp_path: Path) -> Path:
    (root / "characters").mkdir()
    (root / "characters" / "x.mp4").write_bytes(b"character")
    (root / "temp" / "within.wav").symlink_to("speech.wav")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_bytes(b"secret")
    (root / "temp" / "out").symlink_to(tmp_path / "outside" / "secret")
    (root / "temp" / "away").symlink_to(tmp_path / "outside")
    (root / "temp" / "loop").symlink_to("loop")
    os.mkfifo(root / "temp" / "pipe")
    return root


async def content(root: Path, name: str) -> bytes:
    return b"".join([chunk async for chunk in open_shared_file(root, name).read_chunks()])


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("speech.wav", AUDIO),
        ("./speech.wav", AUDIO),
        ("within.wav", AUDIO),
        ("temp/speech.wav", AUDIO),
        ("/code/data/temp/speech.wav", AUDIO),
        ("/code/data//temp/speech.wav", AUDIO),
        ("../characters/x.mp4", b"character"),
        ("characters/x.mp4", b"character"),
        ("/code/data/characters/x.mp4", b"character"),
    ],
)
async def test_a_name_is_seen_from_temp_as_the_vendor_sees_it(shared: Path, name, meant):
    assert await content(shared, name) == meant


async def test_an_absolute_name_below_the_folder_is_that_file(shared: Path):
    assert await content(shared, str(shared / "characters" / "x.mp4")) == b"character"


@pytest.mark.parametrize(
    "name",
    [
        "out",
        "away/secret",
        "../../outside/secret",
        "/code/data/../../outside/secret",
        "/code/data/../outside/secret",
        "/code/data/temp/away/secret",
        "/etc/passwd",
        "/code/data",
        "/code/data/",
        "/code/data//etc/passwd",
        "..",
        ".",
        "/",
        "",
        "loop",
        "pipe",
        "nobody.wav",
        "speech.wav\0.mp4",
        "speech.wav/more",
        "\ud800",
        "a" * 300,
        "../" * 2_000_000 + "etc/passwd",
        "a/" * 500_000,
        "..\\..\\outside\\secret",
    ],
    ids=lambda name: ascii(name[:30]),
)
def test_what_is_no_file_inside_is_refused_and_waits_for_nothing(shared: Path, name):
    with pytest.raises(ProblemError) as refused:
        open_shared_file(shared, name)
    assert refused.value.code == "input_invalid"


def test_a_link_put_in_the_way_after_the_look_is_not_followed(shared: Path, tmp_path: Path, monkeypatch):
    (shared / "temp" / "race").mkdir()
    (shared / "temp" / "race" / "secret").write_bytes(b"harmless")
    looked = os.path.realpath

    def look_then_swap(path: Path) -> str:
        real = looked(path)
        if real.endswith("race/secret"):
            (shared / "temp" / "race").rename(shared / "temp" / "moved")
            (shared / "temp" / "race").symlink_to(tmp_path / "outside")
        return real

    monkeypatch.setattr(os.path, "realpath", look_then_swap)
    with pytest.raises(ProblemError):
        open_shared_file(shared, "race/secret")


async def test_a_file_that_changes_after_the_submit_changes_nothing(heygem: HeygemClient):
    await heygem.submit()
    (heygem.root / "temp" / "speech.wav").write_bytes(b"something else")
    job = await heygem.job()
    kept = job.input["audio"].removeprefix("sha256:")
    assert kept == hashlib.sha256(AUDIO).hexdigest()
    assert b"".join([block async for block in heygem.world.store.read(kept)]) == AUDIO
    assert (await heygem.submit())["code"] == 10005


async def test_what_is_refused_says_why_in_a_header_and_keeps_nothing(heygem: HeygemClient):
    reply = await heygem.local.post(
        "/easy/submit", json={"audio_url": "../../etc/passwd\n", "video_url": "face.mp4", "code": "c"}
    )
    assert reply.json() == FAULT
    assert reply.headers["lamplighter-error"].startswith("input_invalid: ")
    assert not await heygem.world.bus.job_store.keys()


async def test_a_file_over_the_limit_is_refused(heygem: HeygemClient):
    with (heygem.root / "temp" / "large.wav").open("wb") as file:
        file.truncate(2 << 20)  # the world takes 1 MiB
    assert await heygem.submit(audio_url="large.wav") == FAULT


async def test_a_file_is_uploaded_and_named_in_a_submit(heygem: HeygemClient):
    told = parse_body(await heygem.local.post("/easy/upload", files={"file": ("me.mp4", VIDEO, "video/mp4")}))
    assert told["code"] == 10000
    assert told["data"]["name"] == "me.mp4"
    assert (await heygem.submit(video_url=told["data"]["filename"]))["code"] == 10000
    assert (await heygem.job()).input["video"] == told["data"]["filename"]


async def test_an_upload_is_one_file_of_a_form(heygem: HeygemClient):
    two = {"a": ("a.wav", b"a", "audio/wav"), "b": ("b.wav", b"b", "audio/wav")}
    for reply in (
        await heygem.local.post("/easy/upload", files=two),
        await heygem.local.post("/easy/upload", json={}),
        await heygem.local.get("/easy/upload"),
    ):
        assert parse_body(reply)["code"] == 9999
        assert reply.headers["lamplighter-error"].startswith("input_invalid")
