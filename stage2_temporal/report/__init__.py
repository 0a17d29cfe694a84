"""The report of a run: one self-contained HTML file that any browser opens, offline, with or without JavaScript."""

from stage2_temporal.report.page import write_report

__all__ = ["write_report"]
