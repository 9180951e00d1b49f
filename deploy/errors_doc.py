"""Print docs/errors.md from the code's tables. `./justw docs` writes the file; a test compares it."""

from collections.abc import Mapping

from edge.core import messages
from edge.core.messages import LocalizedText
from schemas.lifecycle import FAILURES
from schemas.problems import PROBLEM_TYPES

HEAD = """# Every error

`./justw docs` makes this page from `schemas/problems.py`, `schemas/lifecycle.py`, `edge/core/messages.py` and
`deploy/errors_doc.py`; a test keeps it current. Programs can rely on codes: they do not change. Texts are for people
and may change. They are in the language of `Accept-Language` (English or Chinese), else in the
[language of the key](owners.md).

A request that is refused has changed nothing, with one exception: a resumable upload whose bytes do not have the
digest named is deleted. Over HTTP the answer is a problem document (RFC 9457); the
[WebSocket gateway](gateway.md) sends an `error` with the same code:

```json
{"type":"urn:lamplighter:problem:input_invalid","title":"The input does not fit the endpoint","status":422,
 "detail":"$.input.video: is required","code":"input_invalid",
 "errors":[{"path":"$.input.video","message":"is required"}]}
```

`title` is the same for every refusal with this code. `detail` says what is wrong with this request, and what to do.
`errors` names the wrong fields, and `missing` (only with `asset_missing`) the digests of the missing files. Answers
with 429 and 503 have the header `Retry-After`, in seconds. A method that the path does not support is refused with 405
and the header `Allow`.
"""

FAILURE_HEAD = """## A job that failed

The field `error` of a Job has `code`, `message`, `blame`, `retryable` and `log_tail`:

- `message` comes from the image or the host. It is in the reader's language if the image is one of this project. The
  field `message` of the Job itself has a text of the column "what it means".
- `blame` says where the fault is: with the client, the image, the GPU or the host.
- `retryable` says whether a `retry` by the client may succeed with the same request. It is false if the input or the
  policy has to change first.
- `log_tail` has the last five lines that the attempt wrote to stderr, with control characters escaped.
  `lamplighter logs ID` prints the whole log.

The column "tried again" says whether another attempt follows by itself:

- `never`: no.
- `counted`: yes, until the job has had `policy.max_attempts` attempts.
- `once`: yes, if no earlier attempt was counted and `policy.max_attempts` is at least 2.
- `free`: yes, without counting against `policy.max_attempts`: at most three times for faults of GPUs, and ten times in
  all. Then the job ends with `gpu_fault_repeated` or `host_fault_repeated`.

An image may define codes of its own, which are not listed here. For these, `blame` and "tried again" follow from the
[exit code](images.md#the-program).
"""

WAITING_HEAD = """## A job that waits

The field `reason` says why a Job has not started yet. A reason is not a failure: the job starts as soon as it can.
Until then, only a cancel, its deadline, its timeouts, or an input file that does not arrive can end it.
"""

RETRY_LATER = LocalizedText(
    "Try again later; with the same `Idempotency-Key` or id no second job is made",
    "请稍后重试；使用相同的编号不会重复提交",
)
REPORT = LocalizedText("Tell the operator; the edge's log says why", "请联系管理员查看服务日志")
OTHER_FILE = LocalizedText("Submit with another file", "请更换文件后重新提交")
OTHER_INPUT = LocalizedText("Submit with another input", "请修改输入后重新提交")
NEW_JOIN_TOKEN = LocalizedText(
    "Ask for a new token (`lamplighter hosts token`)", "请管理员创建新令牌（lamplighter hosts token）"
)
IMAGE_LOG = LocalizedText("Read the job's log; fix the image, then `retry`", "请查看任务日志并修复程序镜像后重试")
OPERATOR = LocalizedText(
    "The operator checks the host (`lamplighter doctor`); then `retry`", "请管理员检查服务器后重试"
)

# What to do about it.
PROBLEM_ADVICE: Mapping[str, LocalizedText] = {
    "body_malformed": LocalizedText(
        "Send a JSON object, or a form as docs/api.md shows it", "请发送 JSON 或文档所示的表单"
    ),
    "field_unknown": LocalizedText(
        "Remove the field that `detail` names: it is misspelt, or belongs to another API",
        "请去掉所指出的字段：拼写有误，或属于其他 API",
    ),
    "unauthorized": LocalizedText("Send a key that exists and has not expired or been revoked", "请使用有效的密钥"),
    "forbidden": LocalizedText("Use a key with the scope that `detail` names", "请使用有 detail 中所写权限的密钥"),
    "not_found": LocalizedText(
        "Check the id. What belongs to another owner is not found either",
        "请检查编号；其他用户的内容也视为不存在",
    ),
    "endpoint_unknown": LocalizedText("Use a name from `GET /v1/endpoints`", "请从 GET /v1/endpoints 中选择任务类型"),
    "head_timeout": LocalizedText("Send the request again, with all headers at once", "请重新发送请求"),
    "conflict": LocalizedText("Use another id, or send the same body", "请更换编号，或发送相同的内容"),
    "job_final": LocalizedText(
        "There is nothing to cancel; use `retry` to run a job again that did not succeed",
        "任务已结束，未成功的可以重试",
    ),
    "job_not_final": LocalizedText("Cancel it, or wait for its end", "请先取消或等待任务结束"),
    "deadline_passed": LocalizedText("Submit again with a later deadline", "请设置新的截止时间后重新提交"),
    "asset_in_use": LocalizedText("Delete it once the jobs that name it have ended", "请等待相关任务结束后再删除"),
    "owner_deleting": LocalizedText("Wait until the owner's deletion is done", "请等待该用户的删除完成"),
    "offset_mismatch": LocalizedText(
        "Ask with HEAD, and continue at `Upload-Offset`", "请用 HEAD 查询后从返回的位置继续"
    ),
    "tus_version": LocalizedText("Send the header `Tus-Resumable: 1.0.0`", "请发送请求头 Tus-Resumable: 1.0.0"),
    "body_too_large": LocalizedText(
        "Upload large files as assets, and name their digests in the request", "请先上传文件，再引用其哈希值"
    ),
    "media_type_unknown": LocalizedText(
        "Send the `Content-Type` that `detail` names", "请使用 detail 中写明的 Content-Type"
    ),
    "input_invalid": LocalizedText(
        "Correct the fields in `errors`; the schema is at `GET /v1/endpoints/{name}`",
        "请修改 errors 中的字段；schema 见 GET /v1/endpoints/{name}",
    ),
    "asset_missing": LocalizedText(
        "Upload the digests in `missing`, or submit with `await_input`",
        "请先上传 missing 中的文件，或用 await_input 提交",
    ),
    "secret_missing": LocalizedText(
        "Set the secrets that `detail` names: `lamplighter secrets set NAME`",
        "请设置 detail 中列出的机密信息：lamplighter secrets set NAME",
    ),
    "digest_mismatch": LocalizedText("Compute the digest again, and upload the file again", "请重新计算哈希值并上传"),
    "idempotency_mismatch": LocalizedText("Use a new `Idempotency-Key` for a new job", "新任务请使用新的请求编号"),
    "url_refused": LocalizedText(
        "Upload the file, or ask the operator to allow the host (`outbound.allow`)",
        "请直接上传文件，或请管理员放行该主机（outbound.allow）",
    ),
    "upload_locked": LocalizedText("Try again in a second", "请一秒后重试"),
    "rate_limited": LocalizedText("Wait for `Retry-After` seconds", "请等待 Retry-After 秒后重试"),
    "quota_exceeded": LocalizedText(
        "Wait until jobs have ended, or delete files; the operator sets the quotas",
        "请等待任务结束或删除文件；配额由管理员设置",
    ),
    "too_many_connections": LocalizedText(
        "Close streams and connections that you no longer need; the operator sets the limits (`[server]`)",
        "请关闭不再使用的连接；上限由管理员设置（[server]）",
    ),
    "head_too_large": LocalizedText("Send fewer or shorter headers, or a shorter URL", "请减少请求头或缩短网址"),
    "checksum_mismatch": LocalizedText("Send the piece again", "请重新发送该片段"),
    "internal": REPORT,
    "unavailable": RETRY_LATER,
    "join_token_expired": NEW_JOIN_TOKEN,
    "join_token_revoked": NEW_JOIN_TOKEN,
    "join_token_used_up": NEW_JOIN_TOKEN,
    "not_set_up": LocalizedText(
        "The operator must change the setting that `detail` names", "请联系管理员修改详情中所述的设置"
    ),
    "store_full": LocalizedText("Delete files and jobs, or ask the operator for more space", "请联系管理员或删除文件"),
}

FAILURE_ADVICE: Mapping[str, LocalizedText] = {
    "bad_job": OTHER_INPUT,
    "bad_input": OTHER_INPUT,
    "unreadable_video": OTHER_FILE,
    "unreadable_audio": OTHER_FILE,
    "no_face": LocalizedText("Use a video that shows a face from the front", "请使用包含清晰正脸的视频"),
    "multiple_faces": LocalizedText("Use a video with one face", "请使用只有一张人脸的视频"),
    "input_too_large": LocalizedText("Shorten or shrink the input", "请缩短或压缩输入文件"),
    "input_fetch_failed": LocalizedText(
        "Check that the URL can be reached from the internet, or upload the file", "请检查网址或直接上传文件"
    ),
    "asset_gone": LocalizedText("Upload the file again, then `retry`", "请重新上传文件后重试"),
    "secret_missing": LocalizedText(
        "Set the secrets that `message` names, then `retry`", "请设置错误信息所列的机密信息后重试"
    ),
    "disk_exceeded": LocalizedText(
        "Submit a smaller input, or raise `disk_mb` of the endpoint; `message` has the figures",
        "请缩短或压缩输入，或为该任务类型调大 disk_mb；数值见错误信息",
    ),
    "internal": IMAGE_LOG,
    "output_missing": IMAGE_LOG,
    "output_invalid": IMAGE_LOG,
    "model_load_failed": IMAGE_LOG,
    "module_missing": LocalizedText(
        "Install the module that `message` names in the image, or correct the import; then submit again",
        "请在镜像中安装错误信息所指的模块，或修正 import 后重新提交",
    ),
    "stalled": LocalizedText(
        "If the program works for long without output, raise `policy.stall_timeout_s`; else read the log",
        "如程序本来就很久没有输出，请调大 policy.stall_timeout_s；否则请查看日志",
    ),
    "output_too_large": LocalizedText("Put large results into files, not into `data`", "请将大结果写入文件"),
    "out_of_memory": LocalizedText(
        "Submit a smaller input, or give the endpoint more memory", "请缩短或压缩输入，或为该任务类型分配更多内存"
    ),
    "execution_timeout": LocalizedText(
        "Raise `policy.execution_timeout_s` or shorten the input", "请调大 policy.execution_timeout_s，或缩短输入"
    ),
    "gpu_lost": OPERATOR,
    "gpu_unhealthy": OPERATOR,
    "gpu_unsupported": LocalizedText("The operator must build the image for this GPU", "请管理员提供适配该显卡的镜像"),
    "cuda_oom": LocalizedText(
        "Submit a smaller input; other programs may hold the GPU's memory", "请缩短或压缩输入；其他程序可能占用了显存"
    ),
    "gpu_fault_repeated": OPERATOR,
    "host_lost": OPERATOR,
    "engine_error": OPERATOR,
    "image_missing": LocalizedText(
        "The operator must pull or build the image on the host", "请管理员在服务器上准备镜像"
    ),
    "disk_full": LocalizedText("The operator must free disk space on the host", "请管理员清理磁盘"),
    "host_fault_repeated": OPERATOR,
    "drained": LocalizedText("Nothing: it runs again when the host is back", "无需处理，服务器恢复后自动重试"),
}


def problem_table() -> str:
    """Return the Markdown table of the codes with which requests are refused."""
    rows = [
        f"| `{code}` | {row.status} | {row.title}<br>{messages.PROBLEM_TITLES_ZH[code]} "
        f"| {_bilingual(PROBLEM_ADVICE[code])} |"
        for code, row in PROBLEM_TYPES.items()
    ]
    return "\n".join(["| code | HTTP | what it means | what to do |", "|---|---|---|---|", *rows])


def failure_table() -> str:
    """Return the Markdown table of the codes of failed jobs."""
    said = {
        code: f"{_bilingual(messages.FAILURE_TEXTS[code])} | {_bilingual(FAILURE_ADVICE[code])}" for code in FAILURES
    }
    rows = [f"| `{code}` | {row.blame} | {row.retry} | {said[code]} |" for code, row in FAILURES.items()]
    return "\n".join(["| code | blame | tried again | what it means | what to do |", "|---|---|---|---|---|", *rows])


def wait_reason_table() -> str:
    """Return the Markdown table of the reasons to wait. `N` in it is the host's measured median in minutes."""
    texts = [(f"`{reason}`", text) for reason, text in messages.WAIT_REASON_TEXTS.items()]
    texts.append(("`behind`, `queue_position` 0", messages.NEXT_IN_LINE_TEXT))
    texts.append(("`host_blocked`, of a cluster or a cloud", messages.NO_CAPACITY_TEXT))
    rows = [f"| {reason} | {text.en} | {text.zh} |" for reason, text in texts]
    table = "\n".join(["| reason | en | zh |", "|---|---|---|", *rows])
    return (
        table.replace("{minutes}", "N")
        .replace("{host}", "gpu-1")
        .replace("{pulled}", "45 %, 1.2 / 2.7 GB")
        .replace("{blocked}", "job 17 waits in Slurm's queue: Resources")
    )


def _bilingual(text: LocalizedText) -> str:
    return f"{text.en}<br>{text.zh}"


def document() -> str:
    """Return the whole text of docs/errors.md."""
    parts = [
        HEAD,
        "## A request that is refused",
        problem_table(),
        FAILURE_HEAD,
        failure_table(),
        WAITING_HEAD,
        wait_reason_table(),
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


if __name__ == "__main__":
    print(document(), end="")
