"""CelebA's 40 attributes as papers on balancing compare methods: FAMO's protocol, every method an arm of one study.

64x64, the nine-layer network, Adam at 3e-4, batches of 256, 15 epochs, the best epoch by the mean F1 on validation,
against 40 single-task models. Prepare CelebA at 64x64 and name it: --config.data.dir=data/celeba64.
`benchmarks/celeba40.py` runs it and sets Delta-m on F1, its median, average precision and cost beside the published
values.

Where it departs from FAMO's code: pixels are normalised as ImageNet's are (which the first batch norm undoes but for
its momentum), weights start as torchvision draws them, dwa's ratios are of successive 25 steps (there of a sliding
window), and each method's whole gradient is clipped to norm 1. There PCGrad's, CAGrad's and GradDrop's shared part is;
for all others the clipping comes before the backward pass and does nothing. The uncertainties are no parameters of its
optimizer on CelebA and so stay at 1: its row is the plain sum's half; here they are learned, from there.
"""

from ml_collections import ConfigDict

from mtl_jax.configs import default
from mtl_jax.objectives import OBJECTIVES

EPOCH = 636  # Batches of 256 in 162,770 images.
LEFT_OUT = ('fixed', 'pivrg')  # The plain sum is the arm `joint`; scores from validation do not reach the second.
# Numbers that the papers leave to the network's own optimizer learn as fast as it does.
OPTIONS: dict[str, str] = dict.fromkeys(('imtl_l', 'imtl', 'ldc_mtl'), 'objective.options.learning_rate=3e-4') | {
  'uncertainty': 'objective.options.learning_rate=3e-4 objective.options.start=0.0',
  'dwa': 'objective.options.steps_per_epoch=25',
}


def get_config() -> ConfigDict:
  config = default.get_config()
  config.tasks = 'attributes/*'
  config.data.augment = dict.fromkeys(config.data.augment, 0.0) | {'flip': False}
  config.model.backbone = 'celeba_cnn'
  config.model.head = 'linear'
  config.model.dtype = 'float32'
  config.optimizer.name = 'adam'
  config.optimizer.learning_rate = 3e-4
  config.optimizer.schedule = 'constant'
  config.optimizer.weight_decay = 0.0
  config.train.steps = 15 * EPOCH
  config.train.batch_size = 256
  config.train.log_every_steps = 159
  config.eval.every_steps = EPOCH
  config.eval.metric = '*/macro_f1'
  config.study.num_seeds = 3
  with config.study.unlocked():
    config.study.variants = {
      name: f'objective.name={name} {OPTIONS.get(name, "")}'.strip() for name in OBJECTIVES if name not in LEFT_OUT
    }
  config.study.arms = ('single', 'joint', *config.study.variants)
  return config
