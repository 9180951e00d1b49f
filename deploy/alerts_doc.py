"""Print docs/alerts.md from the table of alert rules. `just docs` writes the file; a test compares it."""

from deploy.alert_rules import RULES, AlertRule, duration

HEAD = """# Alerts

Made from `deploy/alert_rules.py` by `just docs`; a test compares. The same table makes
[rules.yaml](../deploy/prometheus/rules.yaml), which Prometheus reads: [observe.md](observe.md) shows how.

Every alert has the labels `severity` and `condition`, and the annotations `summary`, `action` and `page`, the section
here. `critical`: jobs are refused, or a machine does not do what the edge tells it. `warning`: that follows if nothing
is done.

| alert | severity | fires when |
|---|---|---|
"""


def document() -> str:
    """Return the whole text of docs/alerts.md."""
    rows = [f"| [{rule.name}](#{rule.anchor}) | {rule.severity} | {_first_sentence(rule.meaning)} |" for rule in RULES]
    return HEAD + "\n".join(rows) + "\n" + "".join(_section(rule) for rule in RULES)


def _first_sentence(text: str) -> str:
    return text.partition(". ")[0].removesuffix(".")


def _section(rule: AlertRule) -> str:
    held = f"for {duration(rule.threshold.for_s)}" if rule.threshold.for_s else "at once"
    return f"""
## {rule.title}

`{rule.name}` ({rule.severity}) fires {held} when this holds:

```promql
{rule.promql}
```

**What it means.** {rule.meaning}

**What to do.** {rule.action}

```sh
{rule.command}
```
"""


if __name__ == "__main__":
    print(document(), end="")
