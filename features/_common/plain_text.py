"""Text from elsewhere as text: names in files may hold what a terminal or a spreadsheet would carry out.

For cells of CSV files see OWASP, "CSV Injection".
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import TextIO, cast

# control characters but tab and line feed, line separators, marks that turn the direction of writing, half surrogates
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
_CONTROLS = re.compile(f"{_UNPRINTABLE.pattern}|[\t\n]")
_FORMULA_START = "=+\\-@\t\r\n＝＋－＠"  # the wide ones are read like the others in some languages
# at the start of a cell, and after what some spreadsheets take for the end of one
_FORMULA = re.compile(f"(^|[;\t\r\n])(?='*[{_FORMULA_START}])")
_DISARMED = re.compile(f"(^|[;\t\r\n])'(?='*[{_FORMULA_START}])")


def printable(text: str) -> str:
    r"""Write out the characters that a terminal would obey or hide, except tabs and line ends.

    >>> printable("a\x1b[31mb")
    'a\\x1b[31mb'
    """
    return _UNPRINTABLE.sub(lambda match: ascii(match[0])[1:-1], text)


def is_plain_name(name: str) -> bool:
    """Whether a name has no character that `printable` would write out, no tab and no line end."""
    return not _CONTROLS.search(name)


def one_line(text: str) -> str:
    """Like `printable`, with tabs and line ends written out too."""
    return _CONTROLS.sub(lambda match: ascii(match[0])[1:-1], text)


def disarm_cell(cell: object) -> object:
    """A cell of a CSV file that no spreadsheet takes for a formula: an apostrophe in front. Numbers stay as they are.

    >>> disarm_cell("=1+1"), disarm_cell("-1.5"), disarm_cell("Train/1")
    ("'=1+1", '-1.5', 'Train/1')
    """
    if not isinstance(cell, str) or _is_number(cell):
        return cell
    return _FORMULA.sub(r"\1'", cell.replace("\r", "\\r"))  # Python's csv does not quote it, but ends a row there


def rearm_cell(cell: str) -> str:
    """The cell that `disarm_cell` was given."""
    return _DISARMED.sub(r"\1", cell)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return text.isascii() and not text[:1].isspace()


class _PrintableStream:
    """A text stream that passes on what it is given, `printable`."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return self._stream.write(printable(text))

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)


@contextmanager
def printable_stdout() -> Iterator[None]:
    """Within this block, what is printed is `printable`."""
    with redirect_stdout(cast(TextIO, _PrintableStream(sys.stdout))):
        yield
