#!/usr/bin/env bash
# N processes of `mtl-jax VERB` on this host, as one run. Any that fails ends all; the exit code is the first one's that
# was not 0, so 75 (interrupted and saved: the same command goes on) is passed on to whoever requeues.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: launch/local.sh -n N [--dry_run] VERB ARGS...

  launch/local.sh -n 2 train --config configs/celeba_joint_full.py --workdir runs/joint

GPUs are divided equally; JAX_PLATFORMS=cpu runs on processors. SIGTERM, SIGUSR1 and ctrl-C go to all processes.
  MTL_JAX  the command, by default mtl-jax
  PORT     of process 0 on 127.0.0.1, by default a free one
TEXT
}

fail() {
  echo "launch/local.sh: error: $1" >&2
  exit 2
}

num='' dry_run=''
while [[ $# -gt 0 ]]; do
  case $1 in
    -n) num=${2-}; shift $(($# > 1 ? 2 : 1)) ;;
    --dry_run) dry_run=1; shift ;;
    -h | --help) usage; exit 0 ;;
    -*) fail "no flag $1; see launch/local.sh --help" ;;
    *) break ;;
  esac
done
[[ $num =~ ^[1-9][0-9]*$ ]] || fail "-n must be a number of processes, not '$num'; see launch/local.sh --help"
[[ $# -gt 0 ]] || fail 'no verb; see launch/local.sh --help'

read -r -a command <<<"${MTL_JAX:-mtl-jax}"

free_port() {
  local port
  while true; do
    port=$((20000 + RANDOM % 10000))
    (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break  # Nobody answers.
  done
  echo "$port"
}

gpus=0
if [[ ${JAX_PLATFORMS:-} != cpu ]] && type nvidia-smi >/dev/null 2>&1; then
  if [[ -n ${CUDA_VISIBLE_DEVICES:-} ]]; then
    IFS=, read -r -a visible <<<"$CUDA_VISIBLE_DEVICES"
  else
    mapfile -t visible < <(nvidia-smi --query-gpu=index --format=csv,noheader)
  fi
  gpus=${#visible[@]}
  ((gpus % num == 0)) || fail "$gpus GPUs cannot be divided between $num processes; JAX_PLATFORMS=cpu runs on processors"
fi

port=${PORT:-$(free_port)}
lines=()
for ((i = 0; i < num; i++)); do
  line=(env "JAX_COORDINATOR_ADDRESS=127.0.0.1:$port" "JAX_NUM_PROCESSES=$num" "JAX_PROCESS_ID=$i")
  if ((gpus)); then
    own=$(IFS=,; echo "${visible[*]:i * gpus / num:gpus / num}")
    line+=("CUDA_VISIBLE_DEVICES=$own")
  fi
  lines+=("$(printf '%q ' "${line[@]}" "${command[@]}" "$@")")
done
if [[ $dry_run ]]; then
  printf '%s\n' "${lines[@]% }"
  exit 0
fi

set -m  # Each process gets a group of its own, so that ctrl-C reaches it once, through us.
pids=()
for line in "${lines[@]}"; do
  eval "exec $line" &
  pids+=($!)
done
# shellcheck disable=SC2329  # By traps.
pass_on() { kill "-$1" "${pids[@]}" 2>/dev/null || true; }
for signal in TERM USR1 INT; do
  # shellcheck disable=SC2064
  trap "pass_on $signal" "$signal"
done
trap 'pass_on KILL' EXIT

code=0 left=$num
while ((left)); do
  ended='' result=0
  wait -fn -p ended "${pids[@]}" 2>/dev/null || result=$?  # -f: one that is stopped has not ended.
  if [[ ! ${ended:-} ]]; then  # A signal, which was passed on; or one that ended beside another, which -n does not see.
    for pid in "${pids[@]}"; do kill -0 "$pid" 2>/dev/null || ended=$pid; done
    [[ ${ended:-} ]] || continue
    result=0
    wait "$ended" || result=$?
  fi
  left=$((left - 1))
  rest=()
  for pid in "${pids[@]}"; do [[ $pid == "$ended" ]] || rest+=("$pid"); done
  pids=("${rest[@]}")
  if ((result && !code)); then
    code=$result
    # The others end by themselves when they hear of it; one that does not is ended after a minute.
    (sleep 60; kill -KILL "${pids[@]}" 2>/dev/null) >/dev/null 2>&1 &
    watcher=$!
    disown  # Without a word when it is ended.
  fi
done
trap - EXIT
[[ -z ${watcher:-} ]] || kill -KILL -- "-$watcher" 2>/dev/null || true
exit "$code"
