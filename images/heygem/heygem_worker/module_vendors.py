"""Run the vendor's module in our own process, in either generation. Sources: its open wrappers and its logs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from heygem_worker import frame_counter
from heygem_worker.vendor import VendorStatus, VendorTask, parse_status
from heygem_worker.vendor_processes import ChildProcesses

MODULE = "service.trans_dh_service"


class Gen1Vendor:
    """Gen-1: one object owns the models and the queue. A job's record must exist before the job starts."""

    name = "gen1"
    ready_lines: tuple[str, ...] = ("init_wh_process进程启动", "数字人图片处理进程启动")

    def __init__(self, module: Any) -> None:
        self._module = module
        self._children = ChildProcesses()
        self.mark_ready, self.find_dead = self._children.mark_ready, self._children.find_dead

    @staticmethod
    def fits(module: Any) -> bool:
        return hasattr(module, "TransDhTask") and hasattr(module, "Status")

    def start(self) -> None:
        frame_counter.count_frames_of(self._module)
        made: Callable[[], Any] = getattr(self._module.TransDhTask, "instance", self._module.TransDhTask)
        self._task = made()

    def run(self, task: VendorTask) -> None:
        self._task.task_dic[task.code] = (self._module.Status.run, 0, "", "")
        switches = (task.watermark, task.digital_auth, task.chaofen, task.pn)
        self._task.work(str(task.audio), str(task.video), task.code, *switches)

    def status(self, code: str) -> VendorStatus:
        return parse_status(self._task.task_dic.get(code))


class Gen2Vendor:
    """Gen-2: functions load the models. Each job is an object; its record is in the module's dictionary `task_dic`."""

    name = "gen2"
    ready_lines: tuple[str, ...] = (
        "init_wh_process module load success",
        "get_aud_feat1 module load success",
        "av_transfer load success",
    )

    def __init__(self, module: Any) -> None:
        self._module = module
        self._children = ChildProcesses()
        self.mark_ready, self.find_dead = self._children.mark_ready, self._children.find_dead

    @staticmethod
    def fits(module: Any) -> bool:
        return hasattr(module, "init_p") and hasattr(module, "a") and hasattr(module, "task_dic")

    def start(self) -> None:
        self._module.a()
        self._module.init_p()

    def run(self, task: VendorTask) -> None:
        files = (task.code, str(task.audio), str(task.video))
        self._module.TransDhTask(*files, task.watermark, task.digital_auth, task.chaofen, task.pn).work()

    def status(self, code: str) -> VendorStatus:
        return parse_status(self._module.task_dic.get(code))
