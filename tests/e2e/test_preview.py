"""A face and a voice go in over HTTP, and a talking video comes out of a container."""

import subprocess
from functools import partial
from pathlib import Path

import av
import pytest

from lamplighter import JobFailed, api
from tests.images.preview.conftest import samples
from tests.images.preview.lip_sync import best_correlation, measure_lip_opening, measure_loudness
from tests.support.installation import IMAGES, ROOT, RunningInstallation
from tests.support.wait import wait_for

PREVIEW = (IMAGES / "preview",)

__all__ = ["samples"]

pytestmark = [pytest.mark.long(90), pytest.mark.preview, pytest.mark.docker, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def preview_image(docker_url: str) -> str:
    done = subprocess.run([str(ROOT / "images/preview/build.sh")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return "lamplighter-preview"


@pytest.fixture(scope="module")
def engine(preview_image: str) -> str:
    return "docker"


async def offered(running: RunningInstallation) -> bool:
    """Wait until the edge lists the runner's endpoint."""
    found = await running.ann.call(api.get_json("/v1/endpoints"))
    return any(endpoint["name"] == "preview" for endpoint in found["endpoints"])


def streams(mp4: Path) -> tuple[dict[str, str], float, str]:
    """Return the codecs by kind, the length in seconds, and the comment in the metadata."""
    with av.open(str(mp4)) as video:
        assert video.duration is not None
        codecs = {str(stream.type): stream.codec_context.name for stream in video.streams}
        return codecs, video.duration / av.time_base, video.metadata["comment"]


async def test_lips_follow_the_speech_and_bad_input_is_the_clients(
    running: RunningInstallation, samples: Path, tmp_path: Path
):
    await running.installation.start_runner(endpoints=PREVIEW)
    await wait_for(partial(offered, running))
    speech, other = samples / "speech.wav", samples / "speech2.wav"
    done = await running.ann.submit("preview", video=samples / "face.mp4", audio=speech, wait=True)
    result = await running.ann.download(done, "result.mp4", tmp_path / "result.mp4")
    codecs, seconds, comment = streams(result)
    with av.open(str(speech)) as wav:
        spoken = wav.duration / av.time_base
    assert (codecs, done.attempt) == ({"video": "h264", "audio": "aac"}, 1)
    assert abs(seconds - spoken) <= 0.1
    assert "preview" in comment
    opening = measure_lip_opening(result)
    correlation, lag = best_correlation(opening, measure_loudness(speech))
    assert correlation >= 0.5
    assert abs(lag) <= 1
    assert correlation > best_correlation(opening, measure_loudness(other))[0]
    events = [event async for event in running.ann.follow(done.id)]
    fractions = [event.data["fraction"] for event in events if event.kind == "progress"]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1

    cut = tmp_path / "cut.mp4"
    cut.write_bytes((samples / "face.mp4").read_bytes()[:20_000])
    for video, code in ((samples / "no_face.mp4", "no_face"), (cut, "unreadable_video")):
        with pytest.raises(JobFailed) as failed:
            await running.ann.submit("preview", video=video, audio=speech, wait=True)
        job = failed.value.job
        assert job.error is not None
        assert (job.error.code, job.error.blame, job.attempt) == (code, "client", 1)
