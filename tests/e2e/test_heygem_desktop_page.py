"""docs/heygem-desktop.md, walked: its settings and its check, and what the desktop client then does."""

import re
import shutil
import signal
from pathlib import Path
from typing import Any

import av
import httpx2
import pytest

from tests.e2e.test_up import up
from tests.images.preview.conftest import samples
from tests.images.preview.sample_videos import write_resized_video
from tests.images.tts.espeak import require_espeak
from tests.support.doc_pages import DOCS, read_blocks, run_block
from tests.support.installation import IMAGES
from tests.support.reserved_ports import reserve_ports
from tests.support.wait import wait_for_sync

__all__ = ["samples"]

PAGE = DOCS / "heygem-desktop.md"


@pytest.mark.long(8)
def test_the_desktop_client_finds_port_and_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shared = tmp_path / "face2face"
    (shared / "temp").mkdir(parents=True)
    for name in ("face.mp4", "speech.wav"):
        (shared / "temp" / name).write_bytes(name.encode())
    settings, command = read_blocks(PAGE, "toml")[0], read_blocks(PAGE, "sh")[0]
    assert command.split() == ["lamplighter", "up", "--easy-port", "8383"]
    (tmp_path / "lamplighter.toml").write_text(settings.replace("/mnt/d/duix_avatar_data/face2face", str(shared)))
    monkeypatch.setenv("LAMPLIGHTER_LANG", "zh")
    with reserve_ports(1) as (port,), up(tmp_path / "data", "--easy-port", str(port), tree=tmp_path) as (process, _):
        check = read_blocks(PAGE, "sh")[1].replace("8383", str(port))
        shown = run_block("sh", check, tmp_path).stdout
        assert re.search(r'"code": *10004', shown), shown
        assert "任务不存在" in shown
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as desktop:
            job = {"audio_url": "speech.wav", "video_url": "face.mp4", "code": "demo", "chaofen": 0, "pn": 1}
            assert desktop.post("/easy/submit", json=job).json()["code"] == 10000
            data = desktop.get("/easy/query", params={"code": "demo"}).json()["data"]
            assert (data["status"], data["msg"]) == (1, "没有服务器具备该任务所需的 GPU")
        process.send_signal(signal.SIGTERM)
        _, output = process.communicate(timeout=60)
    assert f"lamplighter: http://127.0.0.1:{port}/easy/ 不需要密钥" in output
    assert "的普通进程运行任务，不在容器中" in output


@pytest.mark.long(30)
@pytest.mark.preview
@pytest.mark.timeout(300)
def test_from_a_recording_to_a_video_as_the_client_asks_for_it(tmp_path: Path, samples: Path):
    """The requests of the client in its order (src/main/service/model.js, voice.js, video.js): voice, speech, video."""
    require_espeak()
    temp, voices = tmp_path / "face2face" / "temp", tmp_path / "voice" / "data"
    for folder in (temp, voices / "origin_audio"):
        folder.mkdir(parents=True)
    write_resized_video(samples / "face.mp4", temp / "model.mp4", 320, 180)
    with reserve_ports(2) as (easy_port, tts_port):
        settings = (
            read_blocks(PAGE, "toml")[1]
            .replace('"heygem"', '"preview"')
            .replace("/mnt/d/duix_avatar_data", str(tmp_path))
            .replace("18180", str(tts_port))
        )
        (tmp_path / "lamplighter.toml").write_text(settings)
        images = [word for name in ("tts", "preview") for word in ("--endpoints", str(IMAGES / name))]
        with (
            up(tmp_path / "data", "--easy-port", str(easy_port), *images, tree=tmp_path),
            httpx2.Client(base_url=f"http://127.0.0.1:{tts_port}", timeout=120) as speech_server,
            httpx2.Client(base_url=f"http://127.0.0.1:{easy_port}", timeout=60) as video_server,
        ):
            shutil.copyfile(samples / "speech.wav", voices / "origin_audio" / "model.wav")
            body = {"format": "wav", "reference_audio": "origin_audio/model.wav", "lang": "zh"}
            voice = speech_server.post("/v1/preprocess_and_tran", json=body).json()
            assert voice["code"] == 0, voice
            request: dict[str, Any] = {
                "speaker": "a1",
                "text": "Good morning.",
                "format": "wav",
                "need_asr": False,
                "streaming": False,
                "is_norm": 1,
                "reference_audio": voice["asr_format_audio_url"],
                "reference_text": voice["reference_audio_text"],
            }
            spoken = speech_server.post("/v1/invoke", json=request)
            assert spoken.status_code == 200, spoken.text
            (temp / "a1.wav").write_bytes(spoken.content)
            request = {
                "audio_url": "a1.wav",
                "video_url": "model.mp4",
                "code": "v1",
                "chaofen": 0,
                "watermark_switch": 0,
            }
            assert video_server.post("/easy/submit", json=request).json()["code"] == 10000

            def ended() -> dict[str, Any] | None:
                data = video_server.get("/easy/query", params={"code": "v1"}).json()["data"]
                return data if data["status"] != 1 else None

            data = wait_for_sync(ended, timeout_s=200, interval_s=0.5)
            assert data["status"] == 2, data
    with av.open(temp / data["result"].lstrip("/")) as video, av.open(temp / "a1.wav") as wav:
        assert abs(video.duration - wav.duration) / av.time_base < 0.1
        assert {stream.type for stream in video.streams} == {"video", "audio"}
