"""The vendor's module in our own process, in both its generations (facts: research of its open wrappers and logs)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from heygem_worker import writer
from heygem_worker.family import Children
from heygem_worker.vendor import Look, Task, look_of

MODULE = "service.trans_dh_service"


class First:
    """One object owns the models and the queue; a record must be there before the job, or it is never written."""

    name = "gen1"
    ready: tuple[str, ...] = ("init_wh_process进程启动", "数字人图片处理进程启动")

    def __init__(self, module: Any) -> None:
        self._module = module
        self._children = Children()
        self.settle, self.dead = self._children.settle, self._children.dead

    @staticmethod
    def fits(module: Any) -> bool:
        return hasattr(module, "TransDhTask") and hasattr(module, "Status")

    def start(self) -> None:
        writer.count_frames_of(self._module)
        made: Callable[[], Any] = getattr(self._module.TransDhTask, "instance", self._module.TransDhTask)
        self._task = made()

    def run(self, task: Task) -> None:
        self._task.task_dic[task.code] = (self._module.Status.run, 0, "", "")
        switches = (task.watermark, task.digital_auth, task.chaofen, task.pn)
        self._task.work(str(task.audio), str(task.video), task.code, *switches)

    def look(self, code: str) -> Look:
        return look_of(self._task.task_dic.get(code))


class Second:
    """Functions load the models; a job is an object of its own, its record in a dictionary of the module."""

    name = "gen2"
    ready: tuple[str, ...] = (
        "init_wh_process module load success",
        "get_aud_feat1 module load success",
        "av_transfer load success",
    )

    def __init__(self, module: Any) -> None:
        self._module = module
        self._children = Children()
        self.settle, self.dead = self._children.settle, self._children.dead

    @staticmethod
    def fits(module: Any) -> bool:
        return hasattr(module, "init_p") and hasattr(module, "a") and hasattr(module, "task_dic")

    def start(self) -> None:
        self._module.a()
        self._module.init_p()

    def run(self, task: Task) -> None:
        files = (task.code, str(task.audio), str(task.video))
        self._module.TransDhTask(*files, task.watermark, task.digital_auth, task.chaofen, task.pn).work()

    def look(self, code: str) -> Look:
        return look_of(self._module.task_dic.get(code))
