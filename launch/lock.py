"""Writes launch/requirements.lock: every package of the container, pinned, with the digest of its file.

python3.12 launch/lock.py     resolves pyproject.toml's dependencies and its extra `cuda` anew
"""

import json
import platform
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
PYTHON = '3.12'  # Of launch/Dockerfile; this script is run with the same, on the same kind of machine.
HEADER = f"""# Every package of the container launch/Dockerfile: Python {PYTHON} on Linux x86-64, JAX for CUDA.
# Made by launch/lock.py; do not edit.
"""


def main() -> None:
  here = f'{sys.version_info.major}.{sys.version_info.minor}', sys.platform, platform.machine()
  if here != (PYTHON, 'linux', 'x86_64'):
    sys.exit(f'launch/lock.py: error: run it with Python {PYTHON} on Linux x86-64, not {here}')
  project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
  wanted = [*project['dependencies'], *project['optional-dependencies']['cuda']]
  with tempfile.TemporaryDirectory() as folder:
    report = Path(folder) / 'report.json'
    command = [sys.executable, '-m', 'pip', 'install', '--quiet', '--dry-run', '--ignore-installed']
    subprocess.run([*command, '--report', str(report), *wanted], check=True)
    installed = json.loads(report.read_text())['install']
  lines = []
  for package in sorted(installed, key=lambda one: one['metadata']['name'].lower()):
    digest = package['download_info']['archive_info']['hashes']['sha256']
    lines.append(f'{package["metadata"]["name"].lower()}=={package["metadata"]["version"]} --hash=sha256:{digest}\n')
  (ROOT / 'launch' / 'requirements.lock').write_text(HEADER + ''.join(lines))


if __name__ == '__main__':
  main()
