"""The default configuration: every field there is, with its meaning and unit. Variants override a few of them."""

from ml_collections import ConfigDict, FieldReference


def get_config() -> ConfigDict:
  """The joint model of all attributes and landmarks, sized for an accelerator."""
  config = ConfigDict()
  # Tasks to learn, by name, separated by commas; one task alone is the single-task model. `attributes/*` makes
  # each attribute a task of its own.
  config.tasks = FieldReference('attributes,landmarks', field_type=object)  # Or a tuple of names.

  config.data = data = ConfigDict()
  data.dir = ''  # Folder of a prepared set (`mtl-jax prepare`).
  data.dirs = ()  # Or folders of several, whose images are of one size: each batch then holds rows of each.
  data.weights = ()  # The share of each of them in a batch, in any unit; empty: in proportion to their train splits.
  # Labels that are another set's under other names, as `task/label=task/label`, such as
  # `smile/Smiling=attributes/Smiling`; a task whose labels are all renamed is gone.
  data.rename = ()
  # What a batch holds equally many rows of, to within one: `identity` (persons), `task/label` (the values of a label
  # such as `attributes/Smiling`), in each set of a mixture by itself, or `domain` (the sets of a mixture: equal
  # weights). Train rows without it are left out; those of a set that has it nowhere are all drawn. Empty: no balance.
  data.balance = ''
  # Where batches come from: resident (the train split in device memory, a large one divided over the devices), streamed
  # (read from the prepared set while the devices compute), or auto: resident where it fits. Both give the same bits.
  data.mode = 'auto'
  data.resident_share = 0.5  # Largest share of a device's memory that auto lets the split take, from 0 to 1.
  # Largest share of a set's images that may turn out to be corrupt before the run stops, from 0 to 1. One that does is
  # named once; another image takes its place, and its labels are masked.
  data.corrupt_share = 0.001
  # Folder where outputs of frozen stages are kept, computed once, where nothing is augmented and their statistics
  # are fixed; empty: `features` beside the workdir, none: compute them from the images in every step.
  data.feature_cache = ''
  data.attributes = ()  # Names of the attributes to keep; empty keeps all.
  # Drops labels of the train split, by train.seed and row id alone; empty keeps all. `attributes:0.1,landmarks:0.5`
  # keeps those shares of the rows' labels, `disjoint` one task's a row, `disjoint:attributes=3,landmarks=1` by weight.
  data.keep_labels = ''
  data.augment = augment = ConfigDict()
  augment.flip = True  # Mirror half of the images; landmarks swap sides.
  augment.shift = 0.05  # Largest shift, as a fraction of the side.
  augment.zoom = 0.1  # Largest change of scale: 0.1 draws from 1/1.1 to 1.1.
  augment.rotate = 0.0  # Largest turn, in degrees.
  augment.brightness = 0.1  # Largest change of brightness, in standard deviations of ImageNet's pixels.
  augment.contrast = 0.1  # Largest relative change of contrast.

  config.model = model = ConfigDict()
  model.backbone = 'resnet18'  # See BACKBONES in mtl_jax/models/multitask.py.
  model.width = 0  # Features of the backbone's first layer, all others in proportion; 0 is the published network.
  model.sharing = 'hard'  # How tasks share the backbone: see mtl_jax/models/sharing.
  model.sharing_options = ConfigDict()  # Options of that way by name, such as `experts` of mmoe: see its file.
  # What reads the features for a task: linear, mlp, per_output, soft_argmax or upsampled_soft_argmax (heat maps, for
  # landmarks): see models/heads.py.
  model.head = 'mlp'
  model.heads = ConfigDict()  # Heads of single tasks by name, such as `landmarks: soft_argmax`.
  model.stem = 'auto'  # imagenet, small, or auto: small for images up to 96 pixels a side.
  # Normalisation of nets with convolutions: batch, group, none, or auto: as published. Statistics of batch norm are
  # over the global batch, on however many devices; norm_rows takes them over so many of its rows at a time (rows a
  # device: then devices do not wait for each other).
  model.norm = 'auto'
  model.norm_rows = 0  # 0: all.
  model.remat = False  # Keep less for the backward pass and compute it again: a third more work for less memory.
  model.head_features = 256  # Width of the hidden layers of all heads but linear.
  model.dtype = 'auto'  # Type of the computation: float32, bfloat16, or auto: bfloat16 on GPU and TPU.
  model.weights = ''  # File of pretrained weights for the backbone; empty starts from random ones.
  # What does not learn: `backbone`, or `stageN`, its stages up to number N (of a ResNet 0 is the stem, 4 the last);
  # empty trains everything.
  model.freeze = ''
  # Batch statistics of what is frozen: fixed, or drift: taken from each batch, and their averages go on moving.
  model.frozen_statistics = 'fixed'
  model.trunk_features = ()  # Widths of dense layers after the backbone's pooling, for the tasks to share.

  config.objective = objective = ConfigDict()
  # How the losses become one: fixed, or a method of mtl_jax/objectives (its `OBJECTIVES` lists them).
  objective.name = 'fixed'
  objective.options = ConfigDict()  # The method's own, such as `options.c` of cagrad: see its file for the defaults.
  objective.grain = 'tasks'  # What counts as one loss: tasks, or outputs: each of 40 attributes, landmarks as one.
  # Of `fixed`; tasks not listed weigh 1. Listed are common ones, so that a weight of one that a set lacks is no slip.
  known = ('attributes', 'landmarks', 'pose', 'age', 'race', 'gender', 'smile', 'glasses')
  objective.weights = ConfigDict(dict.fromkeys(known, 1.0))
  # The gradient of each head's own parameters, where a method balances those of the shared part: plain (of its losses),
  # or weighted by the method's weights, as in LibMTL's Nash-MTL, FairGrad, ExcessMTL and SDMGrad.
  objective.heads = 'plain'
  # Methods at the shared parameters: backward passes side by side (0: as many as fit into memory; one on a CPU or on
  # several devices), and for those with a Gram matrix the steps from one to the next and the rows of a batch that it is
  # taken from (0: all of them).
  objective.chunk = 0
  objective.gram_every_steps = 1
  objective.gram_rows = 0
  objective.log = False  # Log weights, gradient norms and conflicts; `fixed` and the like then cost a little more.
  # Tasks coupled by what is known of their relation, beside the losses: see docs/matching.md. Weights of 0 do nothing.
  objective.matching = matching = ConfigDict()
  matching.relations = ()  # Built-in ones (expressions, celeba), or files of your own: see objectives/matching.
  matching.distribution = 0.0  # Weight of distribution matching: what a task predicts against what others expect.
  matching.soft_co_annotation = 0.0  # Weight of what targets' labels say softly of the source.
  # Weight of labels that others imply, in their task's loss, a weighted mean in which true ones weigh 1.
  matching.co_annotation = 0.0
  matching.table = 'given'  # given, binary (0 and 1) or estimated: counted where source and target are labelled.
  matching.count_in = 'train'  # Where: train or val, which keeps all labels whatever data.keep_labels drops.
  matching.smoothing = 1.0  # Added to every count (Laplace).
  # What is matched: targets to what the source expects, sources to what their targets expect, or both.
  matching.direction = 'targets'
  # Of the own prediction p from what is expected, q: kl, reverse_kl, jensen_shannon, cross_entropy or one_sided.
  matching.divergence = 'kl'
  matching.stop_gradient = 'none'  # Which of them does not move: none, p or q.
  matching.score = 'mean'  # Soft co-annotation by the mean of a class's units, or by the posterior given all labels.
  matching.relevance = False  # Weigh targets by the share of their entropy that the source explains, not alike.
  matching.clip = 1e-3  # q lies between this and 1 less it.
  matching.ramp_steps = 0  # Steps over which the weights of both losses grow linearly from 0.
  objective.standardize = True  # Learn coordinates in units of the train split's spread; False: in [0, 1].
  objective.coordinate_loss = 'squared'  # Of landmarks, in those units: squared, l1, smooth_l1 or wing.

  config.optimizer = optimizer = ConfigDict()
  optimizer.name = 'adamw'  # adam, adamw or sgd.
  optimizer.learning_rate = 1e-3  # Peak.
  optimizer.schedule = 'cosine'  # cosine (to zero at the last step) or constant.
  optimizer.warmup_steps = 0  # Steps of linear warm-up, part of train.steps, of which at least one is none.
  optimizer.weight_decay = 1e-4  # Of kernels only; decoupled in adamw, added to the gradient in adam and sgd.
  optimizer.momentum = 0.9  # Of sgd (Nesterov).
  optimizer.clip_norm = 1.0  # Largest global norm of the gradient; 0 does not clip.
  optimizer.ema_decay = 0.0  # Of the averaged weights that evaluation uses; 0 keeps none.

  config.train = train = ConfigDict()
  train.steps = 10_000  # Optimizer steps.
  train.batch_size = 256  # Examples in the global batch, over all devices and processes.
  # Micro-batches that the shared part reads a batch in, one after the other, for a forward pass more: only one's
  # activations are kept. The gradient is the big batch's, but batch norm's statistics are of a micro-batch.
  train.accumulate = 1
  # Devices over which each large array of parameters and of the optimizer is divided, for backbones too large for one;
  # they take the same rows of a batch. 1: every device holds the whole state. A resumed run may change it.
  train.model_devices = 1
  train.seed = 0  # Decides initial weights, the order of the data, and augmentation.
  train.steps_per_dispatch = 0  # Steps compiled into one call; 0: 1 on CPU, 8 on GPU and TPU, more over kept features.
  train.log_every_steps = 20  # A line of metrics.jsonl holds means over this many steps.
  # Where a step's loss or gradient is NaN or infinite: stop (exit code 3), skip (leave its update out), or rollback (to
  # the last checkpoint, and from there on without that step's batch).
  train.on_nonfinite = 'stop'
  train.max_nonfinite = 10  # Steps that are left out or gone back for; one more stops the run.
  # Seconds in which nothing is completed (a step, a batch of an evaluation, a save) until the run is ended with exit
  # code 4; compiling does not count. 0: never.
  train.watchdog_secs = 1800.0

  config.eval = evaluation = ConfigDict()
  evaluation.every_steps = 1_000  # Evaluate on the validation split; 0: only at the end.
  evaluation.batch_size = 256  # Examples a step.
  evaluation.metric = 'loss'  # What picks the best checkpoint: loss, <task>/<metric>, */<metric> (mean over tasks).
  evaluation.patience = 0  # Stop after so many evaluations without a better one; 0 never stops early.

  config.checkpoint = checkpoint = ConfigDict()
  checkpoint.every_steps = 1_000  # Save for resuming; the best one on validation is kept besides.

  config.study = study = ConfigDict()
  study.arms = ('single', 'joint')  # What is compared, the reference first: see mtl_jax/study/arms.py.
  # More arms: the joint model with some fields set, by name, as `objective.name=uncertainty train.batch_size=64`.
  study.variants = ConfigDict()
  study.num_seeds = 5  # Seeds that are tested, from train.seed on; both sides of a pair share theirs.
  study.learning_rates = ()  # The grid tried on validation for every program; empty: optimizer.learning_rate alone.
  study.num_tuning_seeds = 1  # Seeds, other than those tested, that learning rates are chosen on.
  study.match = 'steps'  # What both sides have alike: the steps of every model, or the arm's whole `compute`.
  study.num_resamples = 1_000  # Of the test split's people, for the intervals.
  study.replicas_at_once = 0  # Trained in one program; 0: measured.

  config.affinity = affinity = ConfigDict()
  affinity.every_steps = 10  # Steps from one look at the tasks' gradients to the next.
  # Of the look-ahead step along one task's plain gradient; 0: the run's learning rate at that step, as in the paper.
  # A step so long that it raises the task's own loss says nothing; the report names such tasks.
  affinity.step_size = 0.0
  affinity.networks = 3  # The most groups to suggest: all numbers of them up to this one.
  affinity.transfer = True  # Train every task alone, and heads of all others on its frozen features.
  affinity.transfer_steps = 0  # Of each of these; 0: train.steps.
  return config.lock()
