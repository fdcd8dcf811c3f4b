"""What a study took and was made of, as rows for its page: cost, learning rates, configuration, data, versions."""

import datetime
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mtl_jax.report.page import FIELDS, field_text
from mtl_jax.report.runs import flat
from mtl_jax.report.scoreboard import MISSING
from mtl_jax.study.record import Record


def cost(study: Mapping[str, Any], kept: Record) -> list[dict[str, Any]]:
  """Rows of figures by arm, each with what it is of the reference's."""
  seconds = {arm: kept.tuning_seconds(arm) for arm in kept.arms}
  wanted = (
    ('Parameters', lambda arm: study['cost'][arm].get('params')),
    ('FLOPs an image, forward', lambda arm: study['cost'][arm].get('flops_per_image')),
    ('Training a seed, s', lambda arm: study['cost'][arm].get('seconds')),
    ('Choosing learning rates, s', seconds.get),
    ('Latency of one image, ms', lambda arm: study['cost'][arm].get('latency_ms')),
  )
  rows = [{'name': 'Models', 'cells': [_models(kept, arm) for arm in study['arms']]}]
  for name, value in wanted:
    each = [value(arm) for arm in study['arms']]
    if any(each):
      rows.append({'name': name, 'cells': [_with_ratio(one, each[0]) for one in each]})
  return rows


def _models(kept: Record, arm: str) -> str:
  return str(len(kept.arms[arm].programs)) if arm in kept.arms else MISSING


def _with_ratio(value: float | None, reference: float | None) -> str:
  if not value:
    return MISSING
  text = f'{value:,.0f}' if value >= 100 else f'{value:.3g}'
  for size, suffix in ((1e12, 'T'), (1e9, 'G'), (1e6, 'M')):
    if value >= size:
      text = f'{value / size:.3g} {suffix}'
      break
  return f'{text} (\N{MULTIPLICATION SIGN}{value / reference:.2f})' if reference and value is not reference else text


def rates(study: Mapping[str, Any], kept: Record) -> list[dict[str, Any]]:
  """For each program the learning rate it was given, and what was tried."""
  rows = []
  for program, rate in study['learning_rates'].items():
    tried = kept.tuning.get(program, {})
    rows.append(
      {
        'program': program,
        'rate': f'{rate:g}',
        'tried': list(_tried(tried)),
        'edge': bool(tried) and rate in (min(tried), max(tried)),
        'seconds': sum(result.seconds for results in tried.values() for result in results),
      }
    )
  return rows


def _tried(tried: Mapping[float, Sequence[Any]]) -> Iterator[str]:
  for rate, results in tried.items():
    scores = [result.score for result in results if result.score is not None and not result.diverged_at]
    if results:
      yield f'{rate:g}: ' + (f'{sum(scores) / len(scores):.4g}' if len(scores) == len(results) else 'diverged')


def fields(kept: Record) -> dict[str, str]:
  """The configuration's fields that matter most, and all of the study's own."""
  known = flat(kept.config.to_dict())
  names = [name for name in (*FIELDS, 'eval.metric') if name in known and name != 'optimizer.learning_rate']
  names += [name for name in known if name.startswith('study.')]
  return {name: field_text(known[name]) for name in names if known[name] not in ((), '')}


def facts(study: Mapping[str, Any]) -> dict[str, str]:
  """Data, seeds, versions, device and dates."""
  data = study.get('data', {})
  counts = data.get('splits') or {'test': data.get('num_test')}
  return {
    'data': str(data.get('directory', MISSING)),
    'checksum': str(data.get('checksum', MISSING)),
    'images': ', '.join(f'{name} {count}' for name, count in counts.items()),
    'seeds': ', '.join(map(str, study['seeds'])),
    **study.get('versions', {}),
    'device': str(study.get('device', MISSING)),
    'study': str(study.get('date', MISSING)),
    'page written': datetime.datetime.now(datetime.UTC).strftime('%Y-%m-%d %H:%M UTC'),
  }
