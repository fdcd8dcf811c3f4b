"""Every field of a configuration, declared once: default, kind, range, meaning and unit, and what resuming may change.

The default configuration, the checks, overrides, `--help`, JSON and docs/config.md follow from it. None may be None.
"""

import dataclasses
import functools
from typing import Any

from ml_collections import ConfigDict, FieldReference

from mtl_jax import kinds
from mtl_jax.kinds import (
  FLAG,
  NAMES,
  OPTION,
  PART,
  PARTS,
  TASKS,
  TEXT,
  VALUES,
  Kind,
  Open,
  Partial,
  choice,
  real,
  several,
  text,
  whole,
)


@dataclasses.dataclass(frozen=True)
class Field:
  """One field.

  Attributes:
    name: with its groups, as `train.steps`.
    default: its value where a configuration says nothing; of an open group those of its fields.
    kind: what it may hold.
    meaning: with its unit; files are named from the package on.
    resumable: True where a resumed run may change it freely: the batches, and so the bits of the run, stay the same.
  """

  name: str
  default: Any
  kind: Kind | Open
  meaning: str
  resumable: bool = False

  def __post_init__(self) -> None:
    if isinstance(self.kind, Kind):  # So a number needs a kind of numbers, which has a range.
      kinds.require(self.default, self.kind, field=self.name)


SHARE, AT_LEAST_0, POSITIVE = real(0, 1), real(0), real(0, above=True)
COUNT, COUNT_OR_0 = whole(1), whole(0)
# Of `objective.weights`, so that a weight of one that a set lacks is no slip.
COMMON_TASKS = ('attributes', 'landmarks', 'pose', 'age', 'race', 'gender', 'smile', 'glasses')

# fmt: off
_DECLARED = (
  Field('tasks', 'attributes,landmarks', TASKS,
    'Tasks to learn; one task alone is the single-task model. `attributes/*` makes each attribute a task of its own; '
    '`all`, or none named, is all that the data has.'),
  Field('plugins', (), PARTS,
    'Files with kinds of tasks of your own, FILE.py, or FILE.py:NAME for one of its classes: see docs/own_parts.md.'),

  Field('data.dir', '', TEXT, 'Folder of a prepared set (`mtl-jax prepare`).', resumable=True),
  Field('data.dirs', (), NAMES,
    'Or folders of several prepared sets, whose images are of one size: each batch then holds rows of '
    'each. Names with commas stand in quotes.', resumable=True),
  Field('data.weights', (), several(POSITIVE, 'numbers above 0'),
    'The share of each of data.dirs in a batch, in any unit; empty: in proportion to their train splits.'),
  Field('data.rename', (), NAMES,
    "Labels that are another set's under other names, as `task/label=task/label`, such as "
    '`smile/Smiling=attributes/Smiling`; a task whose labels are all renamed is gone.'),
  Field('data.balance', '', TEXT,
    'What a batch holds equally many rows of, to within one: `identity` (persons), `task/label` (the values of a '
    'label such as `attributes/Smiling`), in each set of a mixture by itself, or `domain` (the sets of a mixture: '
    'equal weights). Train rows without it are left out; those of a set that has it nowhere are all drawn. Empty: no '
    'balance.'),
  Field('data.mode', 'auto', choice('auto', 'resident', 'streamed'),
    'Where batches come from: resident (the train split in device memory, a large one divided over the devices), '
    'streamed (read from the prepared set while the devices compute), or auto: resident where it fits. Both give the '
    'same bits.', resumable=True),
  Field('data.resident_share', 0.5, SHARE, "Largest share of a device's memory for the split in auto.", resumable=True),
  Field('data.corrupt_share', 0.001, SHARE,
    "Largest share of a set's images that may turn out to be corrupt before the run stops. One that does is named "
    'once; another image takes its place, and its labels are masked.'),
  Field('data.feature_cache', '', TEXT,
    'Folder where outputs of frozen stages are kept, computed once, where nothing is augmented and '
    'their statistics are fixed; empty: `features` beside the workdir, none: compute them from the '
    'images in every step.', resumable=True),
  Field('data.attributes', (), NAMES, 'Names of the attributes to keep; empty keeps all.'),
  Field('data.keep_labels', '', TEXT,
    'Drops labels of the train split, by train.seed and row id alone; empty keeps all. `attributes:0.1,landmarks:0.5` '
    "keeps those shares of the rows' labels, `disjoint` one task's a row, `disjoint:attributes=3,landmarks=1` by "
    'weight.'),
  Field('data.augment.flip', True, FLAG, 'Mirror half of the images; landmarks swap sides.'),
  Field('data.augment.shift', 0.05, real(0, 0.5), 'Largest shift, as a fraction of the side.'),
  Field('data.augment.zoom', 0.1, SHARE, 'Largest change of scale: 0.1 draws from 1/1.1 to 1.1.'),
  Field('data.augment.rotate', 0.0, real(0, 180), 'Largest turn, in degrees.'),
  Field('data.augment.brightness', 0.1, AT_LEAST_0, "Largest change, in standard deviations of ImageNet's pixels."),
  Field('data.augment.contrast', 0.1, SHARE, 'Largest relative change of contrast.'),

  Field('model.backbone', 'resnet18', PART,
    'The network that reads images: see BACKBONES in models/multitask.py; or one of your own, FILE.py:NAME.'),
  Field('model.width', 0, COUNT_OR_0,
    "Features of the backbone's first layer, all others in proportion; 0 is the published network."),
  Field('model.sharing', 'hard', PART, 'How tasks share the backbone: see models/sharing; or FILE.py:NAME.'),
  Field('model.sharing_options', {}, Open(OPTION),
    'Options of that way of sharing by name, such as `experts` of mmoe: see its file.'),
  Field('model.head', 'mlp', PART,
    'What reads the features for a task: linear, mlp, per_output, soft_argmax or upsampled_soft_argmax (heat maps, '
    'for landmarks): see models/heads.py; or FILE.py:NAME.'),
  Field('model.heads', {}, Open(PART), 'Heads of single tasks by name, such as `landmarks: soft_argmax`.'),
  Field('model.stem', 'auto', choice('auto', 'imagenet', 'small'),
    'First layers; auto: small for images up to 96 pixels a side.'),
  Field('model.norm', 'auto', choice('auto', 'batch', 'group', 'none'),
    'Normalisation of nets with convolutions; auto: as published. Statistics of batch norm are over the global batch, '
    'on however many devices.'),
  Field('model.norm_rows', 0, COUNT_OR_0,
    'Rows over which batch norm takes its statistics at a time (rows a device: then devices do not wait for each '
    'other); 0: all of the batch.'),
  Field('model.remat', False, FLAG, 'Compute again in the backward pass: a third more work for less memory.'),
  Field('model.head_features', 256, COUNT, 'Width of the hidden layers of all heads but linear.'),
  Field('model.dtype', 'auto', choice('auto', 'float32', 'bfloat16'),
    'Type of the computation; auto: bfloat16 on GPU and TPU.'),
  Field('model.weights', '', TEXT, 'File of pretrained weights for the backbone; empty starts from random ones.'),
  Field('model.freeze', '', text(r'|backbone|stage\d{1,3}', 'empty, backbone, or stageN, such as stage3'),
    'What does not learn: `backbone`, or `stageN`, its stages up to number N (of a ResNet 0 is the stem, 4 the last); '
    'empty trains everything.'),
  Field('model.frozen_statistics', 'fixed', choice('fixed', 'drift'),
    'Batch statistics of what is frozen; drift: taken from each batch, and their averages go on moving.'),
  Field('model.trunk_features', (), several(real(1), 'whole numbers'),
    "Widths of dense layers after the backbone's pooling, for the tasks to share."),

  Field('objective.name', 'fixed', PART,
    'How the losses become one: fixed, or a method of objectives (its `OBJECTIVES` lists them), or FILE.py:NAME.'),
  Field('objective.options', {}, Open(OPTION),
    "The objective's own options, such as `options.c` of cagrad: see its file for the defaults."),
  Field('objective.grain', 'tasks', choice('tasks', 'outputs'),
    'What counts as one loss: tasks, or outputs: each of 40 attributes, landmarks as one.'),
  Field('objective.weights', dict.fromkeys(COMMON_TASKS, 1.0), Open(AT_LEAST_0),
    'Weights of losses under `fixed`, and in the validation loss of every method; tasks not listed weigh 1.'),
  Field('objective.heads', 'plain', choice('plain', 'weighted'),
    "The gradient of each head's own parameters, where a method balances those of the shared part: plain (of its "
    "losses), or weighted by the method's weights, as in LibMTL's Nash-MTL, FairGrad and ExcessMTL."),
  Field('objective.chunk', 0, COUNT_OR_0,
    'Backward passes side by side, for methods at the shared parameters; 0: as many as fit into memory; one on a CPU '
    'or on several devices.'),
  Field('objective.gram_every_steps', 1, COUNT, 'Steps from one Gram matrix to the next, for methods with one.'),
  Field('objective.gram_rows', 0, COUNT_OR_0, 'Rows of a batch that the Gram matrix is of; 0: all of them.'),
  Field('objective.log', False, FLAG,
    'Log weights, gradient norms and conflicts; `fixed` and the like then cost a little more.'),
  # Tasks coupled by what is known of their relation, beside the losses: see docs/matching.md. Weights of 0 do nothing.
  Field('objective.matching.relations', (), NAMES,
    'Built-in ones (ages, celeba, clothing, clothing_counted, expressions, races), or files of your own: see '
    'objectives/matching.'),
  Field('objective.matching.distribution', 0.0, AT_LEAST_0,
    'Weight of distribution matching: what a task predicts against what others expect.'),
  Field('objective.matching.soft_co_annotation', 0.0, AT_LEAST_0,
    "Weight of what targets' labels say softly of the source."),
  Field('objective.matching.co_annotation', 0.0, AT_LEAST_0,
    "Weight of labels that others imply, in their task's loss, a weighted mean in which true ones weigh 1."),
  Field('objective.matching.table', 'given', choice('given', 'binary', 'estimated'),
    'Tables of the relations as given, of 0 and 1 (binary), or counted where source and target are labelled '
    '(estimated).'),
  Field('objective.matching.count_in', 'train', choice('train', 'val'),
    'The split where tables are counted; val keeps all labels whatever data.keep_labels drops.'),
  Field('objective.matching.smoothing', 1.0, AT_LEAST_0, 'Number added to every count (Laplace).'),
  Field('objective.matching.direction', 'targets', choice('targets', 'sources', 'both'),
    'What is matched: targets to what the source expects, sources to what their targets expect, or both.'),
  Field('objective.matching.divergence', 'kl',
    choice('kl', 'reverse_kl', 'jensen_shannon', 'cross_entropy', 'one_sided'),
    'Divergence of the own prediction p from what is expected, q.'),
  Field('objective.matching.stop_gradient', 'none', choice('none', 'p', 'q'), 'Which of p and q does not move.'),
  Field('objective.matching.score', 'mean', choice('mean', 'posterior'),
    "Soft co-annotation by the mean of a class's units, or by the posterior given all labels."),
  Field('objective.matching.relevance', False, FLAG,
    'Weigh targets by the share of their entropy that the source explains, not alike.'),
  Field('objective.matching.clip', 1e-3, real(1e-6, 0.25), 'q lies between this and 1 less it.'),
  Field('objective.matching.ramp_steps', 0, COUNT_OR_0, "Steps in which both losses' weights grow linearly from 0."),
  Field('objective.matching.anneal_steps', 0, COUNT_OR_0,
    "Steps in which both losses' weights fall linearly to 0, where they stay; 0: they do not fall."),
  Field('objective.matching.rows', 'all', choice('all', 'unlabelled'),
    'Rows that both losses teach: all, or those without a label of what they teach.'),
  Field('objective.matching.confidence', 0.0, real(0, 1),
    'Probability that the likeliest class of the side that teaches must have for a row to be matched.'),
  Field('objective.standardize', True, FLAG, "Learn coordinates in units of the train split's spread, not [0, 1]."),
  Field('objective.coordinate_loss', 'squared', TEXT,
    'Loss of landmarks, in units of objective.standardize: squared, l1, smooth_l1 or wing.'),

  Field('optimizer.name', 'adamw', PART,
    "The update rule: any of Optax's by its name, or FILE.py:NAME, a function of the learning rate and options."),
  Field('optimizer.options', {}, Open(OPTION), "The update rule's own options, such as `options.b1` of adamw."),
  Field('optimizer.learning_rate', 1e-3, AT_LEAST_0, 'The largest learning rate, at the end of the warm-up.'),
  Field('optimizer.schedule', 'cosine', choice('cosine', 'constant', 'warmup_stable_decay'),
    'Learning rate after the warm-up; cosine: to zero at the last step; warmup_stable_decay: constant, then linearly '
    'to zero in the last optimizer.decay_steps. Under the last two a run may go on longer: see docs/training.md.'),
  Field('optimizer.decay_steps', 0, COUNT_OR_0,
    'Last steps of train.steps in which warmup_stable_decay falls; 0: a fifth of them.'),
  Field('optimizer.warmup_steps', 0, COUNT_OR_0, 'Steps of linear warm-up, part of train.steps, at most all but one.'),
  Field('optimizer.weight_decay', 1e-4, AT_LEAST_0,
    'Decay of kernels only; decoupled where the update rule has it (adamw, lion), else added to the gradient.'),
  Field('optimizer.momentum', 0.9, SHARE, 'Momentum of sgd (Nesterov).'),
  Field('optimizer.clip_norm', 1.0, AT_LEAST_0, 'Largest global norm of the gradient; 0 does not clip.'),
  Field('optimizer.ema_decay', 0.0, SHARE, 'Decay of the averaged weights that evaluation uses; 0 keeps none.'),

  Field('train.steps', 10_000, COUNT, 'Optimizer steps; more of them go on with a run: see docs/training.md.'),
  Field('train.batch_size', 256, COUNT, 'Examples in the global batch, over all devices and processes.'),
  Field('train.accumulate', 1, COUNT,
    "Micro-batches that the shared part reads a batch in, one after the other, for a forward pass more: only one's "
    "activations are kept. The gradient is the big batch's, but batch norm's statistics are of a micro-batch."),
  Field('train.model_devices', 1, COUNT,
    'Devices over which each large array of parameters and of the optimizer is divided, for backbones too large for '
    'one; they take the same rows of a batch. 1: every device holds the whole state.', resumable=True),
  Field('train.seed', 0, COUNT_OR_0, 'Decides initial weights, the order of the data, and augmentation.'),
  Field('train.steps_per_dispatch', 0, COUNT_OR_0,
    'Steps compiled into one call; 0: 8 on GPU and TPU, on CPU 1, or 4 in runs of 1,000 steps or more; more over kept '
    'features.'),
  Field('train.log_every_steps', 20, COUNT, 'A line of metrics.jsonl holds means over this many steps.'),
  Field('train.trackers', ('tensorboard',), several(choice('tensorboard', 'clu', 'wandb', 'mlflow'), 'names'),
    'Where the lines of metrics.jsonl go besides: tensorboard (event files), clu (event files by CLU; needs '
    'TensorFlow), wandb, mlflow, each by its own client; see docs/training.md.', resumable=True),
  Field('train.on_nonfinite', 'stop', choice('stop', 'skip', 'rollback'),
    "Where a step's loss or gradient is NaN or infinite: stop (exit code 3), skip (leave its update out), or rollback "
    "(to the last checkpoint, and from there on without that step's batch).", resumable=True),
  Field('train.max_nonfinite', 10, COUNT_OR_0,
    'Steps that are left out or gone back for; one more stops the run.', resumable=True),
  Field('train.watchdog_secs', 1800.0, AT_LEAST_0,
    'Seconds in which nothing is completed (a step, a batch of an evaluation, a save) until the run is ended with '
    'exit code 4; compiling does not count. 0: never.', resumable=True),

  Field('eval.every_steps', 1_000, COUNT_OR_0, 'Steps between evaluations on validation; 0: only at the end.'),
  Field('eval.batch_size', 256, COUNT, 'Examples in a step of an evaluation.'),
  Field('eval.metric', 'loss', TEXT,
    'What picks the best checkpoint: loss, `<task>/<metric>`, `*/<metric>` (mean over tasks).'),
  Field('eval.patience', 0, COUNT_OR_0, 'Stop after so many evaluations without a better one; 0 never stops early.'),

  Field('checkpoint.every_steps', 1_000, COUNT, 'Steps between saves for resuming; the best one is kept too.'),

  Field('study.arms', ('single', 'joint'), NAMES, 'Compared, reference first: studies/arms.py.', resumable=True),
  Field('study.variants', {}, Open(TEXT),
    'More arms: the joint model with some fields set, by name, as `objective.name=uncertainty train.batch_size=64`, or '
    'several networks that divide the tasks, as `tasks=smile,gender tasks=landmarks`.'),
  Field('study.num_seeds', 5, whole(1, 100_000),
    'Seeds that are tested, from train.seed on; both sides of a pair share theirs.', resumable=True),
  Field('study.learning_rates', (), several(POSITIVE, 'numbers above 0'),
    'The grid tried on validation for every program; empty: optimizer.learning_rate alone.', resumable=True),
  Field('study.grid', {}, Open(VALUES),
    'More fields whose values are tried on validation for every program that they matter to, with each other and with '
    'study.learning_rates, by their names: `study.grid.objective.matching.distribution=0.1,0.3,1`.', resumable=True),
  Field('study.num_tuning_seeds', 1, whole(1, 100_000),
    'Seeds, other than those tested, that the grid is chosen on.', resumable=True),
  Field('study.match', 'steps', choice('steps', 'compute'),
    "What both sides have alike: the steps of every model, or the arm's whole `compute`."),
  Field('study.num_resamples', 1_000, whole(100, 100_000),
    "Resamples of the test split's people, for the intervals.", resumable=True),
  Field('study.replicas_at_once', 0, COUNT_OR_0,
    'Replicas trained in one program; 0: one on each CPU device, up to 8 on others.', resumable=True),

  Field('sweep.space', {}, Open(VALUES),
    'What is searched, field by field by their names: `sweep.space.optimizer.learning_rate=log(3e-4,1e-2)`, a list of '
    'values, or range(A, B); docs/sweep.md.', resumable=True),
  Field('sweep.weights_of', (), NAMES,
    'Tasks, or groups of tasks, whose weights are searched too: above 0, and 1 on average.', resumable=True),
  Field('sweep.weight_steps', 10, whole(2, 1_000), 'Parts of the whole that weights have in a grid.', resumable=True),
  Field('sweep.sampler', 'sobol', choice('grid', 'random', 'sobol', 'halton', 'tpe', 'nsga2'),
    'How trials are chosen: every combination, at random, evenly (sobol, halton), or by what others have reached: tpe '
    'for one goal, nsga2 for several (of Optuna).', resumable=True),
  Field('sweep.trials', 32, whole(1, 1_000_000), 'Trials of a search; a grid has those that it has.', resumable=True),
  Field('sweep.batch', 8, COUNT, 'Trials at a time, where others wait for their results: tpe, nsga2, and a pruner.',
    resumable=True),
  Field('sweep.pruner', 'none', choice('none', 'median', 'halving'),
    'Gives trials up that do worse at an evaluation than half of those of earlier batches (of Optuna).',
    resumable=True),
  Field('sweep.num_seeds', 1, whole(1, 100_000), 'Seeds of a trial; they are not those of the confirmation.',
    resumable=True),
  Field('sweep.best', 'metric', choice('metric', 'gains', 'knee'),
    'What is best on validation: the greatest sweep.metric, the greatest weighted mean of gains over single-task '
    'models, or the knee of the front of the goals.', resumable=True),
  Field('sweep.metric', 'loss', TEXT,
    'As eval.metric; the loss is summed with the weights of the configuration, whatever those of a trial.',
    resumable=True),
  Field('sweep.gains', {}, Open(AT_LEAST_0), 'Weights of the gains of tasks or groups, 1 for those not listed.',
    resumable=True),
  Field('sweep.goals', (), NAMES,
    "What a front is of: `task/metric`, score (the sweep.metric) or speed (of training); empty: each task's main "
    'metric.', resumable=True),
  Field('sweep.match', 'steps', choice('steps', 'images'),
    'What trials of other batch sizes have alike: steps, or images, in fewer steps.', resumable=True),
  Field('sweep.methods', (), NAMES,
    'Objectives to set beside fixed weights, searched alike over the rest of the space, as cagrad,famo,nash_mtl.',
    resumable=True),
  Field('sweep.method_trials', 0, COUNT_OR_0,
    'Trials of each method and each single-task model; 0: sweep.trials, or one where there is nothing to choose.',
    resumable=True),
  Field('sweep.front_points', 8, COUNT_OR_0,
    'Trials on the front of the goals that are trained again, on seeds that the search did not see, to draw the front; '
    'where weights or methods are searched. 0: no front.', resumable=True),
  Field('sweep.confirm_seeds', 5, whole(1, 100_000),
    'Seeds, other than those of the search, that the best is confirmed on, beside the configuration as it is.',
    resumable=True),
  Field('sweep.preset', 'none', choice('none', 'learning_rate', 'batch_size'),
    'Sets other fields of the sweep: a learning-rate range test (1e-6 to 1), or batch sizes up to the knee of score '
    'and speed.', resumable=True),

  Field('affinity.every_steps', 10, COUNT, "Steps from one look at the tasks' gradients to the next."),
  Field('affinity.step_size', 0.0, AT_LEAST_0,
    "Length of the look-ahead step along one task's plain gradient; 0: the run's learning rate at that step, as in the "
    "paper. A step so long that it raises the task's own loss says nothing; the report names such tasks."),
  Field('affinity.networks', 3, whole(1, 1_000),
    'The most groups to suggest: all numbers of them up to this one.', resumable=True),
  Field('affinity.transfer', True, FLAG,
    'Train every task alone, and heads of all others on its frozen features.', resumable=True),
  Field('affinity.transfer_steps', 0, COUNT_OR_0, 'Steps of each training for affinity.transfer; 0: train.steps.'),
)
# fmt: on


FIELDS = {field.name: field for field in _DECLARED}
# Fields that a resumed run may change.
RESUMABLE = frozenset(field.name for field in _DECLARED if field.resumable)


def _nested(values: dict[str, Any]) -> dict[str, Any]:
  """Groups within groups of values by their whole names."""
  tree: dict[str, Any] = {}
  for name, value in values.items():
    *groups, leaf = name.split('.')
    functools.reduce(lambda node, group: node.setdefault(group, {}), groups, tree)[leaf] = value
  return tree


def _searchable(tree: Any) -> Any:
  """The same names, each for the values that are tried of it."""
  if isinstance(tree, dict):
    return Partial({name: _searchable(node) for name, node in tree.items()})
  return Open(VALUES) if isinstance(tree, Open) else VALUES


Tree = dict[str, 'Kind | Open | Tree']
TREE: Tree = _nested({name: field.kind for name, field in FIELDS.items()})
_GROUPS = ('tasks', 'plugins', 'data', 'model', 'objective', 'optimizer', 'train', 'eval')  # Some are refused later.
SEARCHED = _searchable({name: TREE[name] for name in _GROUPS})
TREE['study']['grid'] = TREE['sweep']['space'] = SEARCHED  # pyright: ignore[reportIndexIssue]
DEFAULTS = _nested({name: field.default for name, field in FIELDS.items()})


def get_config() -> ConfigDict:
  """The default configuration, locked: the joint model of all attributes and landmarks, sized for an accelerator."""
  tasks = FieldReference(DEFAULTS['tasks'], field_type=object)  # Text, or a tuple of names.
  return ConfigDict(DEFAULTS | {'tasks': tasks}).lock()
