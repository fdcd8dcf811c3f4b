"""The multi-task example of PyTorch's blog on real faces: age and gender from a small conv net, on UTKFace.

It trains on random tensors; here ages and genders are those of UTKFace (`mtl-jax prepare utkface`). As there: two
blocks of 16 and 32 channels, a head of 128 for each task, squared error on the age in years plus cross-entropy on the
gender, Adam at 1e-3, 50 epochs. `--config.objective.standardize=true` learns ages in units of their spread instead, so
that the two losses are of one size.
"""

from ml_collections import ConfigDict

from mtl_jax.configs import default


def get_config() -> ConfigDict:
  config = default.get_config()
  config.tasks = 'age,gender'
  config.data.augment = dict.fromkeys(config.data.augment, 0.0) | {'flip': False}
  config.model.backbone = 'convnet'
  config.model.head_features = 128
  config.objective.weights = ConfigDict({'age': 1.0, 'gender': 1.0})
  config.objective.standardize = False
  config.optimizer.name = 'adam'
  config.optimizer.schedule = 'constant'
  config.optimizer.weight_decay = 0.0
  config.optimizer.clip_norm = 0.0
  config.train.batch_size = 32
  config.train.steps = 29_600  # 50 epochs of all of UTKFace's 18,950 train images; of fewer, 50 * images / 32.
  config.eval.every_steps = 592  # Once an epoch.
  config.checkpoint.every_steps = 592
  return config
