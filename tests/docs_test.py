"""Every command of README and of the docs is one that the command line takes."""

import re
import shlex
from pathlib import Path

import pytest

import mtl_jax
from mtl_jax import cli

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *sorted((ROOT / 'docs').glob('*.md'))]
ANY_FILE = {'F.py'}  # Stands for a file of the reader's own.


def commands(page: Path) -> list[str]:
  """The commands of a page's shell blocks, one string each."""
  blocks = re.findall(r'```(?:sh|bash)\n(.*?)```', page.read_text(), re.DOTALL)
  lines = '\n'.join(blocks).replace('\\\n', ' ').splitlines()
  without_comments = (re.sub(r'\s+#.*|^#.*', '', line) for line in lines)
  return [command.strip() for line in without_comments for command in line.split(' && ') if command.strip()]


def verbs(page: Path) -> list[str]:
  return [command for command in commands(page) if command.startswith('mtl-jax ')]


@pytest.mark.parametrize('page', [page for page in PAGES if verbs(page)], ids=lambda page: page.name)
def test_every_command_of_a_page_has_flags_and_fields_that_there_are(page, monkeypatch, capsys):
  def checked(options):
    if getattr(options, 'config', None) and options.config not in ANY_FILE and Path(options.config).parts[0] != 'runs':
      mtl_jax.get_config(str(options.config), options.overrides)
    return 0

  monkeypatch.setattr(cli, '_run', checked)
  monkeypatch.setattr(cli.processes, 'run', lambda run, *_, **__: run())  # Else waits for the other processes.
  monkeypatch.chdir(ROOT)
  for command in verbs(page):
    assert cli.main(shlex.split(command)[1:]) == 0, f'{command}\n{capsys.readouterr().err}'
