"""Texts for users, in English and Chinese.

The Chinese texts of wait reasons and statuses must not change: clients of the gateway compare them.
"""

from collections.abc import Mapping
from math import ceil
from types import MappingProxyType
from typing import NamedTuple

from msgspec import structs

from edge.core.record_texts_zh import HOST_TEXTS_ZH, JOB_TEXTS_ZH
from edge.core.refusal_texts_zh import REFUSALS_ZH
from schemas.host import DISK_FULL_FAILURE, ImageStatus, KeepReason, VolumeStatus
from schemas.installation import Pause
from schemas.job import JobFailure, Status, WaitReason
from schemas.problems import FieldError, Problem, ProblemError
from schemas.texts import Catalogue, Language

SHOWN_HOSTS_LIMIT = 3  # in one message
DEFAULT_WAKE_S = 120.0  # the forecast until a wake was measured


class LocalizedText(NamedTuple):
    """One message in every language.

    Placeholders: `{minutes}` is the median wake time of the host, `{host}` its id, `{code}` the code of a failure,
    `{pulled}` how much of an image has arrived, `{since}` and `{by}` when and by whom an endpoint was paused,
    `{unmet}` what each host lacks, `{until}` when a reason ends, `{uses}` how others use a host, `{prohibition}` the
    rule by which a host must go off.
    """

    en: str
    zh: str

    def render(self, language: Language, **values: object) -> str:
        """Return the message in `language` with its placeholders filled."""
        return (self.zh if language is Language.ZH else self.en).format(**values)


STATUS_TEXTS: Mapping[Status, LocalizedText] = {
    Status.SCHEDULED: LocalizedText("The job is accepted and waits for its time", "任务已接受，等待执行时间"),
    Status.QUEUED: LocalizedText("The job is queued", "任务已排队"),
    Status.RUNNING: LocalizedText("The job is running", "任务处理中，请稍候..."),
    Status.CANCELLING: LocalizedText("The job is being cancelled", "任务正在取消"),
    Status.SUCCEEDED: LocalizedText("The job is done", "任务已完成"),
    Status.FAILED: LocalizedText("The job failed", "任务失败"),
    Status.CANCELLED: LocalizedText("The job was cancelled", "任务已取消"),
    Status.EXPIRED: LocalizedText("The job expired before it could start", "任务在开始前已过期"),
}

WAIT_REASON_TEXTS: Mapping[WaitReason, LocalizedText] = {
    WaitReason.AWAITING_INPUT: LocalizedText("Waiting for its input to be uploaded", "等待上传输入文件"),
    WaitReason.FETCHING_INPUT: LocalizedText("Its input is being fetched", "正在下载输入文件"),
    WaitReason.NOT_BEFORE: LocalizedText("Waiting for the time it was scheduled for", "等待预定时间"),
    WaitReason.BACKOFF: LocalizedText("An attempt failed; the next one follows shortly", "上次尝试失败，稍后自动重试"),
    WaitReason.ENDPOINT_PAUSED: LocalizedText(
        "{by} paused this kind of job at {since}; the job starts after the pause",
        "{by} 于 {since} 暂停了此类任务，恢复后自动执行",
    ),
    WaitReason.NO_HOST: LocalizedText("No host that can run it has joined yet", "还没有可运行该任务的服务器接入"),
    WaitReason.GPU_NONE: LocalizedText("No host has the GPU that it needs", "没有服务器具备该任务所需的 GPU"),
    WaitReason.REQUIREMENT_UNMET: LocalizedText(
        "No host meets its requirements. {unmet}", "没有服务器满足该任务的要求。{unmet}"
    ),
    WaitReason.HOST_FAULT: LocalizedText(
        "The GPU host does not start; its operator must check it", "GPU 服务器启动失败，需要管理员检查"
    ),
    WaitReason.HOST_BLOCKED: LocalizedText(
        "The GPU host may not be switched on now", "GPU 服务器暂时无法开机，任务继续排队"
    ),
    WaitReason.HOST_BOOTING: LocalizedText(
        "GPU is booting, about {minutes} minutes", "GPU 服务器正在启动，请等待约 {minutes} 分钟"
    ),
    WaitReason.HOST_WAKING: LocalizedText(
        "GPU is starting, about {minutes} minutes", "任务已排队，请等待约{minutes}分钟"
    ),
    WaitReason.HOST_OFF: LocalizedText("GPU is off; the job waits about {minutes} minutes", "GPU 已关机，正在等待开机"),
    WaitReason.HOST_OFF_UNSWITCHED: LocalizedText(
        "{host} is off, and the edge cannot power it on: start its runner",
        "{host} 已关机，且无法远程开机：请在该机器上启动 runner",
    ),
    WaitReason.HOST_IN_MAINTENANCE: LocalizedText(
        "The GPU host is in maintenance; the job waits until that ends", "GPU 服务器正在维护，任务等待维护结束"
    ),
    WaitReason.HOST_ENDING: LocalizedText(
        "The GPU host ends before this job would; the job waits for the next one",
        "GPU 服务器即将到期，剩余时间不够运行该任务；任务等待下一台",
    ),
    WaitReason.PAUSED: LocalizedText("The GPU host takes no new jobs at the moment", "GPU 服务器暂停接收新任务"),
    WaitReason.ENGINE_AWAY: LocalizedText(
        "Docker does not answer on the GPU host; the job waits until it does",
        "GPU 服务器上的 Docker 没有响应，任务等待中",
    ),
    WaitReason.IMAGE_MISSING: LocalizedText(
        "The GPU host does not have the program's image", "GPU 服务器上没有该程序的镜像，任务等待中"
    ),
    WaitReason.IMAGE_PULLING: LocalizedText(
        "The GPU host downloads the program's image: {pulled}", "GPU 服务器正在下载程序镜像：{pulled}"
    ),
    WaitReason.VOLUME_MISSING: LocalizedText(
        "The GPU host could not download the program's files yet", "GPU 服务器尚未能下载程序所需的文件，任务等待中"
    ),
    WaitReason.VOLUME_FILLING: LocalizedText(
        "The GPU host downloads the program's files: {pulled}", "GPU 服务器正在下载程序所需的文件：{pulled}"
    ),
    WaitReason.GPU_UNHEALTHY: LocalizedText("The GPU is not healthy; the job waits", "GPU 状态异常，任务等待中"),
    WaitReason.GPU_BUSY_OWNER: LocalizedText("The GPU is in use by its owner", "GPU 正被机主使用，任务等待中"),
    WaitReason.VRAM_SHORT: LocalizedText("Waiting for free GPU memory", "等待可用显存"),
    WaitReason.GPU_SHARE_SHORT: LocalizedText(
        "Waiting for a larger share of a GPU than is free", "等待显卡腾出所需的份额"
    ),
    WaitReason.DISK_SHORT: LocalizedText("The GPU host is short of disk space", "GPU 服务器磁盘空间不足，任务等待中"),
    WaitReason.QUOTA: LocalizedText("Waiting for your own earlier jobs", "您之前的任务尚未完成，任务排队中"),
    WaitReason.BEHIND: LocalizedText("Waiting for the jobs ahead of it", "前面还有任务，正在排队"),
}

VOLUME_DISK_FULL_TEXT = LocalizedText(  # VOLUME_MISSING, where that is why
    "The GPU host's disk is full: the program's files wait until its operator frees some space",
    "GPU 服务器磁盘已满，程序所需的文件无法下载：请管理员清理磁盘空间",
)
NEXT_IN_LINE_TEXT = LocalizedText("Next in line", "马上开始")  # BEHIND, with no job ahead
# HOST_BLOCKED, when a power driver said why there is no machine, such as Slurm or Kubernetes in their own words.
NO_CAPACITY_TEXT = LocalizedText(
    "No GPU host is free yet: {blocked}", "暂时没有空闲的 GPU 服务器，任务继续排队：{blocked}"
)
BLOCKED_REASON_LIMIT_CHARS = 200

FAILURE_TEXTS: Mapping[str, LocalizedText] = {
    "bad_job": LocalizedText("The job cannot be carried out as asked", "任务参数无效"),
    "bad_input": LocalizedText("The input cannot be used", "输入内容无法使用"),
    "unreadable_video": LocalizedText("The video cannot be read", "视频无法读取"),
    "unreadable_audio": LocalizedText("The audio cannot be read", "音频无法读取"),
    "no_face": LocalizedText("No face was found in the video", "视频中未检测到人脸"),
    "multiple_faces": LocalizedText("More than one face was found in the video", "视频中检测到多张人脸"),
    "input_too_large": LocalizedText("The input is too large", "输入文件过大"),
    "input_fetch_failed": LocalizedText("The input could not be fetched from its URL", "输入文件下载失败"),
    "asset_gone": LocalizedText("A file of the input does not exist", "输入文件不存在"),
    "secret_missing": LocalizedText("A secret that the program needs is not set", "缺少程序所需的机密信息"),
    "disk_exceeded": LocalizedText("The job used more disk than it may", "任务使用的磁盘超出限制"),
    "internal": LocalizedText("The program failed", "程序内部错误"),
    "output_missing": LocalizedText("The program made no result", "程序没有生成结果"),
    "output_invalid": LocalizedText("The program's result is not valid", "程序生成的结果无效"),
    "model_load_failed": LocalizedText("The model could not be loaded", "模型加载失败"),
    "module_missing": LocalizedText("A module of the program is not installed", "程序缺少所需的模块"),
    "stalled": LocalizedText("The program stopped making progress", "程序长时间没有进展"),
    "output_too_large": LocalizedText("The result is too large to record", "结果过大，无法保存"),
    "out_of_memory": LocalizedText("The program ran out of memory", "内存不足"),
    "execution_timeout": LocalizedText("The job took longer than allowed", "任务执行超时"),
    "gpu_lost": LocalizedText("The GPU was lost while the job ran", "任务执行中 GPU 掉线"),
    "gpu_unhealthy": LocalizedText("The GPU is not usable", "GPU 不可用"),
    "gpu_unsupported": LocalizedText("The GPU cannot run this program", "GPU 不支持该程序"),
    "cuda_oom": LocalizedText("The GPU ran out of memory", "显存不足"),
    "gpu_fault_repeated": LocalizedText("GPU faults ended the job again and again", "GPU 反复故障，任务失败"),
    "host_lost": LocalizedText("The GPU host was lost while the job ran", "任务执行中 GPU 服务器失联"),
    "engine_error": LocalizedText("The GPU host could not start the program", "GPU 服务器无法启动程序"),
    "image_missing": LocalizedText("The GPU host does not have the program", "GPU 服务器缺少程序镜像"),
    "disk_full": LocalizedText("The GPU host's disk is full", "GPU 服务器磁盘已满"),
    "host_fault_repeated": LocalizedText(
        "Faults of GPU hosts ended the job again and again", "GPU 服务器反复故障，任务失败"
    ),
    "drained": LocalizedText("The GPU host was being shut down", "GPU 服务器正在关闭"),
}

OTHER_FAILURE_TEXT = LocalizedText("The program failed: {code}", "程序错误：{code}")

# The gateway sends this for a job whose hosts are all off.
HOST_OFF_TEXT = LocalizedText("GPU is off; the job waits about {minutes} minutes", "任务已排队，请等待约{minutes}分钟")

NOTICE_TEXTS: Mapping[str, LocalizedText] = {
    "host_waking": LocalizedText("GPU is starting, about {minutes} minutes", "任务已排队，请等待约{minutes}分钟"),
    "host_online": LocalizedText("The GPU host is online and takes jobs", "GPU服务器已上线，可以开始处理任务"),
    "host_offline": LocalizedText("The GPU host is offline", "GPU 服务器已离线"),
    "host_blocked": LocalizedText("The GPU host may not be switched on now", "GPU 服务器暂时无法开机"),
    "host_fault": LocalizedText(
        "The GPU host does not start; its operator must check it", "GPU 服务器启动失败，需要管理员检查"
    ),
    "gpu_unhealthy": LocalizedText("A GPU is not healthy", "GPU 状态异常"),
    "gpu_recovered": LocalizedText("The GPU is healthy again", "GPU 已恢复正常"),
    "paused": LocalizedText("The GPU host takes no new jobs", "GPU 服务器暂停接收新任务"),
    "resumed": LocalizedText("The GPU host takes jobs again", "GPU 服务器恢复接收任务"),
}

# The reasons for which a host is on: `kept_on` of a Host.
KEEP_REASON_TEXTS: Mapping[KeepReason, LocalizedText] = {
    KeepReason.MAINTENANCE: LocalizedText("It is in maintenance: no rule switches it off", "正在维护：不会自动关机"),
    KeepReason.OPERATOR: LocalizedText("The operator wants it on", "管理员要求开机"),
    KeepReason.UNREADABLE: LocalizedText(
        "This edge cannot read its heartbeats, so it may be working: upgrade the edge to the release of that runner",
        "该 edge 无法读取其心跳，它可能正在工作：请将 edge 升级到与该 runner 相同的版本",
    ),
    KeepReason.JOBS_RUN: LocalizedText(
        "Jobs run there, or their results are not saved yet", "有任务正在其上运行，或结果尚未保存"
    ),
    KeepReason.JOBS_WAIT: LocalizedText("Jobs wait in its pools", "其池中有任务在等待"),
    KeepReason.LOW_JOBS_WAIT: LocalizedText("Jobs of priority low wait in its pools", "其池中有低优先级任务在等待"),
    KeepReason.IN_USE: LocalizedText("Others use the machine: {uses}", "机器正被他人使用：{uses}"),
    KeepReason.POOL_MIN: LocalizedText("The `min` of a pool keeps it on", "池的 min 要求其保持开机"),
    KeepReason.COOL_DOWN: LocalizedText(
        "The other hosts of its pools suffice; it may go off at {until} (cool_down_s)",
        "其池的其他服务器已足够；可在 {until} 后关机（cool_down_s）",
    ),
    KeepReason.MIN_ON: LocalizedText("It stays on until {until} at least (min_on)", "至少保持开机到 {until}（min_on）"),
    KeepReason.POWER_CYCLE: LocalizedText(
        "It was last powered off less than an hour ago; no rule of a pool stops it before {until}",
        "过去一小时内关过机；{until} 之前不会按池的规则关机",
    ),
    KeepReason.IDLE_TIMER: LocalizedText(
        "It is idle, and goes off at {until} if no job comes (idle_after)",
        "空闲；若没有新任务，将于 {until} 关机（idle_after）",
    ),
    KeepReason.EDGE_NEW: LocalizedText(
        "This edge was started or connected less than 30 s ago, and does not judge yet",
        "该 edge 启动或连接不足 30 秒，尚未做出判断",
    ),
    KeepReason.PROHIBITED: LocalizedText(
        "It goes off as soon as it is drained: {prohibition}", "排空后立即关机：{prohibition}"
    ),
    KeepReason.DRAINS: LocalizedText(
        "It goes off as soon as it is drained, unless it is needed again", "排空后关机，除非再次需要"
    ),
}

# The titles of problems. schemas/problems.py has the English ones.
PROBLEM_TITLES_ZH: Mapping[str, str] = {
    "body_malformed": "请求格式错误",
    "field_unknown": "包含未知字段",
    "unauthorized": "密钥无效，请检查密钥",
    "forbidden": "密钥没有此权限",
    "not_found": "请求的内容不存在",
    "endpoint_unknown": "没有服务器提供该任务类型",
    "head_timeout": "请求头接收超时",
    "conflict": "编号已被其他请求使用",
    "job_final": "任务已结束",
    "job_not_final": "任务尚未结束",
    "deadline_passed": "任务的截止时间已过",
    "asset_in_use": "文件正被未结束的任务使用，无法删除",
    "owner_deleting": "该用户的数据正在删除",
    "offset_mismatch": "上传位置不一致，请先查询再继续",
    "tus_version": "不支持该 tus 版本",
    "body_too_large": "请求过大，文件请先上传",
    "media_type_unknown": "不支持该内容类型",
    "input_invalid": "参数无效",
    "asset_missing": "文件尚未上传",
    "secret_missing": "缺少该任务类型所需的机密信息",
    "digest_mismatch": "文件内容与哈希值不符",
    "idempotency_mismatch": "该请求编号已用于其他内容的任务",
    "url_refused": "不允许访问该网址",
    "upload_locked": "另一请求正在上传该文件",
    "rate_limited": "请求过于频繁，请稍后再试",
    "quota_exceeded": "配额已用完",
    "too_many_connections": "打开的连接过多",
    "head_too_large": "请求头过大",
    "checksum_mismatch": "该片段与校验值不符",
    "internal": "服务器内部错误",
    "unavailable": "服务暂时不可用，请稍后再试",
    "join_token_expired": "接入令牌已过期",
    "join_token_revoked": "接入令牌已被吊销",
    "join_token_used_up": "接入令牌的使用次数已用完",
    "not_set_up": "服务器的设置不支持此操作",
    "store_full": "服务器存储空间已满",
}

# Every English sentence that a client may get and that no table above has by its key.
CATALOGUE = Catalogue(REFUSALS_ZH, JOB_TEXTS_ZH, HOST_TEXTS_ZH)

DELETED_TEXT = LocalizedText("Deleted", "删除成功")
DELETE_FAILED_TEXT = LocalizedText("Not deleted: there is no such file", "删除失败：文件不存在")


class WaitInfo(NamedTuple):
    """The values that the text of a waiting job shows.

    `wake_s`: the measured median wake time of the host. `host`: the host to start. `ahead`: the number of jobs ahead.
    `pull`: the image or the volume that is downloaded, or could not be. `pause`: that of the job's endpoint.
    `unmet`: what each host lacks for it. `blocked`: why there is no machine for the host, in the words of its power
    driver.
    """

    reason: WaitReason
    wake_s: float | None = None
    host: str = ""
    ahead: int | None = None
    pull: ImageStatus | VolumeStatus | None = None
    pause: Pause | None = None
    unmet: Mapping[str, str] = MappingProxyType({})
    blocked: str = ""


def format_wait(wait: WaitInfo, language: Language) -> str:
    """Return the text that says why a job waits."""
    since, by = (f"{wait.pause.since:%Y-%m-%d %H:%M} UTC", wait.pause.by) if wait.pause else ("", "")
    minutes, pulled = round_up_minutes(wait.wake_s), format_pull(wait.pull)
    unmet = format_unmet(wait.unmet, language)
    blocked = _format_blocked(wait.blocked, language) if wait.blocked else ""
    return _find_wait_text(wait).render(
        language, minutes=minutes, host=wait.host, pulled=pulled, since=since, by=by, unmet=unmet, blocked=blocked
    )


def _format_blocked(reason: str, language: Language) -> str:
    """Return the reason of a power driver. Shortened last: the catalogue recognises a sentence by its end too."""
    return one_line(CATALOGUE.localize(one_line(reason, len(reason)), language), BLOCKED_REASON_LIMIT_CHARS)


def _find_wait_text(wait: WaitInfo) -> LocalizedText:
    if wait.reason is WaitReason.BEHIND and wait.ahead == 0:
        return NEXT_IN_LINE_TEXT
    if wait.reason is WaitReason.VOLUME_MISSING and _is_disk_full(wait.pull):
        return VOLUME_DISK_FULL_TEXT
    if wait.reason is WaitReason.HOST_BLOCKED and wait.blocked:
        return NO_CAPACITY_TEXT
    return WAIT_REASON_TEXTS[wait.reason]


def _is_disk_full(pull: ImageStatus | VolumeStatus | None) -> bool:
    return isinstance(pull, VolumeStatus) and pull.failure == DISK_FULL_FAILURE


def one_line(text: str, limit_chars: int) -> str:
    """Return a text of a job or of another program as one line of at most so many characters, without control ones."""
    shown = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return shown if len(shown) <= limit_chars else f"{shown[: limit_chars - 1]}…"


def format_unmet(unmet: Mapping[str, str], language: Language) -> str:
    """Return what the first hosts lack, as `gpu-1 lacks label disk = nvme (it has hdd)`."""
    lacks = [f"{host} lacks {what}" for host, what in list(unmet.items())[:SHOWN_HOSTS_LIMIT]]
    return "; ".join(CATALOGUE.localize(text, language) for text in lacks)


def format_pull(pull: ImageStatus | VolumeStatus | None) -> str:
    """Return how much of a download has arrived, as `45 %, 1.2 / 2.7 GB`. The size grows as layers become known."""
    if pull is None or pull.done_bytes is None or not pull.total_bytes:
        return f"{pull.percent if pull and pull.percent else 0} %"
    done, total = pull.done_bytes / 1000**3, pull.total_bytes / 1000**3
    return f"{pull.percent or 0} %, {done:.1f} / {total:.1f} GB"


def format_host_off(language: Language, wake_s: float | None = None) -> str:
    """Return the gateway's text for a job whose hosts are all off."""
    return HOST_OFF_TEXT.render(language, minutes=round_up_minutes(wake_s))


def format_status(status: Status, language: Language) -> str:
    """Return the text for a job in `status`."""
    return STATUS_TEXTS[status].render(language)


def format_failure(error: JobFailure, language: Language) -> str:
    """Return the text that says why a job failed. A code that an image defines has no text and is shown as it is."""
    return FAILURE_TEXTS.get(error.code, OTHER_FAILURE_TEXT).render(language, code=error.code)


def localize_error(error: JobFailure | None, language: Language) -> JobFailure | None:
    """Return the error of a job with its message in `language`. A message that an image defines stays as it is."""
    if error is None or language is Language.EN:
        return error
    return structs.replace(error, message=CATALOGUE.translate(error.message))


def localize_problem(problem: Problem, language: Language) -> Problem:
    """Return a problem document with its title, detail and field errors in `language`."""
    if language is Language.EN:
        return problem
    errors = tuple(FieldError(error.path, CATALOGUE.translate(error.message)) for error in problem.errors)
    detail = CATALOGUE.translate(problem.detail)
    if errors and problem.detail == f"{errors[0].path}: {problem.errors[0].message}":
        detail = f"{errors[0].path}：{errors[0].message}"
    return structs.replace(problem, title=PROBLEM_TITLES_ZH[problem.code], detail=detail, errors=errors)


def format_problem(problem: ProblemError, language: Language) -> str:
    """Return the text of a problem: in English its detail, in Chinese its title and its detail."""
    shown = localize_problem(problem.problem, language)
    return shown.detail if language is Language.EN else f"{shown.title}：{shown.detail}"


def format_notice(kind: str, language: Language, wake_s: float | None = None) -> str:
    """Return the text for a change of a host; `kind` is a key of NOTICE_TEXTS."""
    return NOTICE_TEXTS[kind].render(language, minutes=round_up_minutes(wake_s))


def round_up_minutes(wake_s: float | None) -> int:
    """Return whole minutes, rounded up, at least one."""
    return max(1, ceil((DEFAULT_WAKE_S if wake_s is None else wake_s) / 60))


def choose_language(accept: str | None, preferred: str | None = None) -> Language:
    """Return the language of an `Accept-Language` header (RFC 9110, 12.5.4), else `preferred`, else English."""
    for tag in _sort_by_weight(accept) if accept else ():
        for language in Language:
            if tag == language or tag.startswith(f"{language}-"):
                return language
    return Language.ZH if (preferred or "").lower().startswith(Language.ZH) else Language.EN


def _sort_by_weight(accept: str) -> list[str]:
    weighted = []
    for part in accept.lower().split(","):
        tag, _, parameters = part.partition(";")
        weighted.append((_parse_weight(parameters), tag.strip()))
    return [tag for weight, tag in sorted(weighted, key=lambda pair: -pair[0]) if weight > 0 and tag]


def _parse_weight(parameters: str) -> float:
    name, _, value = parameters.strip().partition("=")
    if name.strip() != "q":
        return 1.0
    try:
        return float(value)
    except ValueError:
        return 0.0
