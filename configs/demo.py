"""The demo's configuration: a narrow ResNet-18 on synthetic faces, a minute a model on two CPU cores."""

from mtl_jax.configs.demo import get_config

__all__ = ['get_config']
