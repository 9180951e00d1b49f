"""docs/heygem-desktop.md, walked: its settings and its check, and what the desktop client then does."""

import re
import signal
from pathlib import Path

import httpx2
import pytest

from tests.e2e.test_up import up
from tests.support.doc_pages import DOCS, read_blocks, run_block
from tests.support.reserved_ports import reserve_ports

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
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}") as desktop:
            job = {"audio_url": "speech.wav", "video_url": "face.mp4", "code": "demo", "chaofen": 0, "pn": 1}
            assert desktop.post("/easy/submit", json=job).json()["code"] == 10000
            data = desktop.get("/easy/query", params={"code": "demo"}).json()["data"]
            assert (data["status"], data["msg"]) == (1, "没有服务器具备该任务所需的 GPU")
        process.send_signal(signal.SIGTERM)
        _, output = process.communicate(timeout=60)
    assert f"lamplighter: http://127.0.0.1:{port}/easy/ 不需要密钥" in output
    assert "的普通进程运行任务，不在容器中" in output
