"""Exceptions for what users can cause; the command line turns each into one line and an exit code."""

import unicodedata


def one_line(error: BaseException) -> str:
  """An exception's text with its line breaks and runs of blanks as single blanks."""
  return ' '.join(str(error).split())


def printable(text: str, *, keep: str = '') -> str:
  r"""Text of foreign files and names that a terminal only shows: what would steer it is escaped, such as `\x1b`.

  Args:
    text: any text.
    keep: control characters that stay, such as line breaks of our own tables.
  """
  steers = {c for c in set(text) - set(keep) if unicodedata.category(c)[0] == 'C' or c in '\u2028\u2029'}
  return ''.join(c.encode('unicode_escape').decode() if c in steers else c for c in text) if steers else text


class UserError(Exception):
  """Bad usage or bad input. The message is one line: what is wrong, where, and what to do."""

  exit_code = 2


class ConfigError(UserError):
  """A configuration field is unknown, ill-typed or out of range; the message names the field."""


class DataError(UserError):
  """A source file, row or prepared set is not what it should be; the message names the file and row."""


class CheckpointError(UserError):
  """A working directory or its checkpoints cannot be used; the message names the folder and the way out."""


class BucketError(UserError):
  """A bucket cannot be opened, read or written, or belongs to another run; the message names the address."""


class LauncherError(UserError):
  """The processes of a run do not fit together, or did not come together; the message says what is wrong."""


class DivergedError(UserError):
  """A loss became NaN or infinite; the message names the task and the step."""

  exit_code = 3


class Interrupted(UserError):
  """The run was asked to stop and saved itself; the same command goes on from there."""

  exit_code = 75
