"""Multi-task face models in JAX: joint and single-task training, and an honest comparison of the two."""

__version__ = '0.1.0'
