"""Multi-task face models in JAX: joint and single-task training, and an honest comparison of the two."""

from mtl_jax.platform import xla

__version__ = '0.1.0'

xla.set_flags()  # Before JAX starts: see there.
