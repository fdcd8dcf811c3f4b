"""What every benchmark here says besides its figures: on what, with what, when; as a table and as JSON."""

import argparse
import datetime
import importlib.metadata
import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy', 'simplejpeg', 'torch')

VECTORS = {'avx512f': 'AVX-512', 'avx2': 'AVX2', 'asimd': 'NEON'}  # As the kernel names them, widest first.

Row = dict[str, Any]  # name, value, unit; perhaps ratio and what it is a ratio to; perhaps the target of the ratio.


def parser(description: str) -> argparse.ArgumentParser:
  """The flags that all benchmarks have."""
  made = argparse.ArgumentParser(description=description)
  made.add_argument('--quick', action='store_true', help='see that it works: seconds, and figures that mean nothing')
  made.add_argument('--json', type=Path, metavar='FILE', help='write the results to this file too')
  return made


def row(name: str, value: float, unit: str, *, to: Mapping[str, Any] | None = None, target: float | None = None) -> Row:
  """A result, and its ratio to another one in the same unit."""
  made: Row = {'name': name, 'value': value, 'unit': unit}
  if to is not None:
    made |= {'ratio': value / to['value'], 'ratio_to': to['name']}
  return made | ({} if target is None else {'target': target})


def spread(values: Sequence[float], name: str = 'value') -> Row:
  """The lowest and highest of several measurements of a row's value, or of its ratio."""
  return {f'{name}_low': min(values), f'{name}_high': max(values)}


def rates_in_turn(parts: Mapping[str, Callable[[], int]], *, rounds: int) -> dict[str, list[float]]:
  """Each part's rate in each round, in images/s; a call does its work to the end and says how many images that were.

  The parts take turns, so that what else the machine does slows them alike.
  """
  rates: dict[str, list[float]] = {name: [] for name in parts}
  for _ in range(rounds):
    for name, part in parts.items():
      began = time.perf_counter()
      images = part()
      rates[name].append(images / (time.perf_counter() - began))
  return rates


def best_rates(parts: Mapping[str, Callable[[], int]], *, rounds: int) -> dict[str, float]:
  """The best of each part's rates in turn."""
  return {name: max(rates) for name, rates in rates_in_turn(parts, rounds=rounds).items()}


def against_first(
  title: str, rates: Mapping[str, Sequence[float]], *, unit: str = 'images/s', target: float | None = None
) -> list[Row]:
  """The rate of each part, and of all but the first its ratio to that, as medians over rounds with their spread."""
  rows: list[Row] = []
  for name, found in rates.items():
    made = row(f'{title}, {name}', statistics.median(found), unit) | spread(found)
    if rows:
      ratios = [one / first for one, first in zip(found, next(iter(rates.values())), strict=True)]
      made |= {'ratio': statistics.median(ratios), 'ratio_to': rows[0]['name']} | spread(ratios, 'ratio')
      made |= {} if target is None else {'target': target}
    rows.append(made)
  return rows


def calls_for(advance: Callable[[int], int], secs: float, *, least: int = 2) -> int:
  """How many steps, or dispatches, take about so long, going by two; the first one, which compiles, must be over."""
  began = time.perf_counter()
  advance(2)
  return max(least, round(secs / ((time.perf_counter() - began) / 2)))


def machine() -> dict[str, Any]:
  """The devices and the host."""
  devices = jax.devices()
  return {
    'platform': devices[0].platform,
    'kind': devices[0].device_kind,
    'count': len(devices),
    'host': _processor(),
    'instructions': _instructions(),
    'cores': len(os.sched_getaffinity(0)),
  }


def _processor() -> str:
  try:
    lines = Path('/proc/cpuinfo').read_text().splitlines()
  except OSError:
    lines = []
  return next((line.partition(': ')[2] for line in lines if line.startswith('model name')), platform.machine())


def _instructions() -> str:
  """The widest vector instructions, which decide what is fast on a CPU."""
  try:
    flags = set(Path('/proc/cpuinfo').read_text().split())
  except OSError:
    return 'unknown'
  return next((name for flag, name in VECTORS.items() if flag in flags), 'none known')


def versions() -> dict[str, str]:
  found = {'python': platform.python_version()}
  for name in PACKAGES:
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      continue
  return found


def report(rows: Sequence[Row], options: argparse.Namespace) -> None:
  """Prints the table, and writes the JSON if that was asked for."""
  result = keep(rows, options)
  device = result['device']
  cores = f'{device["cores"]} cores of {device["host"]}, {device["instructions"]}'
  print(f'{device["count"]} x {device["kind"]} ({device["platform"]}), {cores}')
  print(f'{result["date"]}, jax {result["versions"]["jax"]}' + (', --quick: not to be quoted' if options.quick else ''))
  print(table(rows))
  if options.json:
    print(f'written to {options.json}', file=sys.stderr)


def keep(rows: Sequence[Row], options: argparse.Namespace) -> dict[str, Any]:
  """Writes the JSON if that was asked for; a long benchmark does so after each part, lest it be stopped."""
  flags = {name: value for name, value in vars(options).items() if not isinstance(value, Path)}
  result = {
    'device': machine(),
    'versions': versions(),
    'flags': {name: os.environ.get(name, '') for name in ('XLA_FLAGS', 'GLIBC_TUNABLES')} | flags,
    'date': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
    'rows': list(rows),
  }
  if options.json:
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(_without_nan(result), indent=2) + '\n')
  return result


def _without_nan(value: Any) -> Any:
  """JSON has no NaN: what was not measured is null."""
  if isinstance(value, dict):
    return {name: _without_nan(inner) for name, inner in value.items()}
  if isinstance(value, list):
    return [_without_nan(inner) for inner in value]
  return None if isinstance(value, float) and math.isnan(value) else value


def table(rows: Sequence[Row]) -> str:
  """The results as Markdown."""
  lines = ['| what | value | unit | ratio | to | target |', '|---|---:|---|---:|---|---:|']
  for one in rows:
    cells = [one['name'], _cell(one, 'value'), one['unit'], _cell(one, 'ratio'), one.get('ratio_to', '')]
    lines.append(f'| {" | ".join(cells)} | {one.get("target", "")} |')
  return '\n'.join(lines)


def _cell(one: Row, key: str) -> str:
  """A number, with its spread where there is one."""
  if key not in one:
    return ''
  text = _number(one[key])
  return f'{text} ({_number(one[f"{key}_low"])} to {_number(one[f"{key}_high"])})' if f'{key}_low' in one else text


def _number(value: float) -> str:
  return 'not measured' if math.isnan(value) else f'{value:,.0f}' if abs(value) >= 100 else f'{value:.3g}'
