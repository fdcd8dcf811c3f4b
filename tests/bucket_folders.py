"""What tests of buckets write into folders, read from them, and are told."""

from pathlib import Path

from mtl_jax import cli
from mtl_jax.buckets.mirror import TEMPORARY

RUN = 'gs://b/run'  # A workdir.


def write(folder: Path, files: dict[str, str]) -> None:
  for name, text in files.items():
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)


def tree(folder: Path) -> dict[str, bytes]:
  """What each file holds, of those that are mirrored."""
  paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob('*') if path.is_file()}
  return {name: path.read_bytes() for name, path in paths.items() if not TEMPORARY.fullmatch(name)}


def refused(capsys, *arguments: object) -> str:
  assert cli.main([str(argument) for argument in arguments]) == 2
  err = capsys.readouterr().err
  assert 'Traceback' not in err
  told = [line for line in err.splitlines() if line.startswith('mtl-jax: error: ')]
  assert len(told) == 1, err
  return told[0]
