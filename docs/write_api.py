"""Writes docs/api.md, the reference of the public Python names, from their docstrings: `python docs/write_api.py`."""

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mtl_jax
from mtl_jax import errors, objectives

PAGE = Path(__file__).with_name('api.md')
HEAD = """# Python reference

Made from docstrings by `python docs/write_api.py`. [python.md](python.md) shows these names at work,
[own_parts.md](own_parts.md) and [own_data.md](own_data.md) what parts and data of your own must be.

`Config` is the name of a preset, a file with a `get_config()`, or a `ConfigDict`; `Overrides` are texts `a.b=value`, or
values by field or group; `Place` is text or a path.
"""
WIDTH = 100  # Of a signature on one line.


def page() -> str:
  """The whole page."""
  functions = [name for name in mtl_jax.__all__ if inspect.isfunction(getattr(mtl_jax, name))]
  balancing = ['value_and_grad', 'aggregate', 'of_losses', 'on_gram', 'Objective']
  kinds = [kind for kind in vars(errors).values() if inspect.isclass(kind) and kind is not errors.UserError]
  parts = [
    HEAD,
    '\n## Functions of `mtl_jax`\n',
    *(described(f'mtl_jax.{name}', getattr(mtl_jax, name)) for name in functions),
    '\n## Classes of `mtl_jax`\n',
    *(described(f'mtl_jax.{name}', getattr(mtl_jax, name)) for name in ('Run', 'Model', 'UserError')),
    '\nIts kinds, in `mtl_jax.errors`; `exit_code` is what the command line ends with:\n\n',
    *(f'- `{kind.__name__}` ({kind.exit_code}): {first_line(kind)}\n' for kind in kinds),
    '\n## `mtl_jax.objectives`\n\nThey need JAX and NumPy alone: see [objectives.md](objectives.md).\n',
    *(described(f'objectives.{name}', getattr(objectives, name)) for name in balancing),
    '\n`objectives.OBJECTIVES` has the functions that make an `Objective` by name, each also `objectives.<name>`:\n\n',
    *(f'- `{name}`: {first_line(make)}\n' for name, make in objectives.OBJECTIVES.items()),
  ]
  return ''.join(parts)


def described(name: str, found: Any) -> str:
  """A function, or a class with its public methods and properties, under a heading."""
  node = definition(found)
  text = f'\n### `{name}`\n\n'
  if isinstance(node, ast.FunctionDef):
    text += f'```python\n{signature(node)}\n```\n\n'
  text += markdown(inspect.getdoc(found) or '')
  for member in members(node):
    is_property = any(ast.unparse(mark) == 'property' for mark in member.decorator_list)
    shown = member.name if is_property else signature(member)
    text += f'\n```python\n{shown}\n```\n\n{markdown(ast.get_docstring(member) or "")}'
  return text


def definition(found: Any) -> ast.AST:
  return ast.parse(textwrap.dedent(inspect.getsource(found))).body[0]


def members(node: ast.AST) -> Iterator[ast.FunctionDef]:
  """The methods and properties of a class that are public and say what they do."""
  for member in node.body if isinstance(node, ast.ClassDef) else ():
    if isinstance(member, ast.FunctionDef) and not member.name.startswith('_') and ast.get_docstring(member):
      yield member


def signature(node: ast.FunctionDef) -> str:
  """A function's arguments as its source has them, each on a line where they are long."""
  arguments = re.sub(r'^self(, )?', '', ast.unparse(node.args))
  arguments = re.sub(r'(: [^=]*?)=(?=\S)', r'\1 = ', arguments)
  returns = f' -> {ast.unparse(node.returns)}' if node.returns else ''
  line = f'{node.name}({arguments}){returns}'
  if len(line) <= WIDTH:
    return line
  each = re.split(r', (?=\w+:|\*)', arguments)  # Commas inside of brackets have no name and colon after them.
  return f'{node.name}(\n' + ''.join(f'  {argument},\n' for argument in each) + f'){returns}'


def markdown(text: str) -> str:
  """A docstring whose sections `Args:` and the like become lists."""
  lines = []
  section = ''
  for line in text.splitlines():
    if re.fullmatch(r'(Args|Attributes|Returns|Raises):', line):
      section = line
      lines.append(f'**{line.removesuffix(":").replace("Args", "Arguments")}**\n')
    elif section in ('Args:', 'Attributes:', 'Raises:') and (named := re.match(r'  (\w+): (.*)', line)):
      lines.append(f'- `{named[1]}`: {named[2]}')
    elif section == 'Returns:' and line.startswith('  '):
      lines.append(line[2:])
    else:
      lines.append(line)
  return '\n'.join(lines).rstrip() + '\n'


def first_line(found: Any) -> str:
  return (inspect.getdoc(found) or '').splitlines()[0]


if __name__ == '__main__':
  PAGE.write_text(page())
