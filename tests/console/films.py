"""Films for the console, and whether one really plays. No real person's face is in them."""

import shutil
import subprocess
from pathlib import Path

import pytest
from playwright.async_api import Locator

SOUND = ("-f", "lavfi", "-i", "sine=frequency=440")


def run_ffmpeg(*arguments: str) -> None:
    """Run ffmpeg. Skip with the reason where it is missing."""
    if shutil.which("ffmpeg") is None:
        pytest.skip("no ffmpeg is on PATH: install Debian's ffmpeg")
    subprocess.run(["ffmpeg", "-loglevel", "error", "-y", *arguments], check=True)


def make_film(path: Path) -> Path:
    """Make a film of two seconds: a picture that is not black, with a tone."""
    codecs = ("-t", "2", "-c:v", "libx264", "-pix_fmt", "yuv420p", "-c:a", "aac", "-movflags", "+faststart")
    run_ffmpeg("-f", "lavfi", "-i", "testsrc=size=320x180:rate=25", *SOUND, *codecs, str(path))
    return path


def make_speech(path: Path) -> Path:
    """Make a sound of a minute: 5 MB, which are uploaded in pieces."""
    run_ffmpeg(*SOUND, "-t", "60", str(path))
    return path


async def check_playing(video: Locator) -> None:
    """Check that the film plays: its time moves, and its picture is not black."""
    seconds, brightest = await video.evaluate("""async (video) => {
      video.muted = true;
      await video.play();
      while (video.currentTime < 0.3) await new Promise((resolve) => setTimeout(resolve, 20));
      const canvas = new OffscreenCanvas(32, 18), context = canvas.getContext("2d");
      context.drawImage(video, 0, 0, 32, 18);
      const pixels = context.getImageData(0, 0, 32, 18).data;
      return [video.currentTime, Math.max(...pixels.filter((_, at) => at % 4 < 3))];
    }""")
    assert seconds >= 0.3
    assert brightest > 50, "the picture is black"
