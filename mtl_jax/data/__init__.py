"""Data sets: readers, synthetic faces, prepared sets, and batches."""
