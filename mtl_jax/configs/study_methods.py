"""Ways of weighing losses and balancing gradients, each an arm of one study: does one serve joint training best?

Beside them are both tasks alone, the plain sum (`joint`) and other fixed weights. What learns is a shared layer and the
heads over a frozen MobileNetV2: prepare at 224x224, and name --config.data.dir and --config.model.weights=FILE.
"""

from ml_collections import ConfigDict

from mtl_jax.configs import study_celeba
from mtl_jax.objectives import OBJECTIVES

# Attributes to landmarks.
FIXED = {'fixed_10_to_1': 0.1, 'fixed_3_to_1': 0.33, 'fixed_1_to_3': 3.0, 'fixed_1_to_10': 10.0}


def get_config() -> ConfigDict:
  config = study_celeba.get_config()
  config.model.trunk_features = (256,)  # What is shared, and learns.
  config.model.head_features = 128
  config.train.steps = 800
  config.optimizer.warmup_steps = 50
  config.optimizer.ema_decay = 0.0
  config.study.num_seeds = 3
  config.study.learning_rates = (1e-3, 3e-3)
  config.study.num_tuning_seeds = 1
  with config.study.unlocked():
    config.study.variants = {
      **{name: f'objective.weights.landmarks={weight}' for name, weight in FIXED.items()},
      **{name: f'objective.name={name}' for name in OBJECTIVES if name != 'fixed'},
    }
  config.study.arms = ('single', 'joint', *config.study.variants)
  return config
