"""Evaluated runs side by side: a table for the terminal, a page for the browser."""

from mtl_jax.report.page import write_report
from mtl_jax.report.runs import find_runs
from mtl_jax.report.scoreboard import comparison, headlines, text_table

__all__ = ['comparison', 'find_runs', 'headlines', 'text_table', 'write_report']
