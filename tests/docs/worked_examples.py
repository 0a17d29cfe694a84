"""Read the code blocks of a Markdown page, and make a small data set that they can run on."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from tests.helpers import write_clips

SMALL_CONFIG = """
[data]
layout = "competition"
path = "data/sample"
target = "ego_speed"
fps = 10.0

[frames]
width = 64
height = 48

[backbone]
name = "EfficientNetLite0"
cut = "block3b_add"
top = false

[head]
name = "ridge"

[train]
epochs = 2
batch = 8
"""


@dataclass(frozen=True)
class CodeBlock:
    """A fenced block.

    Attributes:
        language: what follows the fence, such as `python`.
        heading: the heading that the block is under.
        text: its lines.
    """

    language: str
    heading: str
    text: str

    @property
    def file(self) -> str | None:
        """The file whose content this is, named in a comment in the first line."""
        match = re.match(r"# (\S+/\S+\.\w+)\n", self.text)
        return match[1] if match else None


def code_blocks(page: Path) -> list[CodeBlock]:
    """Read the fenced blocks of a page."""
    blocks, heading = [], ""
    pattern = re.compile(
        r"^#+ (?P<heading>[^\n]+)$|^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
    )
    for match in pattern.finditer(page.read_text(encoding="utf-8")):
        if match["text"] is None:
            heading = match["heading"]
        else:
            blocks.append(CodeBlock(match["language"], heading, match["text"]))
    return blocks


def make_small_project(folder: Path) -> None:
    """Write what the pages call `configs/sample.toml`, but for a dozen clips of small images."""
    (folder / "configs").mkdir(parents=True)
    (folder / "configs" / "sample.toml").write_text(SMALL_CONFIG, encoding="utf-8")
    write_clips(folder / "data" / "sample", {"Train": 8, "Validation": 3, "Test": 3})
