"""The demo's configuration: a narrow ResNet-18 on synthetic faces, a minute a model on two CPU cores."""

from ml_collections import ConfigDict

from mtl_jax.configs import celeba_joint


def get_config() -> ConfigDict:
  config = celeba_joint.get_config()
  config.model.width = 16
  config.train.steps = 200
  config.optimizer.learning_rate = 4e-3
  config.optimizer.warmup_steps = 40
  config.train.log_every_steps = 10
  config.eval.every_steps = 50
  config.checkpoint.every_steps = 100
  return config
