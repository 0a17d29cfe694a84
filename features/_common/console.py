"""Tables as text, for the terminal and for Markdown pages."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import tabulate

tabulate.MIN_PADDING = 0  # no extra space in headers, so that tables fit into 80 columns


def text_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, left: Collection[int] = (0,), markdown: bool = False
) -> str:
    """Lay out rows of formatted cells as a table, in Markdown if wanted; columns not in `left` are aligned right."""
    return tabulate.tabulate(
        rows,
        headers=header,
        tablefmt="github" if markdown else "simple",
        colalign=["left" if i in left else "right" for i in range(len(header))],
        disable_numparse=True,
        preserve_whitespace=True,
    )
