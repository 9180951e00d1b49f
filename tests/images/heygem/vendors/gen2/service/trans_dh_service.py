"""Plays Gen-2: functions that load, a dictionary of the module, a task for each job. See gen1 for the environment."""

import logging
import multiprocessing
import os
import shutil
import threading
from enum import Enum
from pathlib import Path

from landmark2face_wy import digitalhuman_interface
from y_utils import movie
from y_utils.config import GlobalConfig

FRAMES = 50
FAKE = os.environ.get("HEYGEM_FAKE", "ok")
HARD_WIRED = "data/temp"  # where it works, whatever config.ini says

task_dic = {}
_state = {"free": True, "jobs": 1 if FAKE == "second" else 0}  # second: this process has had a job already
_asked, _answered = multiprocessing.Queue(), multiprocessing.Queue()


class Status(Enum):
    run = 1
    success = 2
    error = 3


def say(text):
    """To its log file only."""
    config = GlobalConfig()
    handler = logging.FileHandler(Path(config.log_dir, config.log_file), encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s-[service.self_logger]-process.py[line:108]-INFO: %(message)s"))
    handler.emit(logging.LogRecord("dh", logging.INFO, __file__, 1, text, None, None))
    handler.close()


def for_ever():
    threading.Event().wait()


def av_transfer(asked, answered):
    digitalhuman_interface.load()
    say("system ->av_transfer load success ..., cost:4.453s")
    while True:
        job = asked.get()
        if FAKE == "dies":
            os.abort()
        if FAKE == "blocked":
            say("av_transfer maybe blocked, restart...")
            for_ever()
        answered.put(job)


def a():
    context = multiprocessing.get_context("spawn")
    global _asked, _answered
    _asked, _answered = context.Queue(), context.Queue()
    context.Process(target=av_transfer, args=(_asked, _answered), daemon=True).start()


def init_p():
    if FAKE == "kernel":
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device")
    if FAKE == "ep":
        say("EP Error when using ['CUDAExecutionProvider']")
    if FAKE == "loads_for_ever":
        for_ever()
    for line in ("init_wh_process module load success, cost:0.541s", "get_aud_feat1 module load success, cost:0.811s"):
        say(line)


def get_run_flag():
    return _state["free"]


class TransDhTask:
    def __init__(self, code, audio_url, video_url, watermark_switch, digital_auth, chaofen, pn):
        self.code, self.audio, self.video = code, audio_url, video_url
        self.switches = (watermark_switch, digital_auth, chaofen, pn)

    def work(self):
        _state["jobs"] += 1
        if _state["jobs"] > 1:
            say("result info [] ,continue")
            for_ever()
        say("switches " + "".join(map(str, self.switches)))
        task_dic[self.code] = (Status.run, 5, "", "文件下载完成")
        folder = Path(HARD_WIRED, self.code)
        for part in ("avi", "png"):
            (folder / part).mkdir(parents=True)
        Path("data/result/param.json").write_text("{}")
        _asked.put(self.code)
        _answered.get()
        try:
            self.render(folder)
        except Exception as error:
            shutil.rmtree(folder)
            task_dic[self.code] = (Status.error, 0, "", str(error))

    def render(self, folder):
        if FAKE in SAID:
            raise RuntimeError(SAID[FAKE])
        total = movie.length(self.audio, self.video, FRAMES)
        for number in range(total):  # the whole template, before the first frame is made
            (folder / "png" / f"{number}.png").touch()
        for number in range(total):
            (folder / "avi" / f"{number}.avi").touch()
            if number == total // 2 - 1 and "HEYGEM_FAKE_GATE" in os.environ:
                Path(os.environ["HEYGEM_FAKE_GATE"]).read_bytes()
        result = Path(HARD_WIRED, self.code + "-r.mp4")
        if FAKE != "no_file":
            movie.make(self.audio, self.video, total, str(result))
        task_dic[self.code] = (Status.success, 100, "/" + self.code + "-r.mp4", "任务完成", 1.5, 2000, 64, 64)


SAID = {
    "no_audio": "三次获取音频时长失败",
    "no_final": "no final result",
    "no_folder": "file create failed:/code/data/temp/x/result.avi",
}
