#!/usr/bin/env bash
# `mtl-jax VERB` on all workers of one or several TPU slices, as one run, through gcloud; it goes on when this ends.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: launch/tpu_vm.sh --tpu NAME[,NAME...] --zone ZONE [--project P] [--setup COMMAND] [--dry_run] VERB ARGS...

  launch/tpu_vm.sh --tpu pod --zone us-east5-b --setup 'pip install mtl_jax[tpu,gcs]' \
    train --config configs/celeba_joint_full.py --workdir gs://BUCKET/runs/joint --config.data.dir=gs://BUCKET/faces

Each worker finds its place in its machine's metadata, of a multi-slice run too: name all its slices. --setup runs before,
on all workers. The run is left on the machines, where ~/mtl-jax.log tells of it; there it is started again after 75
(interrupted and saved), and up to three times after other ends but 0, 2 and 3. A slice that is preempted is gone with
its machines: on a new one the same command goes on.
  MTL_JAX  the command, by default mtl-jax
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

read -r -a command <<<"${MTL_JAX:-mtl-jax}"
again="left=3; while :; do code=0; $(printf '%q ' "${command[@]}" "$@")|| code=\$?
  case \$code in 0|2|3) exit \$code ;; 75) ;; *) ((left--)) || exit \$code ;; esac; done"
remote="nohup bash -c $(printf '%q' "$again") >>mtl-jax.log 2>&1 </dev/null &"

on_all() {
  local line=(gcloud compute tpus tpu-vm ssh "$1" "--zone=$zone" --worker=all "--command=$2")
  [[ -z $project ]] || line+=("--project=$project")
  if [[ $dry_run ]]; then
    printf '%q ' "${line[@]}"
    echo
  else
    "${line[@]}"
  fi
}

IFS=, read -r -a slices <<<"$tpu"
for slice in "${slices[@]}"; do [[ -z $setup ]] || on_all "$slice" "$setup"; done
for slice in "${slices[@]}"; do on_all "$slice" "$remote"; done
