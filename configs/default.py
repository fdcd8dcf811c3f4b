"""The default configuration; it lies in the package so that an installed `mtl-jax` finds it anywhere."""

from mtl_jax.configs.default import get_config

__all__ = ['get_config']
