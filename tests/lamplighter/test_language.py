"""The command line in Chinese: what decides the language, and that each text has a translation."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from rich.cells import cell_len

from lamplighter.cli import COMMANDS, main
from lamplighter.cli.language import find_language, help_texts, say, set_language, wrap_cells
from lamplighter.cli.texts_zh import TEXTS_ZH
from schemas.texts import Catalogue, Language, parse_template
from tests.support.texts_in_code import Literals, find_sentences
from tests.test_texts import CJK, UNSPACED, python_files, without_phrases

ROOT = Path(__file__).parent.parent.parent
# Files of the command line whose texts are not printed as sentences, and why.
UNSEEN_FILES = {
    "lamplighter/cli/help_texts_zh.py": "the catalogue",
    "lamplighter/cli/server_texts_zh.py": "the catalogue",
    "lamplighter/cli/texts_zh.py": "the catalogue",
    "lamplighter/cli/service_units.py": "files that `install` writes, with English comments",
}
# What a command of the server prints when it cannot start.
STARTS = (
    *("schemas/settings_schema.py", "schemas/settings_loader.py", "schemas/host_config.py", "schemas/credentials.py"),
    *("edge/process.py", "edge/settings.py", "edge/server/certificate.py", "runner/app.py", "runner/settings.py"),
    *("runner/engines/selection.py", "runner/trial/rules.py", "runner/trial/trial.py", "bus/spans.py"),
)
UNSEEN: set[Literals] = {
    ("returning true from eof_received()",),  # a line of asyncio's log
    (  # a line of the log
        (
            "it has another public key than the one that joined hosts pin, so the old one is still served: renew "
            "with the same key, or restart to serve the new one, and join every host again"
        ),
    ),
    ("the runner of up",),  # the name of a key
    ("JSON cannot represent this number",),  # turned into another error
    ("per minute",),  # a unit
    ("of at least",),  # words of "a number of at least 1", which is translated as a whole
    ("of at most",),
    ("a list", ", each item ", ""),  # the same
    (" of at most ", " items"),
    (" of at least ", " items"),
    ("pip install lamplighter-server",),
    ("Read-only file system",),  # the kernel's words, which are looked for in a log
    ("lamplighter hosts add",),  # commands
    ("lamplighter hosts add --relay",),
    ("lamplighter hosts token",),
    ("[bold green]Lamplighter is running.[/]  url ", "\nkey ", ""),
}
ENGLISH_WORDS = re.compile(r"[A-Za-z,]+(?: [A-Za-z,]+){3}")


def run_cli(*argv: str, **environ: str) -> subprocess.CompletedProcess[str]:
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "LAMPLIGHTER"))
    }
    return subprocess.run(
        [sys.executable, "-m", "lamplighter", *argv],
        env={**inherited, "COLUMNS": "80", "LAMPLIGHTER_URL": "http://127.0.0.1:9", **environ},
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
        timeout=60,
    )


@pytest.mark.parametrize(
    ("environ", "language"),
    [
        ({"LANG": "zh_CN.UTF-8"}, "zh"),
        ({"LANG": "zh"}, "zh"),
        ({"LANG": "zh-Hans"}, "zh"),
        ({"LANG": "ZH_TW"}, "zh"),
        ({"LANG": "de_DE.UTF-8"}, "en"),
        ({"LANG": "zhuang"}, "en"),
        ({}, "en"),
        ({"LC_MESSAGES": "zh_CN", "LANG": "de_DE"}, "zh"),
        ({"LC_ALL": "C", "LC_MESSAGES": "zh_CN", "LANG": "zh_CN"}, "en"),
        ({"LC_ALL": "", "LANG": "zh_CN"}, "zh"),
        ({"LAMPLIGHTER_LANG": "en", "LC_ALL": "zh_CN"}, "en"),
        ({"LAMPLIGHTER_LANG": "zh", "LC_ALL": "C"}, "zh"),
    ],
)
def test_the_environment_decides(environ: dict[str, str], language: str):
    assert find_language(environ) == language


def test_no_text_is_missing_from_the_catalogue():
    known = {parse_template(english, chinese).literals for english, chinese in TEXTS_ZH.items()}
    missing = [
        f"{sentence.place}: {'{}'.join(sentence.literals)}"
        for file in python_files("lamplighter", *STARTS)
        if (name := file.relative_to(ROOT).as_posix()) not in UNSEEN_FILES
        for sentence in find_sentences(file, name)
        if (sentence.literals[0].removeprefix("lamplighter: "), *sentence.literals[1:]) not in known
        and sentence.literals not in UNSEEN
    ]
    assert "\n".join(missing) == "", "add the Chinese to lamplighter/cli/texts_zh.py"


def test_every_help_text_is_translated():
    def walk(command: click.Command) -> list[str]:
        inner = command.commands.values() if type(command) is click.Group else ()
        return [*help_texts(command), *(text for one in inner for text in walk(one))]

    context = click.Context(main)
    commands = [found for name in COMMANDS if (found := main.get_command(context, name)) is not None]
    texts = {text for command in (main, *commands) for text in walk(command)} | {text for *_, text in COMMANDS.values()}
    assert len(texts) > 80, "the walker found next to nothing"
    chinese = {text: Catalogue(TEXTS_ZH).translate(text) for text in sorted(texts)}
    assert [text for text, shown in chinese.items() if not re.search(CJK, shown)] == []
    # The entry of another text, such as "{endpoint} on {host}", would leave English words.
    assert [shown for shown in chinese.values() if ENGLISH_WORDS.search(re.sub(r"\[.*?\]", "", shown))] == []


def test_entries_are_whole():
    catalogue = Catalogue(TEXTS_ZH)
    for english, chinese in TEXTS_ZH.items():
        names = parse_template(english, chinese).names
        values = {name: f"v{index}" for index, name in enumerate(names)}
        assert catalogue.translate(english.format_map(values)) == chinese.format_map(values), english
        assert not UNSPACED.search(without_phrases(chinese)), chinese


@pytest.mark.parametrize(
    ("argv", "shown"),
    [
        (("--nonsense",), "错误：没有选项 '--nonsense'。"),
        (("nonsense",), "错误：没有命令 'nonsense'。"),
        (("jobs", "--limt", "3"), "错误：没有选项 '--limt'。您是否想用 '--limit'？"),
        (("jobs", "--limit", "x"), "错误：'--limit' 的值无效：'x' 不是有效的 integer range。"),
        (("jobs", "--limit", "0"), "错误：'--limit' 的值无效：0 不在范围 1<=x<=500 内。"),
        (("jobs", "--limit"), "错误：选项 '--limit' 需要一个值。"),
        (("jobs", "--json=1"), "错误：选项 '--json' 不带值。"),
        (("jobs", "more"), "错误：多余的参数：more"),
        (("jobs", "--status", "x"), "错误：'--status' 的值无效：'x' 不是可选值："),
        (("job",), "错误：缺少参数 'ID'。"),
        (("job", ""), "错误：'ID' 的值无效：值为空"),
        (("upload", "no-such-file"), "错误：'FILES...' 的值无效：文件 'no-such-file' 不存在。"),
        (("submit", "echo", "--tag", "x"), "没有响应"),
        (("jobs",), "lamplighter: http://127.0.0.1:9 没有响应（"),
    ],
)
def test_errors_are_chinese_with_the_same_exit_code(argv: tuple[str, ...], shown: str):
    chinese, english = run_cli(*argv, LANG="zh_CN.UTF-8"), run_cli(*argv)
    assert shown in chinese.stderr
    assert "Error" not in chinese.stderr
    assert "Usage" not in chinese.stderr
    assert (chinese.returncode, chinese.stdout) == (english.returncode, english.stdout)


def test_help_is_chinese_and_fits_the_terminal():
    for argv in (("--help",), ("up", "--help"), ("hosts", "--help"), ("--lang", "zh", "keys", "rotate", "--help")):
        done = run_cli(*argv, LC_ALL="zh_CN.UTF-8")
        assert done.returncode == 0
        assert done.stdout.startswith("用法：")
        assert max(map(cell_len, done.stdout.splitlines())) <= 80
    assert run_cli("--help", LC_ALL="zh_CN.UTF-8", LAMPLIGHTER_LANG="en").stdout.startswith("Usage:")


def test_json_is_the_same_in_every_language():
    printed = [run_cli("--lang", language, "doctor", "--json").stdout for language in ("en", "zh")]
    found = [[{**row, "what": row["what"].split(" GB")[-1]} for row in json.loads(text)] for text in printed]
    assert found[0] == found[1]
    errors = [run_cli("--lang", language, "jobs", "--json").stderr for language in ("en", "zh")]
    assert errors[0] == errors[1]


def test_doctor_is_chinese():
    shown = run_cli("doctor", LANG="zh_CN.UTF-8").stdout
    assert shown.splitlines()[0].split() == ["检查项", "结果", "处理方法"]
    assert "启动：lamplighter up；或用 --url 选择其他地址" in shown


def test_lines_break_between_chinese_characters_but_not_inside_words():
    text = "如果 systemd 正在运行，立即启动服务。"
    lines = wrap_cells(text, 12)
    assert "".join(line.replace(" ", "") for line in lines) == text.replace(" ", "")
    assert all(cell_len(line) <= 14 for line in lines)  # a stop stays with the character before it
    assert any("systemd" in line for line in lines)
    assert not [line for line in lines if line.startswith(("，", "。"))]
    assert wrap_cells("一\n\n二", 10) == ["一", "", "二"]


def test_say_follows_the_language_of_the_process():
    assert say("no jobs yet") == "no jobs yet"
    set_language(Language.ZH)
    try:
        assert say("no jobs yet") == "还没有任务"
    finally:
        set_language(Language.EN)
