"""Readers of data sets as they are published, and of one's own."""
