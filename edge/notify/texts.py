"""The messages of notifications, in both languages. Pure."""

from collections.abc import Mapping, Sequence
from datetime import datetime

from edge.core.messages import LocalizedText
from schemas.conditions import JOB_FAILED, THRESHOLDS, Condition, Notice
from schemas.texts import Language

LINES_LIMIT = 20  # notices in one message

CONDITION_TEXTS: Mapping[str, LocalizedText] = {
    Condition.BROKER_NOT_DURABLE: LocalizedText(
        "The broker does not store durably, so new jobs are refused: {why}",
        "消息服务器无法可靠存储，新任务被拒绝：{why}",
    ),
    Condition.BROKER_STORE_FULL: LocalizedText(
        "The broker's store is {percent} full, so new jobs are refused", "消息服务器的存储已用 {percent}，新任务被拒绝"
    ),
    Condition.QUEUE_GROWING: LocalizedText(
        "The queue of endpoint {subject} keeps growing: {count} jobs wait",
        "端点 {subject} 的队列持续增长：{count} 个任务在等待",
    ),
    Condition.WAIT_TOO_LONG: LocalizedText(
        "A job of endpoint {subject} has waited for {time}", "端点 {subject} 有任务已等待 {time}"
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
        "端点 {subject} 最近一小时有 {percent} 的任务失败（{count} 个）",
    ),
    Condition.BACKUP_OLD: LocalizedText("No backup has been made for {time}", "已有 {time} 没有成功备份"),
    JOB_FAILED: LocalizedText(
        "Job {subject} of {owner} (endpoint {endpoint}) failed: {code}: {why}",
        "{owner} 的任务 {subject}（端点 {endpoint}）失败：{code}：{why}",
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
    lines = [render_notice(notice, language) for notice in notices[:LINES_LIMIT]]
    if len(notices) > LINES_LIMIT:
        lines.append(MORE_TEXT.render(language, count=len(notices) - LINES_LIMIT))
    if len(notices) == 1:
        return TITLE_TEXT.render(language, first=lines[0]), lines[0]
    return TITLE_OF_MANY_TEXT.render(language, count=len(notices)), "\n".join(lines)


def _lasted(since: datetime, until: datetime) -> str:
    minutes = round((until - since).total_seconds() / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:.0f} h"
