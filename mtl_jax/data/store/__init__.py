"""Prepared sets: their files, written whole, read and checked, cached from buckets."""
