"""The language of the command line, chosen once at its start: `--lang`, LAMPLIGHTER_LANG, else the locale's variables.

Texts are written in English and pass through `say`. The Chinese catalogue is imported only where it is used.
`--json` prints the same in every language.
"""

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any

import click
from rich.cells import cell_len

from schemas.texts import Catalogue, Language

LANGUAGE_VARIABLE = "LAMPLIGHTER_LANG"
LOCALE_VARIABLES = ("LC_ALL", "LC_MESSAGES", "LANG")  # the first that is set decides (POSIX, 8.2)

_current = Language.EN


def find_language(environ: Mapping[str, str]) -> Language:
    """Return the language of an environment: Chinese for `zh`, `zh_CN.UTF-8`, `zh-Hans`…"""
    value = next((environ[name] for name in (LANGUAGE_VARIABLE, *LOCALE_VARIABLES) if environ.get(name)), "")
    return Language.ZH if re.match(r"zh([_.@-]|\Z)", value, re.IGNORECASE) else Language.EN


def set_language(language: Language) -> None:
    """Set the language of this process."""
    global _current  # noqa: PLW0603 - one process has one language, as with gettext
    _current = language


def current_language() -> Language:
    """Return the language of this process."""
    return _current


def say(text: str) -> str:
    """Return an English text of this program in the language of the process."""
    return text if _current is Language.EN else _catalogue().translate(text)


@cache
def _catalogue() -> Catalogue:
    from lamplighter.cli.texts_zh import TEXTS_ZH  # noqa: PLC0415 - the English command line does not need it

    return Catalogue(TEXTS_ZH)


def _set_from_option(context: click.Context, _: click.Parameter, given: str | None) -> None:
    if given is not None:
        set_language(Language(given))
        localize_help(context.command)


lang_option = click.option(
    "--lang",
    type=click.Choice([language.value for language in Language]),
    envvar=LANGUAGE_VARIABLE,
    is_eager=True,  # before a --help that follows
    expose_value=False,
    callback=_set_from_option,
    help="Language of texts [LAMPLIGHTER_LANG, else LC_ALL, LC_MESSAGES or LANG].",
)


def _split_paragraphs(docstring: str) -> list[str]:
    """Return the paragraphs of a docstring, each in one line."""
    return [" ".join(paragraph.split()) for paragraph in inspect.cleandoc(docstring).split("\n\n")]


def help_texts(command: click.Command) -> Iterator[str]:
    """Yield the English help texts of a command and its options."""
    yield from _split_paragraphs(command.help or "")
    yield from (param.help for param in command.params if isinstance(param, click.Option) and param.help)


def localize_help(command: click.Command) -> None:
    """Put the help of a command, of its options and of its subcommands into the language of the process."""
    if _current is Language.EN:
        return
    if command.help:
        command.help = "\n\n".join(map(say, _split_paragraphs(command.help)))
        command.short_help = command.help.partition("。")[0].partition("\n")[0]
    for param in command.params:
        if isinstance(param, click.Option) and param.help:
            param.help = say(param.help)
    if type(command) is click.Group:  # the program's own group loads each command when it is called
        for inner in command.commands.values():
            localize_help(inner)


class LocalizedFormatter(click.HelpFormatter):
    """Writes help in the language of the process. Chinese characters are two columns wide, and lines break at any."""

    def write_usage(self, prog: str, args: str = "", prefix: str | None = None) -> None:
        super().write_usage(prog, args, prefix if _current is Language.EN else say("Usage: "))

    def write_heading(self, heading: str) -> None:
        if _current is Language.EN:
            super().write_heading(heading)
        else:
            self.write(f"{'':>{self.current_indent}}{say(heading)}：\n")

    def write_text(self, text: str) -> None:
        if _current is Language.EN:
            super().write_text(text)
            return
        for line in wrap_cells(text, self.width - self.current_indent):
            self.write(f"{'':>{self.current_indent}}{line}".rstrip() + "\n")

    def write_dl(self, rows: Iterable[tuple[str, str]], col_max: int = 30, col_spacing: int = 2) -> None:
        if _current is Language.EN:
            super().write_dl(rows, col_max, col_spacing)
            return
        rows = list(rows)
        first = min(max(cell_len(term) for term, _ in rows), col_max) + col_spacing
        for term, text in rows:
            lines = wrap_cells(_localize_extra(text), max(self.width - first - 2, 10))
            padded = f"{'':>{self.current_indent}}{term}" + " " * (first - cell_len(term))
            if cell_len(term) > first - col_spacing:
                self.write(f"{'':>{self.current_indent}}{term}\n")
                padded = " " * (self.current_indent + first)
            for line in lines or [""]:
                self.write((padded + line).rstrip() + "\n")
                padded = " " * (self.current_indent + first)


def _localize_extra(text: str) -> str:
    """Localize what click appends to the help of an option, as in `How many.  [default: 20; 1<=x<=500]`."""
    base, bracket, extra = text.rpartition("  [")
    if not bracket:
        return say(text)
    parts = (say(part) for part in extra.removesuffix("]").split("; "))
    return f"{say(base)}  [{'；'.join(parts)}]"


_WRAP_UNIT = re.compile(r"\s+|[\x21-\x7e…]+[，。；：、）]?|.[，。；：、）]?", re.DOTALL)


def wrap_cells(text: str, width: int) -> list[str]:
    """Wrap `text` at `width` columns: between Chinese characters, or at spaces. Line breaks stay."""
    lines = []
    for paragraph in text.split("\n"):
        line = ""
        for unit in _WRAP_UNIT.findall(paragraph):
            if line and cell_len(line) + cell_len(unit.rstrip()) > width:
                lines.append(line.rstrip())
                line = ""
            line += unit if line or not unit.isspace() else ""
        lines.append(line.rstrip())
    return lines


def show_error(error: click.ClickException) -> None:
    """Print an error of click as click does, in the language of the process."""
    if _current is Language.EN:
        error.show()
        return
    context = error.ctx if isinstance(error, click.UsageError) else None
    if context is not None:
        click.echo(context.get_usage(), err=True)
        if context.command.get_help_option(context) is not None:
            click.echo(say(f"Try '{context.command_path} {context.help_option_names[0]}' for help.") + "\n", err=True)
    click.echo(say(f"Error: {error.format_message()}"), err=True)


def say_each(texts: Iterable[Any]) -> list[Any]:
    """Return the texts in the language of the process. What is no plain text stays as it is."""
    return [say(text) if type(text) is str else text for text in texts]
