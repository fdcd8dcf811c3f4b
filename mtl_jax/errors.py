"""The exceptions a user can cause or meet; the command line turns each into one line and an exit code."""


def one_line(error: BaseException) -> str:
  """An exception's text with its line breaks and runs of blanks as single blanks."""
  return ' '.join(str(error).split())


class UserError(Exception):
  """Bad usage or bad input. The message is one line: what is wrong, where, and what to do."""

  exit_code = 2


class ConfigError(UserError):
  """A configuration field is unknown, ill-typed or out of range; the message names the field."""


class DataError(UserError):
  """A source file, row or prepared set is not what it should be; the message names the file and row."""


class CheckpointError(UserError):
  """A working directory or its checkpoints cannot be used; the message names the folder and the way out."""


class DivergedError(UserError):
  """A loss became NaN or infinite; the message names the task and the step."""

  exit_code = 3


class Interrupted(UserError):
  """The run was asked to stop and saved itself; the same command goes on from there."""

  exit_code = 75
