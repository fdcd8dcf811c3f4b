"""Studies: joint and single-task models trained with several seeds, and tests of their differences."""
