"""The multi-task example of PyTorch's blog on real faces: age and gender from a small conv net, on UTKFace."""

from mtl_jax.configs.utkface_blog import get_config

__all__ = ['get_config']
