"""A comparison as one HTML page that opens offline."""

from finetune.report.page import write_page

__all__ = ["write_page"]
