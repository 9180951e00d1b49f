"""Reading what clients send: any timing, rotation and size, from any point, and clear words for what cannot be read."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

import jobkit
from lipsync import sound
from lipsync.clip import Clip, back_and_forth
from tests.images.preview.sample_videos import write_numbered_video, write_resized_video, write_video, write_wav


def levels(clip: Clip, first: int, stop: int) -> list[int]:
    """The numbers of the frames that `numbered` wrote."""
    return [round((float(picture.planes()[0].mean()) - 16) / 4) for picture in clip.pictures(first, stop)]


def test_every_point_of_a_clip_reads_as_from_the_start(tmp_path: Path) -> None:
    clip = Clip(write_numbered_video(tmp_path / "a.mp4", [i / 25 for i in range(40)]), 25, 1920)
    whole = levels(clip, 0, 1000)
    assert whole == list(range(40))
    for first in (1, 4, 5, 6, 23, 39):
        assert levels(clip, first, first + 3) == whole[first : first + 3]


def test_uneven_timing_is_shown_at_its_times(tmp_path: Path) -> None:
    clip = Clip(write_numbered_video(tmp_path / "a.mp4", [0, 0.1, 0.5, 0.56, 0.9]), 10, 1920)
    assert levels(clip, 0, 9) == [0, 1, 1, 1, 1, 2, 3, 3, 3]


@pytest.mark.parametrize(
    ("fps", "expected"), [(10, [0, 3, 6]), (30, list(range(9))), (60, [i // 2 for i in range(18)])]
)
def test_the_rate_is_the_jobs_not_the_files(tmp_path: Path, fps: int, expected: list[int]) -> None:
    assert (
        levels(Clip(write_numbered_video(tmp_path / "a.mp4", [i / 30 for i in range(9)]), fps, 1920), 0, 18) == expected
    )


@pytest.mark.parametrize(
    ("rate", "kept"),
    [
        (Fraction(30000, 1001), Fraction(30000, 1001)),
        (Fraction(24), Fraction(24)),
        (Fraction(60), Fraction(60)),
        (Fraction(120), Fraction(60)),
        (Fraction(240), Fraction(60)),
        (Fraction(5), Fraction(25)),
    ],
    ids=str,
)
def test_without_a_rate_the_files_own_is_kept_within_bounds(tmp_path: Path, rate: Fraction, kept: Fraction) -> None:
    assert Clip(write_video(tmp_path / "a.mp4", rate, 24), None, 1920).fps == kept


def test_the_rate_of_a_single_picture_is_25(tmp_path: Path) -> None:
    path = tmp_path / "face.png"
    with av.open(path, "w", format="image2") as file:
        stream = file.add_stream("png", rate=1)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "rgb24"
        frame = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")
        file.mux(stream.encode(frame))
    assert Clip(path, None, 1920).fps == 25


def test_odd_sizes_become_even_and_large_ones_smaller(tmp_path: Path) -> None:
    path = write_numbered_video(tmp_path / "a.mkv", [0, 0.1], size=(63, 49))
    shape = Clip(path, 25, 1920).shape
    assert (shape.width, shape.height) == (62, 48)
    luma, chroma = next(Clip(path, 25, 32).pictures(0, 1)).planes()
    assert luma.shape == (24, 32)
    assert chroma.shape == (2, 12, 16)


def test_a_turned_phone_video_is_put_upright(tmp_path: Path, samples: Path) -> None:
    plain, turned = samples / "face.mp4", tmp_path / "turned.mp4"
    with av.open(plain) as given, av.open(turned, "w") as file:
        stream = file.add_stream_from_template(given.streams.video[0])
        stream.set_display_rotation(90)
        for packet in given.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                file.mux(packet)
    upright, before = Clip(turned, 25, 1920), Clip(plain, 25, 1920)
    assert (upright.shape.width, upright.shape.height) == (before.shape.height, before.shape.width)
    now, then = (next(clip.pictures(0, 1)).planes()[0] for clip in (upright, before))
    assert np.array_equal(now, np.rot90(then, upright.shape.turns))


def test_a_short_clip_goes_there_and_back_from_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lipsync.clip._HELD_BYTES", 64 * 48 * 6 * 3)  # three pictures at a time
    clip = Clip(write_numbered_video(tmp_path / "a.mp4", [i / 25 for i in range(8)]), 25, 1920)
    order = [*range(8), *range(6, 0, -1), *range(8)]
    shown = [
        (place, round((float(picture.planes()[0].mean()) - 16) / 4)) for place, picture in back_and_forth(clip, 8, 22)
    ]
    assert shown == [(place, place) for place in order]


def test_a_still_picture_is_a_clip_of_one(tmp_path: Path) -> None:
    clip = Clip(write_numbered_video(tmp_path / "a.mp4", [0.0]), 25, 1920)
    assert [place for place, _ in back_and_forth(clip, 1, 5)] == [0] * 5


def read_video(path: Path) -> None:
    for _ in Clip(path, 25, 1920).pictures(0, 100_000):
        pass


def read_audio(path: Path) -> None:
    for _ in sound.samples(path, 60.0):
        pass


READERS = {"unreadable_video": read_video, "unreadable_audio": read_audio}


def refused(code: str, path: Path) -> None:
    with pytest.raises(jobkit.BadInput) as raised:
        READERS[code](path)
    assert raised.value.code == code
    assert path.name in raised.value.message


@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
@pytest.mark.parametrize("index_first", [True, False])
def test_a_cut_off_video_is_unreadable(tmp_path: Path, samples: Path, share: float, index_first: bool) -> None:
    whole = samples / "face.mp4"
    if index_first:
        whole = write_resized_video(whole, tmp_path / "whole.mp4", 320, 180)
        share = min(share, 0.6)
    data = whole.read_bytes()
    path = tmp_path / "cut.mp4"
    path.write_bytes(data[: int(len(data) * share)])
    refused("unreadable_video", path)


@pytest.mark.parametrize(
    "data", [b"", b"not a video at all", b"\x00" * 4096, b"ffconcat version 1.0\nfile /etc/hostname\n"]
)
@pytest.mark.parametrize("code", ["unreadable_video", "unreadable_audio"])
def test_what_is_no_media_is_unreadable(tmp_path: Path, code: str, data: bytes) -> None:
    path = tmp_path / "thing.bin"
    path.write_bytes(data)
    refused(code, path)


def test_a_playlist_reads_no_other_file(tmp_path: Path, samples: Path) -> None:
    path = tmp_path / "list.m3u8"
    path.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:2.4,\n{samples / 'face.mp4'}\n#EXT-X-ENDLIST\n")
    refused("unreadable_video", path)


def test_sound_without_picture_and_picture_without_sound(tmp_path: Path) -> None:
    refused("unreadable_video", write_wav(tmp_path / "a.wav", 1.0))
    refused("unreadable_audio", write_numbered_video(tmp_path / "a.mp4", [0, 0.1]))


def test_too_long_a_recording_is_refused(tmp_path: Path) -> None:
    with pytest.raises(jobkit.BadInput) as raised:
        list(sound.samples(write_wav(tmp_path / "long.wav", 3.0), 2.0))
    assert raised.value.code == "input_too_large"
