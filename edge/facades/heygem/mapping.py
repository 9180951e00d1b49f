"""Translate the bodies of a vendor's requests into native ones, and a job into the `data` of a query. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from schemas.container_protocol import OUTPUT_FILE
from schemas.endpoint import Endpoint
from schemas.job import ACTIVE_STATUSES, WAITING_STATUSES, OutputFile, Status, is_token
from schemas.job_view import FileView, JobView
from schemas.problems import FieldError, ProblemError

F = TypeVar("F", OutputFile, FileView)

RUNNING, DONE, FAILED = 1, 2, 3
_REFERENCE_SEPARATOR = "|||"  # between the parts of a long recording
PROGRESS_LIMIT_PERCENT = 99  # 100 is reserved for finished jobs
REQUIRED_FIELDS = ("audio_url", "video_url", "code")

# The vendor's option, its default, and the field of the endpoint's input that it sets.
VENDOR_OPTIONS = (
    ("chaofen", 0, "chaofen"),
    ("watermark_switch", 0, "watermark"),
    ("digital_auth", 0, "digital_auth"),
    ("pn", 1, "pn"),
)

# Fields of a result that newer servers send: the name, the names of the value in output.data, and the factor.
RESULT_FIELDS = (
    ("width", ("width",), 1),
    ("height", ("height",), 1),
    ("video_duration", ("seconds", "duration_s", "duration"), 1000),  # milliseconds
)


class FieldMissing(Exception):
    """A required field is absent, null or empty."""

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(f"{name} is missing")


class EasySubmit(NamedTuple):
    """A submit of a vendor's client.

    `audio` and `video`: a name in the shared folder, an http(s) URL, or `sha256:…`.
    """

    audio: str
    video: str
    code: str
    options: Mapping[str, int]


def parse_submit(body: Mapping[str, Any]) -> EasySubmit:
    """Parse the body and ignore unknown keys. Raises FieldMissing, and ProblemError `input_invalid`."""
    audio, video, code = (_required_text(body, name) for name in REQUIRED_FIELDS)
    if not is_token(code):
        raise _invalid_field("code", "must be 1 to 64 of A-Z a-z 0-9 _ -")
    options = {ours: _option_value(body.get(theirs), default) for theirs, default, ours in VENDOR_OPTIONS}
    return EasySubmit(audio, video, code, options)


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


def _option_value(value: object, default: int) -> int:
    """Return 1 for 1 and "1", which the vendor compares as text. Absent, null and "" mean the default."""
    return default if value is None or value == "" else int(str(value) == "1")


def build_submission(endpoint: Endpoint, submit: EasySubmit, audio: str, video: str) -> dict[str, Any]:
    """Build the native body, with the options that the endpoint's input has. Files may arrive after the submit."""
    known = endpoint.input.get("properties", {})
    options = {name: value for name, value in submit.options.items() if name in known}
    return {"endpoint": endpoint.name, "input": {"video": video, "audio": audio, **options}, "await_input": True}


class SpeechRequest(NamedTuple):
    """A request for speech. `reference`: the file of the voice, in the shared folder; "": none."""

    text: str
    reference: str
    reference_text: str


def parse_reference(body: Mapping[str, Any]) -> str:
    """Return the file of a voice that is to be accepted. Raises ProblemError `input_invalid`."""
    name = body.get("reference_audio")
    if not isinstance(name, str) or not name:
        raise _invalid_field("reference_audio", "must name a file of the shared folder")
    return name


def parse_speech(body: Mapping[str, Any]) -> SpeechRequest:
    """Parse a request for speech and ignore unknown keys. Raises ProblemError `input_invalid`."""
    text, reference, reference_text = (
        _optional_text(body, name) for name in ("text", "reference_audio", "reference_text")
    )
    if not text.strip():
        raise _invalid_field("text", "must hold the text to speak")
    return SpeechRequest(text, reference.split(_REFERENCE_SEPARATOR)[0], reference_text)


def _optional_text(body: Mapping[str, Any], name: str) -> str:
    value = body.get(name)
    if value is not None and not isinstance(value, str):
        raise _invalid_field(name, "must be text")
    return value or ""


def build_speech_submission(endpoint: Endpoint, speech: SpeechRequest, voice: str | None) -> dict[str, Any]:
    """Build the native body. The voice is left out where the endpoint's input has none."""
    known = endpoint.input.get("properties", {})
    given = {"voice": voice, "reference_text": speech.reference_text}
    options = {name: value for name, value in given.items() if value and name in known}
    return {"endpoint": endpoint.name, "input": {"text": speech.text, **options}}


def result_name(code: str) -> str:
    """Return the vendor's file name for the result of `code`."""
    return f"{code}-r.mp4"


def main_video(files: Sequence[F]) -> F | None:
    """Return the result for clients: the first video, or else the first output that is not output.json."""
    own = [file for file in files if file.name != OUTPUT_FILE]
    return next((file for file in own if file.media_type.startswith("video/")), own[0] if own else None)


def job_data(job: JobView) -> dict[str, Any]:
    """Return the `data` of a query. `progress` is an integer, because clients parse it as one."""
    if job.status is Status.SUCCEEDED:
        return _done_data(job) if job.output and main_video(job.output.files) else missing_result_data(job)
    if job.status in WAITING_STATUSES:
        return _status_data(job, RUNNING, 0, job.message or "")
    if job.status in ACTIVE_STATUSES:
        fraction = 0.0 if job.progress is None else job.progress.fraction
        return _status_data(job, RUNNING, max(0, min(PROGRESS_LIMIT_PERCENT, int(fraction * 100))), job.message or "")
    return _status_data(job, FAILED, 0, job.message or "")


def _done_data(job: JobView) -> dict[str, Any]:
    data = _status_data(job, DONE, 100, "任务完成")
    return data | {"result": f"/{result_name(job.id)}", "cost": _cost_s(job)} | _result_fields(job)


def exporting_data(job: JobView) -> dict[str, Any]:
    """Return the `data` of a finished job whose result is being copied into the shared folder."""
    return _status_data(job, RUNNING, PROGRESS_LIMIT_PERCENT, "正在保存结果，请稍候...")


def missing_result_data(job: JobView) -> dict[str, Any]:
    """Return the `data` of a job whose result does not exist or was deleted."""
    return _status_data(job, FAILED, 0, "结果文件不存在")


def _status_data(job: JobView, status: int, progress: int, text: str) -> dict[str, Any]:
    return {"code": job.id, "msg": text, "progress": progress, "result": "", "status": status}


def _cost_s(job: JobView) -> float:
    """Return the seconds that the job took: the image's own figure, or else the measured run time."""
    reported = _output_number(job, ("cost_s", "cost"))
    return round(reported if reported is not None else job.usage.run_s or 0.0, 1)


def _result_fields(job: JobView) -> dict[str, int]:
    """Return the fields of the result; 0 where the image reports no value."""
    return {name: round((_output_number(job, keys) or 0) * factor) for name, keys, factor in RESULT_FIELDS}


def _output_number(job: JobView, keys: tuple[str, ...]) -> float | None:
    data = {} if job.output is None else job.output.data
    found = (data.get(key) for key in keys)
    return next((value for value in found if isinstance(value, int | float) and not isinstance(value, bool)), None)
