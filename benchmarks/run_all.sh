#!/usr/bin/env bash
# Everything a GPU host should report, within 8 minutes: benchmarks/run_all.sh [FOLDER for the JSON files]
# Needs jax, flax, optax and orbax-checkpoint, and torch for the comparison; a part that fails does not stop the others.
set -uo pipefail
cd "$(dirname "$0")/.." || exit
read -r count kind < <(python3 -c 'import jax; print(jax.device_count(), jax.devices()[0].device_kind.replace(" ", "_"))')
results=${1:-benchmarks/results/$kind}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
# Programs that two parts share are compiled once.
cache=$(mktemp -d)
trap 'rm -rf "$cache"' EXIT
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$cache}
failed=0

part() {  # Seconds, name, flags.
  local limit=$1 name=$2
  shift 2
  echo "== $name"
  timeout -k 5 "$limit" python3 "benchmarks/$name.py" --json "$results/$name.json" "$@" || { echo "$name failed: $?"; false; }
}

# One device: simulated ones are compiled for on the host, beside the rest.
[ "$count" != 1 ] || { JAX_PLATFORMS=cpu part 400 scaling >"$cache/scaling.log" 2>&1 & }
part 105 step --seconds 60 --round_secs 0.5 || failed=1
part 120 versus_torch --seconds 60 --round_secs 0.5 || failed=1
part 40 end_to_end --rounds 4 --round_secs 1 || failed=1
part 95 epoch || failed=1
# What takes one compilation each; all entries, on both networks, are a run of their own: python3 benchmarks/entries.py
part 60 entries --seconds 35 --round_secs 0.4 --only metrics layout optimizer || failed=1
if [ "$count" = 1 ]; then
  wait $! || failed=1
  cat "$cache/scaling.log"
else
  part 60 scaling || failed=1
fi
exit $failed
