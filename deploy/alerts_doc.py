"""Print docs/alerts.md from the table of alert rules. `./justw docs` writes the file; a test compares it."""

import textwrap

from deploy.alert_rules import RULES, AlertRule, duration

LINE_LIMIT_CHARS = 120

HEAD = """# Alerts

`./justw docs` makes this page from `deploy/alert_rules.py`; a test keeps it current. The same table makes
[rules.yaml](../deploy/prometheus/rules.yaml), which Prometheus reads: [observe.md](observe.md) shows how.

Every alert has the labels `severity` and `condition`, and the annotations `summary`, `action` and `page` (the section
of this page about it). `critical`: jobs are refused, or the edge cannot power a host on or off. `warning`: the
installation still works, but needs attention soon, or costs more than it should.

| alert | severity | fires when |
|---|---|---|
"""


def document() -> str:
    """Return the whole text of docs/alerts.md."""
    rows = [f"| [{rule.name}](#{rule.anchor}) | {rule.severity} | {_first_sentence(rule.meaning)} |" for rule in RULES]
    return HEAD + "\n".join(rows) + "\n" + "".join(_section(rule) for rule in RULES)


def _first_sentence(text: str) -> str:
    return text.partition(". ")[0].removesuffix(".")


def _wrap(text: str) -> str:
    return textwrap.fill(text, LINE_LIMIT_CHARS, break_long_words=False, break_on_hyphens=False)


def _section(rule: AlertRule) -> str:
    held = (
        f"when this has held for {duration(rule.threshold.for_s)}" if rule.threshold.for_s else "as soon as this holds"
    )
    return f"""
## {rule.title}

`{rule.name}` ({rule.severity}) fires {held}:

```promql
{rule.promql}
```

{_wrap(f"**What it means.** {rule.meaning}")}

{_wrap(f"**What to do.** {rule.action}")}

```sh
{rule.command}
```
"""


if __name__ == "__main__":
    print(document(), end="")
