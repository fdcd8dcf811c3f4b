"""Ways of weighing losses and balancing gradients, each an arm of one study: does one serve joint training best?"""

from mtl_jax.configs.study_methods import get_config

__all__ = ['get_config']
