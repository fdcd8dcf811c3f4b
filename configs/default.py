"""The default configuration, which others start from; mtl_jax/config/fields.py has every field with its meaning."""

from mtl_jax.configs.default import get_config

__all__ = ['get_config']
