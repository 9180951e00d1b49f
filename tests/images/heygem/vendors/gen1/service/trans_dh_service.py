"""Plays Gen-1: one object with its children, a job's record in its dictionary, and each failure that users reported.

HEYGEM_FAKE names what goes wrong; HEYGEM_FAKE_RESULT is the video that it "makes" (without it, it makes one:
y_utils/movie.py); HEYGEM_FAKE_GATE, a fifo, holds the writer after half of its frames until somebody opens it.
"""

import multiprocessing
import os
import queue
import shutil
import sys
import threading
from enum import Enum
from pathlib import Path

from landmark2face_wy import digitalhuman_interface
from y_utils import movie
from y_utils.config import GlobalConfig
from y_utils.logger import logger

FRAMES, BATCH = 50, 5
FAKE = os.environ.get("HEYGEM_FAKE", "ok")
FACES_S = 10  # how long the parent waits for the detection of faces
BLURRED = 0.969


class Status(Enum):
    run = 1
    success = 2
    error = 3


def say(text):
    logger.info(text)


def for_ever():
    threading.Event().wait()


def init_wh_process(asked, answered):
    say(">>> init_wh_process进程启动")
    while True:
        asked.get()
        if FAKE == "late_faces":
            threading.Event().wait(FACES_S + 0.5)
        answered.put(2 if FAKE == "faces" else 1)


def audio_transfer(batches, images):
    if FAKE == "forbidden":
        raise PermissionError(13, "Permission denied", "./somewhere/new.txt")
    digitalhuman_interface.load()
    if FAKE == "dies_loading":
        os._exit(3)
    if FAKE == "no_cuda":
        say("[W:onnxruntime] Failed to create CUDAExecutionProvider. Please reference the documentation")
        for_ever()
    if FAKE != "never_ready":
        say(">>> 数字人图片处理进程启动")
    config = GlobalConfig()
    while True:
        batch = batches.get()
        if FAKE == "dies":
            os._exit(9)
        if FAKE == "oom":
            say("RuntimeError: CUDA error: out of memory")
            for_ever()
        if FAKE in ("stuck", "queue_full"):
            for_ever()
        if batch is not None and config.chaofen_before and config.blur_threshold < BLURRED:
            say(f"模糊置信度:[{BLURRED}]")
            say("-> need chaofen .")
        images.put((True, "", None) if batch is None else (0, "", [b"frame"] * batch))


def write_video(
    images, temp_dir, result_dir, work_id, audio_path, result, width, height, fps, watermark_switch=0, digital_auth=0
):
    total, video, audio = width, height, audio_path  # what it is told of the picture means nothing here
    Path(temp_dir, work_id + "-t.mp4").touch()
    written = 0
    while True:
        state, _, frames = images.get()
        if isinstance(state, bool):
            break
        written += len(frames)
        if written == total // 2 and "HEYGEM_FAKE_GATE" in os.environ:
            Path(os.environ["HEYGEM_FAKE_GATE"]).read_bytes()
    say(f"[{work_id}]视频帧队列处理已结束")
    if FAKE == "writer_exits":
        sys.exit(0)
    path = str(Path(result_dir, work_id + "-r.mp4"))
    if FAKE != "no_file":
        movie.make(audio, video, written, path)
    result.put([True, path])


class TransDhTask:
    _one = None

    @classmethod
    def instance(cls):
        cls._one = cls._one or cls()
        return cls._one

    def __init__(self):
        assert sys.argv[1:] == [], "it parses them as its own"
        multiprocessing.set_start_method("spawn", force=True)
        self.task_dic = {}
        self.run_flag = False
        self.batches, self.images = multiprocessing.Queue(10), multiprocessing.Queue(10)
        self.asked, self.answered = multiprocessing.Queue(), multiprocessing.Queue()
        for target, queues in (
            (audio_transfer, (self.batches, self.images)),
            (init_wh_process, (self.asked, self.answered)),
        ):
            multiprocessing.Process(target=target, args=queues, daemon=True).start()

    def work(self, audio_url, video_url, code, watermark_switch, digital_auth, chaofen, pn):
        if self.run_flag:
            for_ever()  # the second job in one process
        self.run_flag = True
        say(f"switches {watermark_switch}{digital_auth}{chaofen}{pn}")
        try:
            self.steps(audio_url, video_url, code)
        except Exception as error:
            self.tell(code, Status.error, 0, "", str(error))

    def tell(self, code, *said):
        if code in self.task_dic:
            self.task_dic[code] = said

    def steps(self, audio, video, code):
        config = GlobalConfig()
        for source, end in ((video, "_format.mp4"), (audio, "_format.wav")):
            shutil.copyfile(source, Path(config.temp_dir, code + end))
        self.tell(code, Status.run, 10, "", "文件下载完成")
        if FAKE in SAID:
            raise RuntimeError(SAID[FAKE])
        self.tell(code, Status.run, 20, "", "音频特征提取完成")
        if FAKE == "silent_error":
            raise queue.Empty
        self.asked.put(video)
        if self.answered.get(timeout=FACES_S) > 1:
            raise RuntimeError("存在多人脸")
        result = multiprocessing.Queue(1)
        total = movie.length(audio, video, FRAMES)
        batch = BATCH if total == FRAMES else max(1, total // 50)
        told = (config.temp_dir, config.result_dir, code, audio, result, total, video, 25)
        writer = multiprocessing.Process(target=write_video, args=(self.images, *told))
        writer.start()
        say(f"[{code}]任务视频驱动队列启动 batch_size:{batch}, len:{total}")
        for start in range(0, total, batch):
            Path(config.temp_dir, f"{start}.png").touch()
            self.batches.put(min(batch, total - start))
        self.batches.put(None)
        if FAKE == "queue_full":
            say("任务视频驱动队列满，严重阻塞，下游队列异常")
        writer.join()
        self.tell(code, Status.run, 90, "", "视频处理完成")
        if result.empty() and FAKE == "writer_exits":
            raise RuntimeError(f"[{code}]生成视频失败")
        self.tell(code, Status.success, 100, result.get()[1], "任务完成")


SAID = {
    "bad_video": "[x]预处理失败，异常信息:[format video error]",
    "bad_audio": "[x]预处理失败，异常信息:[format audio error]",
    "odd": "[x]视频帧队列处理异常结束，异常原因:[数字人处理失败，失败原因:[?]]",
}
