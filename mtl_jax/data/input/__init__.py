"""Batches: which rows a batch holds, from which sets, augmented, on which device."""
