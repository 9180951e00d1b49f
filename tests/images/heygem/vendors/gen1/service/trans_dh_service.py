"""Plays Gen-1: one object with its children, a job's record in its dictionary, and each failure that users reported.

HEYGEM_FAKE names what goes wrong; HEYGEM_FAKE_RESULT is the video that it "makes"; HEYGEM_FAKE_GATE, a fifo, holds the
writer after half of its frames until somebody opens it.
"""

import configparser
import multiprocessing
import os
import queue
import shutil
import sys
import threading
from enum import Enum
from pathlib import Path

FRAMES, BATCH = 50, 5
FAKE = os.environ.get("HEYGEM_FAKE", "ok")


class Status(Enum):
    run = 1
    success = 2
    error = 3


def say(text):
    os.write(1, (text + "\n").encode())


def for_ever():
    threading.Event().wait()


def setting(section, key):
    config = configparser.ConfigParser()
    config.read("config/config.ini", encoding="utf-8")
    return config.get(section, key)


def init_wh_process(asked, answered):
    say(">>> init_wh_process进程启动")
    while True:
        asked.get()
        answered.put(2 if FAKE == "faces" else 1)


def audio_transfer(batches, images):
    if FAKE == "dies_loading":
        os._exit(3)
    if FAKE != "never_ready":
        say(">>> 数字人图片处理进程启动")
    while True:
        batch = batches.get()
        if FAKE == "dies":
            os._exit(9)
        if FAKE == "oom":
            say("RuntimeError: CUDA error: out of memory")
            for_ever()
        if FAKE in ("stuck", "queue_full"):
            for_ever()
        images.put((True, "", None) if batch is None else (0, "", [b"frame"] * batch))


def write_video(
    images, temp_dir, result_dir, work_id, audio_path, result, width, height, fps, watermark_switch=0, digital_auth=0
):
    written = 0
    while True:
        state, _, frames = images.get()
        if isinstance(state, bool):
            break
        written += len(frames)
        if written == FRAMES // 2 and "HEYGEM_FAKE_GATE" in os.environ:
            Path(os.environ["HEYGEM_FAKE_GATE"]).read_bytes()
    say(f"[{work_id}]视频帧队列处理已结束")
    if FAKE == "writer_exits":
        sys.exit(0)
    path = str(Path(result_dir, work_id + "-r.mp4"))
    if FAKE != "no_file":
        shutil.copyfile(os.environ["HEYGEM_FAKE_RESULT"], path)
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
        self.tell(code, Status.run, 10, "", "文件下载完成")
        if FAKE in SAID:
            raise RuntimeError(SAID[FAKE])
        self.tell(code, Status.run, 20, "", "音频特征提取完成")
        if FAKE == "silent_error":
            raise queue.Empty
        self.asked.put(video)
        if self.answered.get() > 1:
            raise RuntimeError("存在多人脸")
        result = multiprocessing.Queue(1)
        folders = (setting("temp", "temp_dir"), setting("result", "result_dir"))
        writer = multiprocessing.Process(
            target=write_video, args=(self.images, *folders, code, audio, result, 64, 64, 25)
        )
        writer.start()
        say(f"任务视频驱动队列启动 batch_size:{BATCH}, len:{FRAMES}")
        for _ in range(FRAMES // BATCH):
            self.batches.put(BATCH)
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
