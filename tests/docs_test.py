"""The pages of the docs: every command on them is one that the command line takes."""

import re
import shlex
from pathlib import Path

import pytest

import mtl_jax
from mtl_jax import cli

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]
ANY_FILE = {'F.py', 'my_nets.py'}  # Stand for a file of the reader's own.


def commands(page: Path) -> list[str]:
  """The `mtl-jax` commands of a page's shell blocks, one string each."""
  blocks = re.findall(r'```(?:sh|bash)\n(.*?)```', page.read_text(), re.DOTALL)
  lines = '\n'.join(blocks).replace('\\\n', ' ').splitlines()
  found = [line[line.index('mtl-jax ') :] for line in lines if re.match(r'(\$ )?(.*&& )?(\w+=\S+ )*mtl-jax ', line)]
  return [re.sub(r'\[.*?\]', '', command) for command in found]  # Without what is optional.


@pytest.mark.parametrize('page', [page for page in PAGES if commands(page)], ids=lambda page: page.name)
def test_every_command_of_a_page_has_flags_and_fields_that_there_are(page, monkeypatch, capsys):
  def checked(options):
    if getattr(options, 'config', None) and options.config not in ANY_FILE:
      mtl_jax.get_config(str(options.config), options.overrides)
    return 0

  monkeypatch.setattr(cli, '_run', checked)
  monkeypatch.chdir(ROOT)
  for command in commands(page):
    _, *arguments = shlex.split(command, comments=True)
    try:
      code = cli.main(arguments)
    except SystemExit as stopped:
      code = stopped.code
    assert code == 0, f'{command}\n{capsys.readouterr().err}'
