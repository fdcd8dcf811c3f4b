"""Exports a trained model as files that are used without this package."""

from pathlib import Path

from mtl_jax.config import choose
from mtl_jax.errors import DataError
from mtl_jax.evaluation import published, stablehlo
from mtl_jax.run import trained_model

FORMATS = {'stablehlo': stablehlo.write, 'safetensors': published.write}


def export(
  directory: Path, out: Path, *, format: str = 'stablehlo', step: int | None = None, allow_code: bool = False
) -> None:
  """Writes a model of a run into the folder `out`.

  Args:
    directory: the run's working directory.
    out: made if it is not there; files of the same names in it are replaced.
    format: of `FORMATS`.
    step: another checkpoint than the best.
    allow_code: as in `trained_model.restore`.

  Raises:
    UserError: for a folder that holds no such checkpoint, or one that cannot be written.
  """
  write = FORMATS[choose(format, tuple(FORMATS), field='--format')]
  try:
    out.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise DataError(f'--out: cannot make the folder {out}: {error.strerror}') from error
  write(trained_model.restore(directory, step=step, allow_code=allow_code), out)
