"""Readers of published data sets, and of a user's own."""
