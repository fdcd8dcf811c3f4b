"""Numbers of the JSON as text: metrics in their units, differences with as many decimals as they are sure of."""

import math
from collections.abc import Sequence

from mtl_jax.metrics.metric import Metric
from mtl_jax.tasks import find_metric

MISSING = '—'


def metric(name: str) -> Metric:
  """A metric by its name in the JSON; one that no kind of task declares is a plain number."""
  return find_metric(name) or Metric(name, name.replace('_', ' '), name)


def directed(name: str) -> str:
  """A metric's name in a sentence, with an arrow up where higher is better, and down where lower is."""
  return f'{metric(name).phrase} {"↑" if metric(name).higher_is_better else "↓"}'


def level(value: float | None, name: str) -> str:
  """A value of a metric."""
  if value is None:
    return MISSING
  return f'{100 * value:.2f}%' if metric(name).percent else number(value)


def number(value: float) -> str:
  """A plain number to four significant figures; what is 0 but for rounding is 0."""
  return f'{round(value, 12) + 0.0:.4g}'.replace('-', '\N{MINUS SIGN}')


def signed(value: float | None, digits: int) -> str:
  if value is None:
    return MISSING
  text = f'{round(value, digits):+.{digits}f}' if round(value, digits) else f'{0:.{digits}f}'
  return text.replace('-', '\N{MINUS SIGN}')


def difference(value: float | None, name: str, ci95: Sequence[float] | None = None) -> tuple[str, str]:
  """A difference of a metric and its interval, to two significant figures of the interval's half width."""
  percent = metric(name).percent
  scale, unit = (100, ' points') if percent else (1, '')
  size = scale * ((ci95[1] - ci95[0]) / 2 if ci95 else abs(value or 0.0))
  digits = min(max(1 - math.floor(math.log10(size)) if size > 0 else 2, 2 if percent else 0), 5)
  shown = MISSING if value is None else signed(scale * value, digits) + unit
  return shown, ' to '.join(signed(scale * end, digits) for end in ci95) if ci95 else MISSING


def size(value: float | None, name: str) -> str:
  """A difference of a metric without its sign, to two significant figures."""
  if value is None:
    return MISSING
  percent = metric(name).percent
  rounded = float(f'{value * (100 if percent else 1):.2g}')  # In two steps, for `g` alone writes 1.2e+02.
  return f'{rounded:g}{" points" * percent}'


def p_text(p_value: float | None) -> str:
  if p_value is None:
    return MISSING
  return '< 0.001' if p_value < 0.001 else f'{p_value:.2g}'


def percent(value: float | None) -> str:
  """A number that is in per cent, with its sign."""
  return MISSING if value is None else f'{signed(value, 2)}%'


def share(value: float | None) -> str:
  """A share in per cent with its sign, to two significant figures."""
  return MISSING if value is None else f'{100 * value:+.2g}%'.replace('-', '\N{MINUS SIGN}')


def quantity(value: float | None, reference: float | None = None) -> str:
  """A number of any size, and in brackets what it is of a reference."""
  if not value:
    return MISSING
  text = f'{value:,.0f}' if value >= 100 else f'{value:.3g}'
  for size, suffix in ((1e12, 'T'), (1e9, 'G'), (1e6, 'M')):
    if value >= size:
      text = f'{value / size:.3g} {suffix}'
      break
  return f'{text} (\N{MULTIPLICATION SIGN}{value / reference:.2f})' if reference else text


def name(task: str) -> str:
  """A task's or an output's name as words."""
  return task.replace('_', ' ')
