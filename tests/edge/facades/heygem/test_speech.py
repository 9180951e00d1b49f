"""The vendor's speech server, as its desktop client calls it: a voice is accepted, a text comes back as a WAV."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
from msgspec import Struct

from edge.facades.heygem.facade import HeygemSettings
from edge.facades.heygem.protocol import TTS_PREFIX, VENDOR_TTS_PREFIX
from edge.jobs.event_stream import EventStreams
from schemas import events as e
from schemas.endpoint import parse_endpoint
from schemas.job import Job, JobKey, Output, OutputFile, Status
from schemas.problems import ProblemError
from tests.edge.facades.heygem.conftest import OWNER, run_facade
from tests.support.edge_services import FakeBusServicesRig
from tests.support.http_server import open_client
from tests.support.wait import wait_for

TTS = parse_endpoint((Path(__file__).parents[4] / "images/tts/endpoint.toml").read_text())
VOICE, WAV = b"RIFF a voice", b"RIFF the speech"
# As makeAudio of the client sends it (src/main/service/voice.js).
INVOKE = {
    "speaker": "5f0c",
    "text": "大家好",
    "format": "wav",
    "topP": 0.7,
    "max_new_tokens": 1024,
    "chunk_length": 100,
    "repetition_penalty": 1.2,
    "temperature": 0.7,
    "need_asr": False,
    "streaming": False,
    "is_fixed_seed": 0,
    "is_norm": 1,
    "reference_audio": "origin_audio/me.wav",
    "reference_text": "",
}


class SpeechClient(Struct, frozen=True):
    """`local` is the vendor's port; `url` is the edge, where the same needs the key `key` of `ann`."""

    world: FakeBusServicesRig
    local: httpx2.AsyncClient
    url: str
    key: str

    async def preprocess(self, name: Any = "origin_audio/me.wav") -> httpx2.Response:
        body = {"format": "wav", "reference_audio": name, "lang": "zh"}
        return await self.local.post("/v1/preprocess_and_tran", json=body)

    async def invoke(self, **fields: Any) -> httpx2.Response:
        return await self.local.post("/v1/invoke", json=INVOKE | fields)

    async def only_job(self) -> Job:
        """Wait for the job of a request."""

        async def made() -> Job | None:
            keys = list(await self.world.bus.job_store.keys())
            return (await self.world.jobs.read(keys[0])).record.job if keys else None

        return await wait_for(made)

    async def speak(self) -> Job:
        """Run the job of a request as a runner does."""
        job = await self.world.start(await self.only_job())
        sha256 = await self.world.put(job.owner, WAV, "speech.wav")
        file = OutputFile("speech.wav", sha256, len(WAV), "audio/x-wav")
        return await self.world.write_event(job.key, e.Succeeded(Output((file,), {})))


@asynccontextmanager
async def run_speech_edge(folder: Path, root: Path | None) -> AsyncIterator[SpeechClient]:
    settings = HeygemSettings(enabled=True, tts_root=root)
    async with run_facade(folder, settings, TTS, prefix=VENDOR_TTS_PREFIX, mount=TTS_PREFIX) as made:
        yield SpeechClient(made.world, made.local, made.url, made.key)


@pytest.fixture
async def speech(tmp_path: Path) -> AsyncIterator[SpeechClient]:
    root = tmp_path / "voice"
    (root / "origin_audio").mkdir(parents=True)
    (root / "origin_audio" / "me.wav").write_bytes(VOICE)
    async with run_speech_edge(tmp_path / "edge", root) as made:
        yield made


async def test_a_voice_is_accepted_if_its_file_is_there(speech: SpeechClient):
    reply = await speech.preprocess()
    assert (reply.status_code, reply.json()) == (
        200,
        {"code": 0, "asr_format_audio_url": "origin_audio/me.wav", "reference_audio_text": ""},
    )
    for name in ("origin_audio/nobody.wav", "../secret", "", 7, None):
        reply = await speech.preprocess(name)
        assert (reply.status_code, reply.json()["code"]) == (200, -1), name
        assert reply.headers["lamplighter-error"].startswith("input_invalid"), name


async def test_a_text_comes_back_as_a_wav(speech: SpeechClient):
    replies: list[httpx2.Response] = []
    async with anyio.create_task_group() as group:

        async def ask() -> None:
            replies.append(await speech.invoke(reference_audio="origin_audio/me.wav|||origin_audio/more.wav"))

        group.start_soon(ask)
        job = await speech.speak()
    assert (replies[0].status_code, replies[0].content) == (200, WAV)
    assert replies[0].headers["content-type"] == "audio/x-wav"
    voice = await speech.world.put(OWNER, VOICE, "me.wav")
    assert (job.owner, job.endpoint) == (OWNER, "tts")
    assert job.input == {"text": "大家好", "voice": f"sha256:{voice}", "speed": 1.0}


async def test_the_wait_outlives_a_broker_that_is_away(speech: SpeechClient, monkeypatch: pytest.MonkeyPatch):
    wait_until_final, refused = EventStreams.wait_until_final, anyio.Event()

    async def refuse_once(streams: EventStreams, key: JobKey, timeout_s: float) -> None:
        if not refused.is_set():
            refused.set()
            raise ProblemError("unavailable", "the broker does not answer: try again")
        await wait_until_final(streams, key, timeout_s)

    monkeypatch.setattr(EventStreams, "wait_until_final", refuse_once)
    replies: list[httpx2.Response] = []
    async with anyio.create_task_group() as group:

        async def ask() -> None:
            replies.append(await speech.invoke())

        group.start_soon(ask)
        await refused.wait()
        await speech.speak()
    assert (replies[0].status_code, replies[0].content) == (200, WAV)


async def test_a_failed_job_is_no_speech(speech: SpeechClient):
    replies: list[httpx2.Response] = []
    async with anyio.create_task_group() as group:

        async def ask() -> None:
            replies.append(await speech.invoke())

        group.start_soon(ask)
        await speech.world.jobs.cancel((await speech.only_job()).key)
    assert replies[0].status_code == 409
    assert replies[0].json()["code"] == -1
    assert replies[0].headers["lamplighter-error"].startswith("conflict")


async def test_when_the_client_goes_the_job_is_cancelled(speech: SpeechClient):
    async with anyio.create_task_group() as group:
        group.start_soon(speech.invoke)
        key = (await speech.only_job()).key
        group.cancel_scope.cancel()

    async def cancelled() -> bool:
        return (await speech.world.jobs.read(key)).record.job.status is Status.CANCELLED

    await wait_for(cancelled)


@pytest.mark.parametrize(
    "fields",
    [{"text": ""}, {"text": 5}, {"text": "  "}, {"reference_audio": "nobody.wav"}, {"reference_text": []}],
    ids=str,
)
async def test_what_cannot_be_spoken_is_refused_and_makes_no_job(speech: SpeechClient, fields: dict[str, Any]):
    reply = await speech.invoke(**fields)
    assert (reply.status_code, reply.json()["code"]) == (422, -1)
    assert not await speech.world.bus.job_store.keys()


async def test_the_port_serves_nothing_else(speech: SpeechClient):
    for path in ("/v1/jobs", "/v1/hosts", "/easy/query?code=x", "/tts/v1/invoke", "/v1/../v1/jobs"):
        reply = await speech.local.get(path)
        assert reply.status_code == 404, path


async def test_the_edges_own_port_serves_it_with_a_key(speech: SpeechClient):
    body = {"reference_audio": "origin_audio/me.wav"}
    async with open_client(speech.url) as client:
        refused = await client.post("/tts/v1/preprocess_and_tran", json=body)
        assert refused.json()["code"] == -1
        assert refused.headers["lamplighter-error"].startswith("unauthorized")
        given = await client.post("/tts/v1/preprocess_and_tran", json=body, headers={"X-API-Key": speech.key})
        assert given.json()["code"] == 0


async def test_without_a_shared_folder_it_says_which_setting_is_missing(tmp_path: Path):
    async with run_speech_edge(tmp_path, None) as speech:
        for reply in (await speech.preprocess(), await speech.invoke()):
            assert "heygem.tts_root" in reply.headers["lamplighter-error"]
