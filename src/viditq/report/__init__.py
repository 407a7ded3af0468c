"""The report: what was compared, which is best, how it looks, on one page."""

from viditq.report.page import REPORT_FILE, SHEET_FILE, write_report

__all__ = ["REPORT_FILE", "SHEET_FILE", "write_report"]
