"""Do tasks help each other where no image has the labels of two? Coupled and uncoupled joint models on CelebA; 5 seeds.

Each image keeps the labels of one of three groups: who it is, traits, landmarks. docs/matching.md has the sweeps.
Prepare the data at 224x224 and name the weights: --config.data.dir=data/celeba224 --config.model.weights=FILE
"""

from ml_collections import ConfigDict

from mtl_jax.configs import study_celeba

WHO = ('Smiling', 'Male', 'Young')
TRAITS = (
  'High_Cheekbones',
  'Mouth_Slightly_Open',
  '5_o_Clock_Shadow',
  'Goatee',
  'Mustache',
  'No_Beard',
  'Sideburns',
  'Heavy_Makeup',
  'Wearing_Lipstick',
  'Wearing_Necktie',
  'Gray_Hair',
  'Bald',
  'Receding_Hairline',
  'Double_Chin',
)
# Ways of coupling, with strengths that were not tuned.
COUPLED = {
  'co_annotation': 'objective.matching.co_annotation=0.5',
  'matching': 'objective.matching.distribution=1',
  'soft_co_annotation': 'objective.matching.soft_co_annotation=0.3',
  'both': 'objective.matching.distribution=1 objective.matching.soft_co_annotation=0.3',
}


def get_config() -> ConfigDict:
  config = study_celeba.get_config()
  groups = {'who': WHO, 'traits': TRAITS}
  config.data.rename = tuple(f'attributes/{label}={task}/{label}' for task in groups for label in groups[task])
  config.tasks = 'who,traits,landmarks'
  config.data.keep_labels = 'disjoint:who=1,traits=1,landmarks=1'
  config.model.trunk_features = (256, 128)  # What is shared, and learns.
  config.model.head_features = 128
  config.train.steps = 500
  config.optimizer.learning_rate = 3e-3
  config.optimizer.warmup_steps = 50
  config.eval.every_steps = 50
  matching = config.objective.matching
  matching.relations = ('celeba',)
  matching.table = 'estimated'
  matching.count_in = 'val'  # The slice that is annotated for all; no arm learns from its images.
  matching.score = 'posterior'
  matching.relevance = True
  config.study.variants = COUPLED
  config.study.arms = ('single', 'joint', *COUPLED)
  config.study.num_seeds = 5
  config.study.learning_rates = ()  # No search of them.
  config.study.num_tuning_seeds = 1
  return config
