"""Does joint training help attributes or landmarks? Shared layers that learn, on a frozen MobileNetV2; 10 seeds.

Prepare the data at 224x224 and name the weights: --config.data.dir=data/celeba224 --config.model.weights=FILE
"""

from ml_collections import ConfigDict

from mtl_jax.configs import default


def get_config() -> ConfigDict:
  config = default.get_config()
  config.data.augment = dict.fromkeys(config.data.augment, 0.0) | {'flip': False}  # Features are computed once.
  config.model.backbone = 'mobilenet_v2'
  config.model.freeze = 'backbone'
  config.model.trunk_features = (512, 256)  # What is shared, and learns.
  config.train.steps = 1_200  # About 20 epochs of 7,365 images.
  config.train.batch_size = 128
  config.train.log_every_steps = 50
  config.optimizer.weight_decay = 0.05
  config.optimizer.warmup_steps = 100
  config.optimizer.ema_decay = 0.98
  config.eval.every_steps = 100
  config.study.num_seeds = 10
  config.study.learning_rates = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
  config.study.num_tuning_seeds = 2
  return config
