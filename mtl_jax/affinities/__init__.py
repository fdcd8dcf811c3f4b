"""Measures of how tasks affect each other in training: look-aheads, transfer, and groups of tasks."""
