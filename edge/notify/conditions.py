"""Which conditions hold, by what one edge knows; which of them began and ended; and the messages about them. Pure.

The messages are in English and Chinese.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from msgspec import Struct

from edge.core.messages import LocalizedText
from schemas.installation import FAILED_JOBS_LIMIT, JOB_FAILED, THRESHOLDS, Condition, Notice, Threshold
from schemas.texts import Language

CLEAR_S = 60.0  # how long a condition must be gone before it has ended, so that it does not end and begin again


class EndpointLoad(Struct, frozen=True):
    """The jobs of an endpoint. `queued_before`: one window of QUEUE_GROWING ago; None if that is not known yet.

    `oldest_wait_s`: of the queued job that has waited longest. `ended` and `failed`: in the window of FAILURE_RATE.
    """

    queued: int = 0
    queued_before: int | None = None
    oldest_wait_s: float = 0.0
    ended: int = 0
    failed: int = 0


class HostFigures(Struct, frozen=True, kw_only=True):
    """A host. `fault`: why the edge has given it up. `wake_failure`: why its last wake failed, within the window.

    `bad_gpus`: names of GPUs that are unhealthy or lost. `idle_s` and `idle_limit_s`: None if it is not idle, or its
    policy does not say. `clock_skew_s`: between its clock and ours.
    """

    fault: str | None = None
    wake_failure: str | None = None
    bad_gpus: tuple[str, ...] = ()
    idle_s: float | None = None
    idle_limit_s: float | None = None
    clock_skew_s: float = 0.0


class Facts(Struct, frozen=True, kw_only=True):
    """Facts that an edge knows at one moment. None: unknown, so a condition neither begins nor ends by it.

    `broker_problem`: why the broker does not store durably; empty: it does. `webhooks_wait_s`: of the oldest delivery.
    `certificates_left_s` and `disks_free`: by name. `backup_age_s`: of the last backup, or of the first start of an
    edge that never saw one.
    """

    broker_problem: str | None = None
    store_used: float | None = None
    endpoints: Mapping[str, EndpointLoad] | None = None
    hosts: Mapping[str, HostFigures] | None = None
    webhooks_wait_s: float | None = None
    certificates_left_s: Mapping[str, float] | None = None
    disks_free: Mapping[str, float] | None = None
    backup_age_s: float | None = None


class HeldCondition(NamedTuple):
    """A condition that holds. `subject`: the host, endpoint, disk or certificate; empty for the installation."""

    condition: Condition
    subject: str
    values: Mapping[str, str]

    @property
    def key(self) -> tuple[Condition, str]:
        """The name of the condition and its subject, which tells it from others."""
        return self.condition, self.subject


_Found = Iterable[tuple[str, Mapping[str, str]]]
_Rule = Callable[[Facts, Threshold], _Found | None]


def _broker_not_durable(facts: Facts, _: Threshold) -> _Found | None:
    problem = facts.broker_problem
    return None if problem is None else [("", {"why": problem})] if problem else []


def _store_full(facts: Facts, when: Threshold) -> _Found | None:
    used = facts.store_used
    return None if used is None else [("", {"percent": _percent(used)})] if used >= when.limit else []


def _queue_growing(facts: Facts, when: Threshold) -> _Found | None:
    if facts.endpoints is None or any(load.queued_before is None for load in facts.endpoints.values()):
        return None
    return (
        (name, {"count": str(load.queued)})
        for name, load in facts.endpoints.items()
        if load.queued > when.limit and load.queued > (load.queued_before or 0)
    )


def _wait_too_long(facts: Facts, when: Threshold) -> _Found | None:
    return (
        None
        if facts.endpoints is None
        else (
            (name, {"time": _duration(load.oldest_wait_s)})
            for name, load in facts.endpoints.items()
            if load.oldest_wait_s > when.age_s
        )
    )


def _failure_rate(facts: Facts, when: Threshold) -> _Found | None:
    return (
        None
        if facts.endpoints is None
        else (
            (name, {"percent": _percent(load.failed / load.ended), "count": str(load.failed)})
            for name, load in facts.endpoints.items()
            if load.failed > FAILED_JOBS_LIMIT and load.failed / load.ended > when.limit
        )
    )


def _host_fault(facts: Facts, _: Threshold) -> _Found | None:
    hosts = facts.hosts
    return (
        None if hosts is None else ((name, {"why": one.fault}) for name, one in hosts.items() if one.fault is not None)
    )


def _wake_failed(facts: Facts, _: Threshold) -> _Found | None:
    return (
        None
        if facts.hosts is None
        else ((name, {"why": host.wake_failure}) for name, host in facts.hosts.items() if host.wake_failure is not None)
    )


def _gpu_unhealthy(facts: Facts, _: Threshold) -> _Found | None:
    return (
        None
        if facts.hosts is None
        else ((name, {"gpus": ", ".join(host.bad_gpus)}) for name, host in facts.hosts.items() if host.bad_gpus)
    )


def _host_idle(facts: Facts, when: Threshold) -> _Found | None:
    return (
        None
        if facts.hosts is None
        else (
            (name, {"time": _duration(host.idle_s)})
            for name, host in facts.hosts.items()
            if host.idle_s is not None
            and host.idle_limit_s is not None
            and host.idle_s - host.idle_limit_s > when.age_s
        )
    )


def _clock_skew(facts: Facts, when: Threshold) -> _Found | None:
    return (
        None
        if facts.hosts is None
        else (
            (name, {"time": _duration(abs(host.clock_skew_s))})
            for name, host in facts.hosts.items()
            if abs(host.clock_skew_s) > when.age_s
        )
    )


def _webhooks_delayed(facts: Facts, when: Threshold) -> _Found | None:
    wait_s = facts.webhooks_wait_s
    return None if wait_s is None else [("", {"time": _duration(wait_s)})] if wait_s > when.age_s else []


def _certificate_expiring(facts: Facts, when: Threshold) -> _Found | None:
    return (
        None
        if facts.certificates_left_s is None
        else (
            (name, {"time": _duration(left_s)})
            for name, left_s in facts.certificates_left_s.items()
            if left_s < when.age_s
        )
    )


def _disk_full(facts: Facts, when: Threshold) -> _Found | None:
    return (
        None
        if facts.disks_free is None
        else ((name, {"percent": _percent(free)}) for name, free in facts.disks_free.items() if free < when.limit)
    )


def _backup_old(facts: Facts, when: Threshold) -> _Found | None:
    age_s = facts.backup_age_s
    return None if age_s is None else [("", {"time": _duration(age_s)})] if age_s > when.age_s else []


RULES: Mapping[Condition, _Rule] = {
    Condition.BROKER_NOT_DURABLE: _broker_not_durable,
    Condition.BROKER_STORE_FULL: _store_full,
    Condition.QUEUE_GROWING: _queue_growing,
    Condition.WAIT_TOO_LONG: _wait_too_long,
    Condition.HOST_FAULT: _host_fault,
    Condition.WAKE_FAILED: _wake_failed,
    Condition.GPU_UNHEALTHY: _gpu_unhealthy,
    Condition.HOST_IDLE: _host_idle,
    Condition.WEBHOOKS_DELAYED: _webhooks_delayed,
    Condition.CERTIFICATE_EXPIRING: _certificate_expiring,
    Condition.DISK_FULL: _disk_full,
    Condition.CLOCK_SKEW: _clock_skew,
    Condition.FAILURE_RATE: _failure_rate,
    Condition.BACKUP_OLD: _backup_old,
}


class Findings(NamedTuple):
    """The conditions that hold, and those of which the facts say nothing."""

    held: tuple[HeldCondition, ...]
    unknown: frozenset[Condition]


def find_conditions(facts: Facts) -> Findings:
    """Return the conditions that hold by `facts`, and those that cannot be decided."""
    held: list[HeldCondition] = []
    unknown = set()
    for condition, rule in RULES.items():
        found = rule(facts, THRESHOLDS[condition])
        if found is None:
            unknown.add(condition)
        else:
            held += [HeldCondition(condition, subject, values) for subject, values in found]
    return Findings(tuple(held), frozenset(unknown))


class ConditionTracker:
    """Decides by a row of findings which conditions have held for long enough, and which are gone."""

    def __init__(self) -> None:
        self._held_since: dict[tuple[Condition, str], datetime] = {}
        self._gone_since: dict[tuple[Condition, str], datetime] = {}

    def note(self, found: Findings, now: datetime) -> None:
        """Take in the findings of one round."""
        held = {finding.key for finding in found.held}
        for key in held:
            self._held_since.setdefault(key, now)
            self._gone_since.pop(key, None)
        for key in [key for key in self._held_since if key not in held and key[0] not in found.unknown]:
            del self._held_since[key]

    def begun(self, found: Findings, now: datetime) -> Iterator[HeldCondition]:
        """Yield the findings that have held for their time."""
        for finding in found.held:
            wait = timedelta(seconds=THRESHOLDS[finding.condition].for_s)
            if now - self._held_since.get(finding.key, now) >= wait:
                yield finding

    def has_ended(self, key: tuple[Condition, str], found: Findings, now: datetime) -> bool:
        """Return whether the condition that somebody was told of is gone, and has been for CLEAR_S."""
        if key[0] in found.unknown or key in self._held_since:
            self._gone_since.pop(key, None)
            return False
        return now - self._gone_since.setdefault(key, now) >= timedelta(seconds=CLEAR_S)


def _percent(share: float) -> str:
    return f"{share:.0%}"


def _duration(seconds: float) -> str:
    """Return a time in its largest unit, as `3 h`; a negative one is over."""
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


MESSAGE_LINES_LIMIT = 20  # notices in one message

CONDITION_TEXTS: Mapping[str, LocalizedText] = {
    Condition.BROKER_NOT_DURABLE: LocalizedText(
        "The broker does not store durably, so new jobs are refused: {why}",
        "broker 无法可靠存储，新任务被拒绝：{why}",
    ),
    Condition.BROKER_STORE_FULL: LocalizedText(
        "The broker's store is {percent} full, so new jobs are refused", "broker 的存储已用 {percent}，新任务被拒绝"
    ),
    Condition.QUEUE_GROWING: LocalizedText(
        "The queue of endpoint {subject} keeps growing: {count} jobs wait",
        "任务类型 {subject} 的队列持续增长：{count} 个任务在等待",
    ),
    Condition.WAIT_TOO_LONG: LocalizedText(
        "A job of endpoint {subject} has waited for {time}", "任务类型 {subject} 有任务已等待 {time}"
    ),
    Condition.HOST_FAULT: LocalizedText(
        "The edge has given up switching host {subject}: {why}", "edge 已放弃控制服务器 {subject} 的电源：{why}"
    ),
    Condition.WAKE_FAILED: LocalizedText(
        "Host {subject} was powered on and did not come up: {why}", "服务器 {subject} 开机失败：{why}"
    ),
    Condition.GPU_UNHEALTHY: LocalizedText(
        "GPUs of host {subject} are unhealthy or lost: {gpus}", "服务器 {subject} 的 GPU 异常或丢失：{gpus}"
    ),
    Condition.HOST_IDLE: LocalizedText(
        "Host {subject} is on and has been idle for {time}, longer than its policy allows",
        "服务器 {subject} 已开机空闲 {time}，超过其策略允许的时间",
    ),
    Condition.WEBHOOKS_DELAYED: LocalizedText(
        "A webhook has waited for {time} to be delivered", "有 Webhook 已等待 {time} 仍未送达"
    ),
    Condition.CERTIFICATE_EXPIRING: LocalizedText(
        "The certificate of the {subject} ends in {time}", "{subject} 的证书将在 {time} 后到期"
    ),
    Condition.DISK_FULL: LocalizedText(
        "Only {percent} of the disk {subject} is free", "磁盘 {subject} 仅剩 {percent} 可用"
    ),
    Condition.CLOCK_SKEW: LocalizedText(
        "The clock of host {subject} differs from the edge's by {time}", "服务器 {subject} 的时钟与 edge 相差 {time}"
    ),
    Condition.FAILURE_RATE: LocalizedText(
        "{percent} of the jobs of endpoint {subject} failed in the last hour ({count} jobs)",
        "任务类型 {subject} 最近一小时有 {percent} 的任务失败（{count} 个）",
    ),
    Condition.BACKUP_OLD: LocalizedText("No backup has been made for {time}", "已有 {time} 没有成功备份"),
    JOB_FAILED: LocalizedText(
        "Job {subject} of {owner} (endpoint {endpoint}) failed: {code}: {why}",
        "{owner} 的任务 {subject}（任务类型 {endpoint}）失败：{code}：{why}",
    ),
}
BEGAN_TEXT = LocalizedText("[{severity}] {text}", "[{severity}] {text}")
ENDED_TEXT = LocalizedText("[resolved after {time}] {text}", "[已恢复，持续 {time}] {text}")
CRITICAL_TEXT, WARNING_TEXT = LocalizedText("critical", "严重"), LocalizedText("warning", "警告")
TITLE_TEXT = LocalizedText("Lamplighter: {first}", "Lamplighter：{first}")
TITLE_OF_MANY_TEXT = LocalizedText("Lamplighter: {count} notices", "Lamplighter：{count} 条通知")
MORE_TEXT = LocalizedText("and {count} more", "另有 {count} 条")
TEST_TITLE_TEXT = LocalizedText("Lamplighter: test", "Lamplighter：测试")
TEST_BODY_TEXT = LocalizedText(
    "This is a test. Notifications of this installation reach this target.",
    "这是一条测试消息，此安装的通知可以送达这里。",
)


def render_notice(notice: Notice, language: Language) -> str:
    """Return a notice as one line in `language`."""
    text = CONDITION_TEXTS[notice.condition].render(language, subject=notice.subject, **notice.values)
    if notice.condition == JOB_FAILED:
        return text
    if notice.ended_at is not None:
        return ENDED_TEXT.render(language, text=text, time=_lasted(notice.began_at, notice.ended_at))
    is_critical = THRESHOLDS[Condition(notice.condition)].is_critical
    severity = (CRITICAL_TEXT if is_critical else WARNING_TEXT).render(language)
    return BEGAN_TEXT.render(language, severity=severity, text=text)


def render_message(notices: Sequence[Notice], language: Language) -> tuple[str, str]:
    """Return title and body of one message about all `notices`."""
    lines = [render_notice(notice, language) for notice in notices[:MESSAGE_LINES_LIMIT]]
    if len(notices) > MESSAGE_LINES_LIMIT:
        lines.append(MORE_TEXT.render(language, count=len(notices) - MESSAGE_LINES_LIMIT))
    if len(notices) == 1:
        return TITLE_TEXT.render(language, first=lines[0]), lines[0]
    return TITLE_OF_MANY_TEXT.render(language, count=len(notices)), "\n".join(lines)


def _lasted(since: datetime, until: datetime) -> str:
    minutes = round((until - since).total_seconds() / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:.0f} h"
