"""MkDocs hook: the tables of reference/settings.md, made from the settings classes themselves."""

from __future__ import annotations

import json
from typing import Any

from features.config import CONFIG_SECTIONS, Config
from features.head_config import SETTINGS, HeadConfig
from features.strict_model import StrictModel

PAGE = "reference/settings.md"
HEADS_MARK, SECTIONS_MARK = "<!-- heads -->", "<!-- sections -->"


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Put the tables in the place of their marks."""
    if page.file.src_uri != PAGE:
        return markdown
    defaults = {name: Config.model_fields[name].get_default() for name in CONFIG_SECTIONS if name != "head"}
    tables = [f"## [{name}]\n\n{settings_table(type(section))}" for name, section in defaults.items()]
    heads = [f"### {name}\n\n{model.when}\n\n{settings_table(model)}" for name, model in SETTINGS.items()]
    return markdown.replace(SECTIONS_MARK, "\n".join(tables)).replace(HEADS_MARK, "\n".join(heads))


def settings_table(model: type[StrictModel]) -> str:
    """A row per setting: its name, default and description."""
    rows = [
        f"| `{name}` | {_shown(field.get_default(call_default_factory=True))} | {_line(field.description)} |\n"
        for name, field in model.model_fields.items()
        if not (name == "name" and issubclass(model, HeadConfig))  # it is in the heading
    ]
    return "| setting | default | meaning |\n| --- | --- | --- |\n" + "".join(rows) if rows else ""


def _shown(value: object) -> str:
    return "unset" if value is None else f"`{json.dumps(value)}`"


def _line(description: str | None) -> str:
    return " ".join((description or "").split()).replace("|", "\\|")
