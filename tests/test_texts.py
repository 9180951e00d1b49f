"""Texts for people exist in English and Chinese, and no English sentence of the code is missing from the catalogue."""

import re
from collections.abc import Mapping
from pathlib import Path
from string import Formatter

import pytest

from edge.core import messages
from edge.core.messages import CATALOGUE, LocalizedText
from edge.core.record_texts_zh import HOST_TEXTS_ZH, JOB_TEXTS_ZH
from edge.core.refusal_texts_zh import REFUSALS_ZH
from schemas.endpoint import parse_endpoint
from schemas.problems import PROBLEM_TYPES
from schemas.texts import Catalogue, Language, parse_template
from tests.support.texts_in_code import Literals, find_sentences

ROOT = Path(__file__).parent.parent
TABLES = {"refusals": REFUSALS_ZH, "jobs": JOB_TEXTS_ZH, "hosts": HOST_TEXTS_ZH}
PAIRS: list[LocalizedText] = [
    *messages.STATUS_TEXTS.values(),
    *messages.WAIT_REASON_TEXTS.values(),
    *messages.FAILURE_TEXTS.values(),
    *messages.NOTICE_TEXTS.values(),
    *(messages.NEXT_IN_LINE_TEXT, messages.OTHER_FAILURE_TEXT, messages.HOST_OFF_TEXT),
    *(messages.DELETED_TEXT, messages.DELETE_FAILED_TEXT),
]

CJK = r"[\u3400-\u9fff]"
# "GPU服务器" instead of "GPU 服务器". A placeholder shows a number or a name.
UNSPACED = re.compile(rf"{CJK}[A-Za-z0-9`{{]|[A-Za-z0-9`%}}]{CJK}")
# Clients of the gateway's envelope compare these with what it sent before this project (docs/gateway.md).
COMPARED_BY_CLIENTS = {"任务已排队，请等待约{minutes}分钟", "GPU服务器已上线，可以开始处理任务"}
# A value that is a Chinese phrase itself, so that no space belongs beside it.
PHRASES = {"{reason}", "{what}", "{more}", "{who}"}

# The code whose texts reach clients of the edge.
SEEN_BY_CLIENTS = (
    *("edge", "runner/execution", "runner/assets", "schemas/asset.py", "schemas/gateway_protocol.py"),
    *("images/preview/main.py", "images/preview/lipsync", "images/heygem/heygem_worker"),
    *("images/tts/main.py", "images/tts/tts_engines", "images/musetalk/musetalk_worker"),
)
# Texts there that no client gets, and why.
UNSEEN_FILES = {
    "edge/core/messages.py": "pairs of both languages",
    "edge/core/refusal_texts_zh.py": "the catalogue",
    "edge/core/record_texts_zh.py": "the catalogue",
    "edge/http/openapi.py": "the API's description, which is English",
    "edge/http/api_document.py": "the same",
    "edge/http/api_notes.py": "the same",
    "edge/http/api_fields.py": "the same",
    "edge/index/sqlite.py": "SQL",
    "edge/power/observation.py": "SQL",
    "edge/process.py": "a start of the edge that fails, shown by the command line",
    "edge/power/drivers/factory.py": "the same",
    "edge/server/certificate.py": "the log, and a start of the edge that fails",
    "edge/settings.py": "the same",
    "edge/owners/secret_keys.py": "a start of the edge that fails, shown by the command line",
    "edge/core/installation.py": "the same",
    "edge/store/directory.py": "the same",
    "runner/execution/durable_state.py": "the runner's log",
    "runner/assets/volume_source.py": "the heartbeat, for operators: `lamplighter doctor` has the Chinese around it",
    "runner/assets/volume_store.py": "the same",
    "edge/notify/conditions.py": "pairs of both languages",
    "edge/notify/apprise_sender.py": "answers to the administrator's test, beside the library's English",
    "edge/notify/targets.py": "a start of the edge that fails, shown by the command line",
    "edge/webhooks/dispatcher.py": "records of deliveries, for developers",
    "images/heygem/heygem_worker/label.py": "the selfcheck, for who builds the image",
    "images/heygem/heygem_worker/interpreter.py": "the same",
    "images/heygem/heygem_worker/settings.py": "the same",
    "images/heygem/heygem_worker/media_tools.py": "the same",
    "images/heygem/heygem_worker/vendor_survey.py": "the same",
    "images/heygem/heygem_worker/module_vendors.py": "lines of the vendor's log",
}
# Sentences in the other files that no client gets, or that a table has in another form.
UNSEEN: set[Literals] = {
    ("limiter of the threads that validate inputs",),
    ("step budget",),
    ("spoken by espeak-ng (a synthetic voice, not the given one)",),  # a comment in the file
    ("spoken by F5-TTS (a cloned voice)",),
    ("exit code ", ""),
    ("exceeded quota",),  # what a Kubernetes API server says
    ("Padding generated images",),  # what MuseTalk prints
    ("Error occurred during processing:",),
    ("integer modulo by zero",),
    ("integer division or modulo by zero",),
    ("Invalid enum value ",),
    ("", ": it is one of ", ""),
    ("Object contains unknown field `(?P<name>.*)`",),
    ("Object missing required field `(?P<name>.*)`",),
    ("matching regex ", ""),
    ("Additional properties are not allowed (", " ", " unexpected)"),
    ("Gateway.run must be running before a socket is served",),
    ("EventStreams.run must be running before a stream is opened",),
    ("FEED ended, although it is followed without an end",),
    ("an item of FEED has the invalid id ", ""),
    ("", " is not an upload key"),
    ("job ", " is not claimed"),
    ("", " is already running"),
    ("its cache ", " has more than ", " MiB"),  # why a container is not kept, in the runner's log
    ("it was not measured before its first job",),  # the same
    ("a job left processes: ", ", before the first job ", ""),
    ("a job left files in /tmp or /dev/shm: ", " more than allowed"),
    ("its memory has grown by ", " MiB since its first job"),
    ("a job left files outside its folder, such as ", ""),
    ("a warm container cannot go from ", " to ", ""),
    ("", " is missing"),  # the vendor's text of a missing field takes its place
    ("unable to contact slurm controller",),  # Slurm's words, which are looked for
    ("cannot stat file",),
    ("could not establish a configuration source",),
    ("munge encode failed",),
    ("munge decode failed",),
    ("unable to open file",),
    ("invalid partition",),
    ("invalid account",),
    ("invalid qos",),
    ("invalid generic resource",),
    ("connection refused",),
    ("zero bytes were transmitted",),
    ("timed out",),
    ("not a regular file",),  # turned into another refusal
    ("too many unread messages: reconnect and resume",),  # reasons of closed sockets
    ("the key is no longer valid: connect again with another key",),
    ("ASGI callable returned without completing handshake.",),  # lines of the server's log
    ("Invalid HTTP request received.",),
    ("Unsupported upgrade request.",),
    ("private, no-cache",),
    ("Jobs in the index",),  # metrics
    ("Hosts by state",),
    ("Share of the broker's store in use",),
    ("lamplighter runner --join ", ""),
    ("lamplighter relay --join ", ""),
    ("its host",),
    ("first key",),
    ("[store] url ", " is not a store: ", ""),  # a start of the edge that fails
    ("`path` must be / or /name, with A-Z a-z 0-9 _ - in the name",),  # of settings
    ("`secret` must be whsec_ followed by 24 to 64 bytes in base64 (Standard Webhooks)",),
    ("this delivery does not exist: GET /v1/jobs/", "/deliveries lists those of a job"),  # {id} is written out
    ("img-src 'self' blob:",),  # the console's Content-Security-Policy
    ("media-src 'self' blob:", ""),
    ("add its address to server.trusted_proxies if it is your reverse proxy",),
    ("no job was added to ", " at ", ""),  # bugs
    ("", "/", " was never queued"),
    ("fetch input",),  # in logs
    ("fetch secrets",),
    ("the client speaks no TLS newer than 1.1",),
    ("\n… ", " bytes are left out here …\n"),
    ("sha256 in 64 lower-case hex digits",),
    ("preview engine (not HeyGem)",),  # metadata of the video
    # What HeyGem says.
    ("out of memory",),
    ("no kernel image",),
    ("CUDA driver version is insufficient",),
    ("Failed to create CUDAExecutionProvider",),
    ("Cannot allocate memory",),
    ("No space left on device",),
    ("av_transfer maybe blocked",),
    ("no final result",),
    ("Read-only file system",),
    ("file create failed:",),
    ("format video error",),
    ("format audio error",),
    ("HeyGem's video lacks its ",),
    ("was ended by signal ", ""),
    ("ended with exit code ", ""),
}


def known_literals(*tables: Mapping[str, str]) -> set[Literals]:
    return {parse_template(english, chinese).literals for table in tables for english, chinese in table.items()}


def placeholders(text: str) -> list[str]:
    return sorted(name for _, name, _, _ in Formatter().parse(text) if name is not None)


def python_files(*places: str) -> list[Path]:
    found = [ROOT / place for place in places]
    return [file for path in found for file in ([path] if path.is_file() else sorted(path.rglob("*.py")))]


def all_pairs() -> list[tuple[str, str]]:
    return [*((text.en, text.zh) for text in PAIRS), *(entry for table in TABLES.values() for entry in table.items())]


def test_every_key_has_both_languages():
    assert set(messages.PROBLEM_TITLES_ZH) == set(PROBLEM_TYPES)
    assert all(english.strip() and (re.search(CJK, chinese) or "：" in chinese) for english, chinese in all_pairs())


def test_placeholders_are_the_same_in_both_languages():
    # A Chinese sentence may leave out how long it takes: "GPU 已关机，正在等待开机".
    differing = [pair for pair in all_pairs() if set(placeholders(pair[1])) - set(placeholders(pair[0]))]
    assert not differing
    kept = [pair for table in TABLES.values() for pair in table.items()]
    assert not [pair for pair in kept if placeholders(pair[0]) != placeholders(pair[1])]


@pytest.mark.parametrize("table", TABLES)
def test_a_sentence_is_recognised_as_itself(table: str):
    """No other entry matches first, so that a sentence never gets the Chinese of another."""
    wrong = []
    for english, chinese in TABLES[table].items():
        values = {name: f"v{index}" for index, name in enumerate(placeholders(english))}
        if CATALOGUE.translate(english.format_map(values)) != chinese.format_map(values):
            wrong.append(english)
    assert not wrong


def test_no_sentence_for_clients_is_missing_from_the_catalogue():
    known = known_literals(*TABLES.values())
    missing = [
        f"{sentence.place}: {'{}'.join(sentence.literals)}"
        for file in python_files(*SEEN_BY_CLIENTS)
        if (name := file.relative_to(ROOT).as_posix()) not in UNSEEN_FILES
        for sentence in find_sentences(file, name)
        if sentence.literals not in known and sentence.literals not in UNSEEN
    ]
    assert "\n".join(missing) == "", "add the Chinese to edge/core/refusal_texts_zh.py, or name the sentence in UNSEEN"


def test_chinese_and_latin_have_a_space_between_them():
    texts = {*(chinese for _, chinese in all_pairs()), *messages.PROBLEM_TITLES_ZH.values()}
    assert not [text for text in texts - COMPARED_BY_CLIENTS if UNSPACED.search(without_phrases(text))]


def without_phrases(text: str) -> str:
    for phrase in PHRASES:
        text = text.replace(phrase, "一")
    return text


@pytest.mark.parametrize("image", ["echo", "preview", "heygem"])
def test_the_images_of_this_project_are_described_in_both_languages(image: str):
    endpoint = parse_endpoint((ROOT / "images" / image / "endpoint.toml").read_text())
    fields = endpoint.input["properties"].values()
    assert all(field.get("description") for field in fields)
    chinese = [endpoint.title_zh, endpoint.description_zh, *(field.get("description_zh", "") for field in fields)]
    assert endpoint.title
    assert [text for text in chinese if not re.search(CJK, text) or UNSPACED.search(text)] == []


@pytest.mark.parametrize(
    ("english", "chinese"),
    [
        ("the job exited with code 3", "任务以退出码 3 结束"),
        ("job a-b does not exist", "任务 a-b 不存在"),
        ("no such sentence", "no such sentence"),
        (
            "an owner must have 1 to 64 characters of A-Z a-z 0-9 _ -",
            "用户名必须为 1 到 64 个字符，可用 A-Z a-z 0-9 _ -",
        ),
        ('the reply is not {"state": …}: null', '返回内容不是 {"state": …}：null'),
        (
            "$.input.a: 'x' names no asset: give sha256: and 64 lower-case hex digits",
            "$.input.a：'x' 不是文件引用：请写 sha256: 加 64 位小写十六进制数",
        ),
        ("Expected `int`, got `str`", "应为 int，实际为 str"),
    ],
)
def test_a_sentence_is_translated_with_its_values(english: str, chinese: str):
    assert CATALOGUE.translate(english) == chinese
    assert CATALOGUE.localize(english, Language.EN) == english


def test_values_may_hold_braces_and_what_is_around_them():
    catalogue = Catalogue({"the job {id} of {owner} is gone": "{owner} 的任务 {id} 已不存在"})
    assert catalogue.translate("the job {x} of {} of ann is gone") == "{} of ann 的任务 {x} 已不存在"
    assert catalogue.translate("the job x of is gone") == "the job x of is gone"


@pytest.mark.parametrize("text", ["", " ", "a" * 100_000, "x: " * 3000, "{", "}{", "a JSON body" * 400])
def test_any_text_may_be_translated(text: str):
    assert CATALOGUE.translate(text) == text


@pytest.mark.parametrize("english", ["{}", "{a}{b} x", "{a} and {a}", "{a}"])
def test_a_template_that_cannot_be_recognised_is_refused(english: str):
    with pytest.raises(ValueError, match="placeholder"):
        parse_template(english, "一")
