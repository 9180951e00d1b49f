"""From the vendor's words to ours and back: the body of a submit, and a job as a query tells it."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from schemas.container_protocol import OUTPUT_FILE
from schemas.endpoint import Endpoint
from schemas.ids import is_token
from schemas.job import OutputFile
from schemas.job_view import FileView, JobView
from schemas.problems import FieldError, ProblemError
from schemas.status import ACTIVE_STATUSES, WAITING_STATUSES, Status

F = TypeVar("F", OutputFile, FileView)

RUNNING, DONE, FAILED = 1, 2, 3
PROGRESS_LIMIT_PERCENT = 99  # percent: 100 is only told of what is done
REQUIRED_FIELDS = ("audio_url", "video_url", "code")

# The vendor's switch, what it is when left out, and the field of an endpoint's input that it sets.
VENDOR_SWITCHES = (
    ("chaofen", 0, "chaofen"),
    ("watermark_switch", 0, "watermark"),
    ("digital_auth", 0, "digital_auth"),
    ("pn", 1, "pn"),
)

# What newer servers tell of a result: the field, where an image's output.data has it, and the factor.
RESULT_FIELDS = (
    ("width", ("width",), 1),
    ("height", ("height",), 1),
    ("video_duration", ("seconds", "duration_s", "duration"), 1000),  # milliseconds
)


class FieldMissing(Exception):
    """A field that must be there is absent, null or empty."""

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(f"{name} is missing")


class EasySubmit(NamedTuple):
    """A submit as the vendor's clients send it. `audio` and `video` name files in one of the ways of PROTOCOLS 3."""

    audio: str
    video: str
    code: str
    switches: Mapping[str, int]


def parse_submit(body: Mapping[str, Any]) -> EasySubmit:
    """The body; unknown keys are ignored. Raises FieldMissing, and Refused `input_invalid` for what cannot be."""
    audio, video, code = (_required_text(body, name) for name in REQUIRED_FIELDS)
    if not is_token(code):
        raise _invalid_field("code", "must be 1 to 64 of A-Z a-z 0-9 _ -")
    switches = {ours: _switch_value(body.get(theirs), default) for theirs, default, ours in VENDOR_SWITCHES}
    return EasySubmit(audio, video, code, switches)


def _required_text(body: Mapping[str, Any], name: str) -> str:
    value = body.get(name)
    if isinstance(value, int) and not isinstance(value, bool) and name == "code":
        value = str(value)
    if value is None or value == "":
        raise FieldMissing(name)
    if not isinstance(value, str):
        raise _invalid_field(name, "must be text")
    return value


def _invalid_field(name: str, why: str) -> ProblemError:
    error = FieldError(f"$.{name}", why)
    return ProblemError("input_invalid", f"{error.path}: {why}", errors=(error,))


def _switch_value(value: object, default: int) -> int:
    """The vendor compares texts, so 1 and "1" are on; left out, null and "" are the default."""
    return default if value is None or value == "" else int(str(value) == "1")


def build_submission(endpoint: Endpoint, asked: EasySubmit, audio: str, video: str) -> dict[str, Any]:
    """The native body. An endpoint that does not know a switch is not given it; files may follow the job."""
    known = endpoint.input.get("properties", {})
    switches = {name: value for name, value in asked.switches.items() if name in known}
    return {"endpoint": endpoint.name, "input": {"video": video, "audio": audio, **switches}, "await_input": True}


def result_name(code: str) -> str:
    """What the vendor calls a result."""
    return f"{code}-r.mp4"


def main_video(files: Sequence[F]) -> F | None:
    """The output that clients are given: the first that says it is a video, else the first besides output.json."""
    own = [file for file in files if file.name != OUTPUT_FILE]
    return next((file for file in own if file.media_type.startswith("video/")), own[0] if own else None)


def job_data(job: JobView) -> dict[str, Any]:
    """`data` of a query. Whole numbers only: clients read them into integers."""
    if job.status is Status.SUCCEEDED:
        return _done_data(job) if job.output and main_video(job.output.files) else missing_result_data(job)
    if job.status in WAITING_STATUSES:
        return _status_data(job, RUNNING, 0, job.message or "")
    if job.status in ACTIVE_STATUSES:
        fraction = 0.0 if job.progress is None else job.progress.fraction
        return _status_data(job, RUNNING, max(0, min(PROGRESS_LIMIT_PERCENT, int(fraction * 100))), job.message or "")
    return _status_data(job, FAILED, 0, job.message or "")


def _done_data(job: JobView) -> dict[str, Any]:
    said = _status_data(job, DONE, 100, "任务完成")
    return said | {"result": f"/{result_name(job.id)}", "cost": _cost_s(job)} | _result_fields(job)


def exporting_data(job: JobView) -> dict[str, Any]:
    """`data` while a finished job's result is on its way into the shared folder."""
    return _status_data(job, RUNNING, PROGRESS_LIMIT_PERCENT, "正在保存结果，请稍候...")


def missing_result_data(job: JobView) -> dict[str, Any]:
    """`data` of a job whose result is not there (any more)."""
    return _status_data(job, FAILED, 0, "结果文件不存在")


def _status_data(job: JobView, status: int, progress: int, text: str) -> dict[str, Any]:
    return {"code": job.id, "msg": text, "progress": progress, "result": "", "status": status}


def _cost_s(job: JobView) -> float:
    """Seconds that the job took, as the image says or as it was measured."""
    said = _output_number(job, ("cost_s", "cost"))
    return round(said if said is not None else job.usage.run_s or 0.0, 1)


def _result_fields(job: JobView) -> dict[str, int]:
    """An image that does not say is told as 0."""
    return {name: round((_output_number(job, keys) or 0) * factor) for name, keys, factor in RESULT_FIELDS}


def _output_number(job: JobView, keys: tuple[str, ...]) -> float | None:
    data = {} if job.output is None else job.output.data
    found = (data.get(key) for key in keys)
    return next((value for value in found if isinstance(value, int | float) and not isinstance(value, bool)), None)
