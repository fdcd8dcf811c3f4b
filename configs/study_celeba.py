"""Does joint training help attributes or landmarks? Shared layers that learn, on a frozen MobileNetV2; 10 seeds."""

from mtl_jax.configs.study_celeba import get_config

__all__ = ['get_config']
