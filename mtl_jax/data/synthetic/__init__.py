"""Synthetic faces, drawn with exact labels."""
