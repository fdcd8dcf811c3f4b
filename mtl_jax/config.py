"""Configurations: from a Python file and `--config.a.b=v` overrides, to JSON and back; mistakes name the field."""

import difflib
import json
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from mtl_jax.configs import default
from mtl_jax.errors import ConfigError
from mtl_jax.platform import user_file


def load(path: Path, overrides: Sequence[str] = ()) -> ConfigDict:
  """The configuration of a file's `get_config()`, with overrides `a.b=value` applied, locked and checked."""
  config = _run_get_config(path)
  for override in overrides:
    apply_override(config, override)
  if isinstance(config.tasks, tuple):  # One way to write them, so that resuming sees no difference.
    config.tasks = ','.join(config.tasks)
  validate(config)
  return config.lock()


def _run_get_config(path: Path) -> ConfigDict:
  if not path.is_file():
    raise ConfigError(f'--config: no file {path}; variants lie in the folder configs/')
  config = user_file.call(path, 'get_config', raises=ConfigError, blame='--config: ')
  if not isinstance(config, ConfigDict):
    raise ConfigError(f'--config: get_config() of {path} gave {type(config).__name__}, not a ConfigDict')
  _check_fields(config, default.get_config())
  return config


def apply_override(config: ConfigDict, override: str) -> None:
  """Sets one field from text `a.b=value`; the value is read as the type of the field's present one."""
  name, equals, text = override.partition('=')
  if not equals:
    raise ConfigError(f'config.{name} has no value; write --config.{name}=VALUE')
  *parents, leaf = name.split('.')
  node = config
  for depth, part in enumerate(parents):
    node = _child(node, part, '.'.join(parents[:depth]))
    if not isinstance(node, ConfigDict):
      raise ConfigError(f'config.{".".join(parents[: depth + 1])} is a value and has no field {leaf!r}')
  parent = '.'.join(parents)
  present = OPEN[parent] if parent in OPEN and leaf else _child(node, leaf, parent)
  if isinstance(present, ConfigDict):
    raise ConfigError(f'config.{name} is a group; set one of its fields: {", ".join(present)}')
  with node.unlocked():
    if present is None and leaf in node:
      delattr(node, leaf)  # Its type binds nobody.
    node[leaf] = _parse(text, present, name)


NUMBERS = (
  'data.weights',
  'model.trunk_features',
  'study.learning_rates',
)  # Tuples of numbers; all others are of names.
# Groups whose fields are not known beforehand, with what those are like: tasks have weights and heads; options of an
# objective or a way of sharing may be of any kind, and it checks them itself.
OPEN: dict[str, Any] = {
  'objective.weights': 1.0,
  'objective.options': None,
  'model.heads': '',
  'model.sharing_options': None,
  'study.variants': '',
}


def _child(node: ConfigDict, part: str, path: str) -> Any:
  if part in node:
    return node[part]
  where = f'config.{path}' if path else 'config'
  near = difflib.get_close_matches(part, list(node), n=1, cutoff=0.4)
  hint = f'did you mean {near[0]!r}?' if near else f'it has {", ".join(node) or "no fields"}'
  raise ConfigError(f'{where} has no field {part!r}; {hint}')


def _parse(text: str, present: Any, name: str) -> Any:
  if present is None:
    return _literal(text)
  wanted = tuple if name == 'tasks' else type(present)
  try:
    if wanted is bool:
      return {'true': True, '1': True, 'false': False, '0': False}[text.lower()]
    if wanted is tuple:
      items = (item.strip().strip('\'"') for item in text.strip('()[] ').split(','))
      return tuple(float(item) if name in NUMBERS else item for item in items if item)
    return wanted(text)
  except (ValueError, KeyError):
    kinds = {bool: 'true or false', int: 'a whole number', float: 'a number', tuple: 'numbers with commas between'}
    kind = kinds.get(wanted, wanted.__name__)
    raise ConfigError(f'config.{name} must be {kind}, not {text!r}') from None


def _literal(text: str) -> Any:
  """A number, several with commas between, true, false, or else the text itself."""
  for read in (int, float, lambda text: tuple(float(item) for item in text.strip('()[] ').split(',') if item.strip())):
    try:
      return read(text)
    except ValueError:
      continue
  return {'true': True, 'false': False}.get(text.lower(), text)


def _check_fields(config: ConfigDict, reference: ConfigDict, path: str = '') -> None:
  """Every field of the reference is there with its type, and none besides, except in open groups."""
  is_open = path.rstrip('.') in OPEN
  for key in reference:
    if key not in config and not is_open:
      raise ConfigError(f'config.{path}{key} is missing; start from mtl_jax.configs.default')
  for key, value in config.items():
    expected: Any = OPEN[path.rstrip('.')] if is_open else _child(reference, key, path.rstrip('.'))
    if is_open and expected is None:
      if not isinstance(value, bool | int | float | str | tuple):
        raise ConfigError(f'config.{path}{key} must be a number, true or false, or a name, not {value!r}')
    elif isinstance(expected, ConfigDict) and isinstance(value, ConfigDict):
      _check_fields(value, expected, f'{path}{key}.')
    elif type(value) is not type(expected) and not _convertible(value, expected, f'{path}{key}'):
      kind, given = type(expected).__name__, type(value).__name__
      raise ConfigError(f'config.{path}{key} must be {kind}, not {given}')
    elif isinstance(value, tuple) and not all(_fits_tuple(item, f'{path}{key}') for item in value):
      kind = 'numbers' if f'{path}{key}' in NUMBERS else 'names in quotes'
      raise ConfigError(f'config.{path}{key} must hold {kind}, not {value}')


def _fits_tuple(item: Any, name: str) -> bool:
  return (isinstance(item, int | float) and not isinstance(item, bool)) if name in NUMBERS else isinstance(item, str)


def _convertible(value: Any, expected: Any, name: str) -> bool:
  """Whole numbers serve as floats; `tasks` may be a tuple of names."""
  whole_for_float = isinstance(expected, float) and isinstance(value, int) and not isinstance(value, bool)
  return whole_for_float or (name == 'tasks' and isinstance(value, tuple))


CHOICES = {
  'data.mode': ('auto', 'resident', 'streamed'),
  'model.stem': ('auto', 'imagenet', 'small'),
  'model.norm': ('auto', 'batch', 'group', 'none'),
  'model.dtype': ('auto', 'float32', 'bfloat16'),
  'model.frozen_statistics': ('fixed', 'drift'),
  'objective.grain': ('tasks', 'outputs'),
  'objective.heads': ('plain', 'weighted'),
  'objective.matching.table': ('given', 'binary', 'estimated'),
  'objective.matching.count_in': ('train', 'val'),
  'objective.matching.direction': ('targets', 'sources', 'both'),
  'objective.matching.stop_gradient': ('none', 'p', 'q'),
  'objective.matching.score': ('mean', 'posterior'),
  'study.match': ('steps', 'compute'),
  'optimizer.name': ('adam', 'adamw', 'sgd'),
  'optimizer.schedule': ('cosine', 'constant'),
  'train.on_nonfinite': ('stop', 'skip', 'rollback'),
}

# Least and largest values of the numeric fields; None sets no limit, but none may be infinite.
RANGES: dict[str, tuple[float, float | None]] = {
  'data.resident_share': (0, 1),
  'data.corrupt_share': (0, 1),
  'data.augment.shift': (0, 0.5),
  'data.augment.zoom': (0, 1),
  'data.augment.rotate': (0, 180),
  'data.augment.brightness': (0, None),
  'data.augment.contrast': (0, 1),
  'model.width': (0, None),
  'model.norm_rows': (0, None),
  'model.head_features': (1, None),
  'objective.chunk': (0, None),
  'objective.gram_every_steps': (1, None),
  'objective.gram_rows': (0, None),
  'objective.matching.distribution': (0, None),
  'objective.matching.soft_co_annotation': (0, None),
  'objective.matching.co_annotation': (0, None),
  'objective.matching.smoothing': (0, None),
  'objective.matching.clip': (1e-6, 0.25),
  'objective.matching.ramp_steps': (0, None),
  'optimizer.learning_rate': (0, None),
  'optimizer.warmup_steps': (0, None),
  'optimizer.weight_decay': (0, None),
  'optimizer.momentum': (0, 1),
  'optimizer.clip_norm': (0, None),
  'optimizer.ema_decay': (0, 1),
  'train.steps': (1, 2**31 - 1),
  'train.batch_size': (1, None),
  'train.accumulate': (1, None),
  'train.model_devices': (1, None),
  'train.seed': (0, 2**31 - 1),
  'train.steps_per_dispatch': (0, None),
  'train.log_every_steps': (1, None),
  'train.max_nonfinite': (0, None),
  'train.watchdog_secs': (0, None),
  'eval.every_steps': (0, None),
  'eval.batch_size': (1, None),
  'eval.patience': (0, None),
  'checkpoint.every_steps': (1, None),
  'study.num_seeds': (1, 100_000),
  'study.num_tuning_seeds': (1, 100_000),
  'study.num_resamples': (100, 100_000),
  'study.replicas_at_once': (0, None),
  'affinity.every_steps': (1, None),
  'affinity.step_size': (0, None),
  'affinity.networks': (1, 1_000),
  'affinity.transfer_steps': (0, 2**31 - 1),
}


def validate(config: ConfigDict) -> None:
  """Raises ConfigError for the first field that is out of range or no known choice."""
  for name, choices in CHOICES.items():
    choose(_get(config, name), choices, field=f'config.{name}')
  for name, (least, largest) in RANGES.items():
    value = _get(config, name)
    if not (math.isfinite(value) and value >= least and (largest is None or value <= largest)):
      bounds = f'finite and at least {least}' if largest is None else f'from {least} to {largest}'
      raise ConfigError(f'config.{name} must be {bounds}, not {value}')
  _validate_mixture(config.data)
  for rate in config.study.learning_rates:
    if not 0 < rate < math.inf:
      raise ConfigError(f'config.study.learning_rates must be finite and above 0, not {rate:g}')
  for task, weight in config.objective.weights.items():
    if not 0 <= weight < float('inf'):
      raise ConfigError(f'config.objective.weights.{task} must be a finite number of at least 0, not {weight:g}')
  _validate_frozen(config.model)


def _validate_mixture(data: ConfigDict) -> None:
  if data.dir and data.dirs:
    raise ConfigError('config.data.dir and config.data.dirs are both set; name one set by dir, or several by dirs')
  if data.weights and len(data.weights) != len(data.dirs):
    raise ConfigError(f'config.data.weights holds {len(data.weights)} numbers for {len(data.dirs)} config.data.dirs')
  if data.balance == 'domain' and (data.weights or not data.dirs):
    raise ConfigError(
      'config.data.balance=domain is for several sets, given by config.data.dirs, without config.data.weights'
    )
  for weight in data.weights:
    if not 0 < weight < math.inf:
      raise ConfigError(f'config.data.weights must be finite and above 0, not {weight:g}; leave out a set by its dir')


def _validate_frozen(model: ConfigDict) -> None:
  if not re.fullmatch(r'|backbone|stage\d{1,3}', model.freeze):
    raise ConfigError(f'config.model.freeze must be empty, backbone, or stageN, such as stage3, not {model.freeze!r}')
  for width in model.trunk_features:
    if not (width >= 1 and width == int(width)):
      raise ConfigError(f'config.model.trunk_features must be whole numbers of at least 1, not {width:g}')


def choose(value: str, choices: Sequence[str], *, field: str) -> str:
  """The value if it is one of the choices; else a ConfigError that names the field and the nearest choice."""
  if value in choices:
    return value
  near = difflib.get_close_matches(value, choices, n=1)
  hint = f'did you mean {near[0]!r}?' if near else f'choose from {", ".join(c or "(empty)" for c in choices)}'
  raise ConfigError(f'{field}: no choice {value!r}; {hint}')


def _get(config: ConfigDict, name: str) -> Any:
  value: Any = config
  for part in name.split('.'):
    value = value[part]
  return value


def with_fields(config: ConfigDict, **fields: object) -> ConfigDict:
  """A copy of a configuration with some fields, `a.b` written `a__b`, set."""
  copy = config.copy_and_resolve_references()
  with copy.unlocked():
    copy.update_from_flattened_dict({name.replace('__', '.'): value for name, value in fields.items()})
  return copy.lock()


def to_json(config: ConfigDict) -> dict[str, Any]:
  """Plain nested dictionaries with JSON's types."""
  return json.loads(json.dumps(config.to_dict()))


# Where one of these is missing or empty a configuration is not old but spoilt.
ESSENTIAL = ('tasks', 'data', 'model', 'objective', 'optimizer', 'train')


def from_json(value: dict[str, Any]) -> ConfigDict:
  """The configuration `to_json` wrote, in this version or one before: a field that is newer takes its default."""
  newer = (
    dict(_newer_fields(value, to_json(default.get_config()))) if all(value.get(name) for name in ESSENTIAL) else {}
  )
  config = ConfigDict(_lists_to_tuples({**value, **newer}))
  _check_fields(config, default.get_config())
  validate(config)
  return config.lock()


def _newer_fields(value: dict[str, Any], reference: dict[str, Any], path: str = '') -> Iterator[tuple[str, Any]]:
  """What a written configuration lacks of the reference, whole groups with what they have; open ones lack nothing."""
  for key, default_value in reference.items():
    inner = value.get(key, default_value)
    if isinstance(default_value, dict) and isinstance(inner, dict) and f'{path}{key}' not in OPEN:
      yield key, {**inner, **dict(_newer_fields(inner, default_value, f'{path}{key}.'))}
    elif key not in value:
      yield key, default_value


def _lists_to_tuples(value: Any) -> Any:
  if isinstance(value, dict):
    return {key: _lists_to_tuples(item) for key, item in value.items()}
  return tuple(value) if isinstance(value, list) else value


def differences(old: dict[str, Any], new: dict[str, Any], path: str = 'config') -> Iterator[str]:
  """One text `config.a.b: old -> new` for each field in which two configurations differ."""
  for key in sorted(old.keys() | new.keys()):
    before, after = old.get(key), new.get(key)
    if isinstance(before, dict) and isinstance(after, dict):
      yield from differences(before, after, f'{path}.{key}')
    elif before != after:
      yield f'{path}.{key}: {before!r} -> {after!r}'
