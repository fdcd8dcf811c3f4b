"""Describes all fields, for `--help` and docs/config.md."""

import textwrap
from collections.abc import Iterator

from mtl_jax.config.fields import FIELDS, Field
from mtl_jax.kinds import Kind, Open

MARKDOWN = """# Fields of a configuration

`get_config()` of a configuration file gives all of them; `--config.train.steps=500` on the command line sets one. Files
are named from the folder `mtl_jax` on. Fields that may differ on resuming leave the bits of the run as they are.
`python -m mtl_jax.config.describe > docs/config.md` writes this page from
`mtl_jax/config/fields.py`.

| field | default | must be | meaning | on resuming |
|---|---|---|---|---|
"""


def help_lines() -> str:
  """Each field as it is set on the command line, and below it what it must be and what it means."""
  lines = ['fields of the configuration with their defaults; each can be set on the command line:']
  for name, default, kind, field in _settings():
    lines += [f'  --config.{name}={default}  ({kind.words}{"; may differ on resuming" * field.resumable})']
    lines += textwrap.wrap(field.meaning, 100, initial_indent=' ' * 6, subsequent_indent=' ' * 6)
  return '\n'.join(lines)


def markdown() -> str:
  """The page docs/config.md."""
  rows = [
    (f'`{name}`', f'`{default}`' if default else '', kind.words, field.meaning, 'may differ' * field.resumable)
    for name, default, kind, field in _settings()
  ]
  return MARKDOWN + ''.join(f'| {" | ".join(row)} |\n' for row in rows)


def _settings() -> Iterator[tuple[str, str, Kind, Field]]:
  """Name and default of each field as they are written on the command line, and its kind."""
  for name, field in FIELDS.items():
    if isinstance(field.kind, Open):
      yield f'{name}.NAME', 'VALUE', field.kind.each, field
    else:
      default = field.default
      yield name, ','.join(map(str, default)) if isinstance(default, tuple) else str(default), field.kind, field


if __name__ == '__main__':
  print(markdown(), end='')
