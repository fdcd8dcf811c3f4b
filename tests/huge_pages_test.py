"""Verbs that train start again with huge pages where Linux gives them to programs that ask."""

import os
import subprocess
import sys

import pytest

from mtl_jax.platform import huge_pages


@pytest.fixture
def setting(tmp_path):
  path = tmp_path / 'enabled'
  path.write_text('always [madvise] never\n')
  return path


def test_they_are_wanted_where_programs_must_ask_and_the_user_has_not_chosen(setting, monkeypatch):
  monkeypatch.setattr(huge_pages, 'ACCELERATORS', ())
  assert huge_pages.wanted({}, setting)
  assert not huge_pages.wanted({'GLIBC_TUNABLES': ''}, setting)
  assert not huge_pages.wanted({}, setting.with_name('absent'))
  setting.write_text('[always] madvise never\n')
  assert not huge_pages.wanted({}, setting)


def test_a_host_with_an_accelerator_is_left_alone(setting, monkeypatch):
  monkeypatch.setattr(huge_pages, 'ACCELERATORS', (os.devnull,))
  assert not huge_pages.wanted({}, setting)


def test_the_process_starts_again_once_with_its_process_id_and_arguments(setting):
  code = (
    'import os, pathlib, sys\n'
    'from mtl_jax.platform import huge_pages\n'
    f'huge_pages.ACCELERATORS, huge_pages.wanted.__defaults__ = (), (os.environ, pathlib.Path({str(setting)!r}))\n'
    'print(os.getpid(), os.environ.get("GLIBC_TUNABLES"), sys.argv[1:], flush=True)\n'
    'huge_pages.restart_if_wanted()\n'
  )
  environment = {name: value for name, value in os.environ.items() if name != huge_pages.NAME}
  line = [sys.executable, '-c', code, 'train', '--config', 'a b']
  ended = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=60, check=True)
  first, second = ended.stdout.splitlines()
  number = first.split()[0]
  assert first == f"{number} None ['train', '--config', 'a b']"
  assert second == f"{number} {huge_pages.TUNABLE} ['train', '--config', 'a b']"
