"""Prepared sets: writes them atomically, reads and checks them, and caches those in buckets."""
