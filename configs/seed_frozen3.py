"""The recipe of the PyTorch project this one grew from: three attributes and landmarks over a frozen backbone."""

from mtl_jax.configs.seed_frozen3 import get_config

__all__ = ['get_config']
