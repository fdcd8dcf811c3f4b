#!/usr/bin/env bash
# `mtl-jax VERB` on all workers of a TPU slice, as one run, through gcloud. A slice that is preempted is waited for.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: launch/tpu_vm.sh --tpu NAME --zone ZONE [--project P] [--setup COMMAND] [--dry_run] VERB ARGS...

  launch/tpu_vm.sh --tpu pod --zone us-east5-b --setup 'pip install mtl_jax[tpu]' \
    train --config configs/celeba_joint_full.py --workdir /mnt/shared/runs/joint --config.data.dir=/mnt/shared/celeba128

Runs on every worker at once; each asks its machine's metadata which worker it is and where the first one is. --setup runs
before, on all of them. --workdir and the prepared set lie where all workers see them (Filestore, gcsfuse). The exit code
is that of mtl-jax; after 75 (interrupted and saved) the same command goes on.
  MTL_JAX  the command, by default mtl-jax
  PORT     of the first worker, by default 8476
TEXT
}

fail() {
  echo "launch/tpu_vm.sh: error: $1" >&2
  exit 2
}

tpu='' zone='' project='' setup='' dry_run=''
while [[ $# -gt 0 ]]; do
  case $1 in
    --tpu | --zone | --project | --setup)
      [[ $# -gt 1 ]] || fail "$1 wants a value"
      declare "${1#--}=$2"
      shift 2
      ;;
    --dry_run) dry_run=1; shift ;;
    -h | --help) usage; exit 0 ;;
    -*) fail "no flag $1; see launch/tpu_vm.sh --help" ;;
    *) break ;;
  esac
done
[[ $tpu && $zone ]] || fail 'name the slice with --tpu and --zone'
[[ $# -gt 0 ]] || fail 'no verb; see launch/tpu_vm.sh --help'

gcloud=(gcloud compute tpus tpu-vm ssh "$tpu" "--zone=$zone" --worker=all)
[[ -z $project ]] || gcloud+=("--project=$project")

# What a worker runs. Endpoints are `name:id:address` or just an address, separated by commas, the first worker's first.
read -r -d '' where <<'REMOTE' || true
ask() { curl -sf -H 'Metadata-Flavor: Google' "http://${GCE_METADATA_IP:-metadata.google.internal}/computeMetadata/v1/instance/attributes/$1"; }
endpoints=$(ask worker-network-endpoints)
id=$(ask agent-worker-number)
IFS=, read -r -a workers <<<"$endpoints"
export JAX_COORDINATOR_ADDRESS="${workers[0]##*:}:$port" JAX_NUM_PROCESSES=${#workers[@]} JAX_PROCESS_ID=$id
REMOTE
read -r -a command <<<"${MTL_JAX:-mtl-jax}"
remote="set -eu; port=${PORT:-8476}; ${where//$'\n'/; }; exec $(printf '%q ' "${command[@]}" "$@")"
remote="bash -c $(printf '%q' "$remote")"
if [[ $dry_run ]]; then
  [[ -z $setup ]] || { printf '%q ' "${gcloud[@]}" "--command=$setup"; echo; }
  printf '%q ' "${gcloud[@]}" "--command=$remote"
  echo
  exit 0
fi
[[ -z $setup ]] || "${gcloud[@]}" "--command=$setup"
exec "${gcloud[@]}" "--command=$remote"
