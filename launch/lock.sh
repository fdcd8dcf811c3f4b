#!/usr/bin/env bash
# Writes launch/requirements.lock: every package of the container launch/Dockerfile, pinned, with the digests of its files.
# Versions are those of the environment this is run in, which the tests have passed in. Needs uv.
set -euo pipefail
cd "$(dirname "$0")/.."

tested=$(mktemp)
trap 'rm -f "$tested"' EXIT
"${PYTHON:-python}" -m pip freeze --exclude-editable | grep -v ' @ ' >"$tested"
"${UV:-uv}" pip compile pyproject.toml --extra cuda --constraint "$tested" --python-version 3.12 \
  --python-platform x86_64-manylinux_2_28 --generate-hashes --no-annotate --quiet --no-header --upgrade \
  --output-file launch/requirements.lock
