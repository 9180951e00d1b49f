"""Texts for people in English and Chinese: the languages, and the catalogue that translates English sentences.

The code writes English, with its values in place. A catalogue is a table from English to Chinese in which each value
is a named placeholder:

    "you have no asset sha256:{sha256}": "您没有文件 sha256:{sha256}"

It recognises a sentence by the text around the values. So sentences that arrive as plain text are translated as well:
those of records, of other hosts, and of libraries. A sentence that no table has stays English.
tests/test_texts.py demands an entry for each sentence of the code.
"""

from collections.abc import Iterator, Mapping
from enum import StrEnum
from functools import cached_property
from string import Formatter
from typing import NamedTuple

_TEXT_CHARS_LIMIT = 4000  # a longer text is not one of our sentences
_NESTING_LIMIT = 4
# Placeholders whose value is a sentence or a phrase itself, so that it is translated too.
NESTED_NAMES = frozenset({"why", "message", "error", "reason", "problem", "remedy", "more", "what", "who"})


class Language(StrEnum):
    """A language of the user texts; the value is its tag in `Accept-Language`."""

    EN = "en"
    ZH = "zh"


class Template(NamedTuple):
    """An English sentence cut at its placeholders: `literals` stand around the values of `names`."""

    literals: tuple[str, ...]
    names: tuple[str, ...]
    translation: str

    def match(self, text: str) -> dict[str, str] | None:
        """Return the values in `text` by name, or None if it is another sentence. Linear in the text's length."""
        if not self.names:
            return {} if text == self.literals[0] else None
        end = len(text) - len(self.literals[-1])
        at = len(self.literals[0])
        if end < at or not text.startswith(self.literals[0]) or not text.endswith(self.literals[-1]):
            return None
        values = {}
        for name, literal in zip(self.names[:-1], self.literals[1:-1], strict=True):
            found = text.find(literal, at, end)
            if found < 0:
                return None
            values[name] = text[at:found]
            at = found + len(literal)
        values[self.names[-1]] = text[at:end]
        return values


def parse_template(english: str, translation: str) -> Template:
    """Return the template of a catalogue's entry. Raises ValueError if a placeholder has no name or no text beside it.

    Both are mistakes in a table, which tests/test_texts.py finds.
    """
    literals, names = [""], []
    for literal, name, _, _ in Formatter().parse(english):
        literals[-1] += literal
        if name is not None:
            if not name.isidentifier() or name in names:
                raise ValueError(f"{english!r}: the placeholder {name!r} is not a name, or occurs twice")
            names.append(name)
            literals.append("")
    if not "".join(literals).strip() or "" in literals[1:-1]:
        raise ValueError(f"{english!r}: there must be text between two placeholders")
    return Template(tuple(literals), tuple(names), translation)


class Catalogue:
    """Translates English sentences to Chinese by tables that are merged."""

    def __init__(self, *tables: Mapping[str, str]) -> None:
        self._tables = tables

    def translate(self, text: str) -> str:
        """Return `text` in Chinese, or `text` itself if no table has it."""
        return self._translate(text, _NESTING_LIMIT)

    def localize(self, text: str, language: Language) -> str:
        """Return the English `text` in `language`."""
        return self.translate(text) if language is Language.ZH else text

    def _translate(self, text: str, depth: int) -> str:
        if depth == 0 or len(text) > _TEXT_CHARS_LIMIT:
            return text
        for template in self._candidates(text):
            values = template.match(text)
            if values is not None:
                shown = {
                    name: self._translate(value, depth - 1) if name in NESTED_NAMES else value
                    for name, value in values.items()
                }
                return template.translation.format_map(shown)
        return text

    def _candidates(self, text: str) -> Iterator[Template]:
        """Yield the templates that may match: those that start with the same word, then those that start with a value.

        Those with the most text come first, and those that start with a value last.
        """
        for start in (text, text.partition(" ")[0], ""):
            yield from self._templates.get(start, ())

    @cached_property
    def _templates(self) -> Mapping[str, list[Template]]:
        """The templates by how they start; made at the first use, since most processes only write English."""
        entries = [entry for table in self._tables for entry in table.items()]
        templates = [parse_template(english, chinese) for english, chinese in entries]
        templates.sort(key=lambda template: (template.literals[0] == "", -sum(map(len, template.literals))))
        index: dict[str, list[Template]] = {}
        for template in templates:
            word, space, _ = template.literals[0].partition(" ")
            start = template.literals[0] if not template.names else word if space else ""
            index.setdefault(start, []).append(template)
        return index
