"""Batches: sampling rows, mixing data sets, augmenting, and moving them to devices."""
