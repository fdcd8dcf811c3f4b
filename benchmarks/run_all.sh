#!/usr/bin/env bash
# Everything a GPU host should report, within 8 minutes: benchmarks/run_all.sh [FOLDER for the JSON files]
# Needs jax, flax, optax and orbax-checkpoint, and torch for the comparison; a part that fails does not stop the others.
set -uo pipefail
cd "$(dirname "$0")/.."
results=${1:-benchmarks/results/$(python3 -c 'import jax; print(jax.devices()[0].device_kind.replace(" ", "_"))')}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
# Programs that two parts share are compiled once.
cache=$(mktemp -d)
trap 'rm -rf "$cache"' EXIT
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$cache}
failed=0

part() {  # seconds, name, flags
  local limit=$1 name=$2
  shift 2
  echo "== $name"
  timeout -k 5 "$limit" python3 "benchmarks/$name.py" --json "$results/$name.json" "$@" || { echo "$name failed: $?"; failed=1; }
}

part 150 step --seconds 100 --round_secs 0.5
part 140 versus_torch --seconds 70 --round_secs 0.5
part 60 end_to_end --rounds 5 --round_secs 1
part 80 epoch
part 50 scaling
exit $failed
