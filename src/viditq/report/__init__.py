"""The report: what was compared, which is best, how it looks, on one page."""

from viditq.report.demo import PRESETS, run_demo
from viditq.report.page import REPORT_FILE, SHEET_FILE, write_contest_report, write_report

__all__ = [
    "PRESETS",
    "REPORT_FILE",
    "SHEET_FILE",
    "run_demo",
    "write_contest_report",
    "write_report",
]
