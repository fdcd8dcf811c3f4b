"""CelebA's 40 attributes as papers on balancing compare methods: FAMO's protocol, every method an arm of one study."""

from mtl_jax.configs.celeba40_protocol import get_config

__all__ = ['get_config']
