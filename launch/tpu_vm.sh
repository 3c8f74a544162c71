#!/usr/bin/env bash
# A Cloud TPU slice, from one host to a pod, by queued resources, spot or not.
#
#   export PROJECT=… ZONE=… NAME=daaa ACCELERATOR=v5litepod-32 RUNTIME=v2-alpha-tpuv5-lite
#   export REPOSITORY=https://…/daaa_jax.git SHARE=… WORKDIR=/mnt/share/runs/w2a
#   launch/tpu_vm.sh create                     # queues the request; billing starts when it is ACTIVE
#   launch/tpu_vm.sh run --config=configs/office.py:w2a,pod --config.data.dir=/mnt/share/office31
#
# `run` waits until the slice is there, sets all hosts up, runs the command on all of them, and when
# the slice is preempted or a host is lost, asks for it again and goes on. Leave it in tmux.
#
# Logs:  launch/tpu_vm.sh logs            State: launch/tpu_vm.sh state
# Stop:  launch/tpu_vm.sh stop            ends the run on all hosts; the slice is STILL BILLED
#        launch/tpu_vm.sh delete          deletes the slice: nothing costs money any more
#
# PROJECT ZONE NAME ACCELERATOR RUNTIME  of the slice; they cost money, and have no default
# SPOT=true       a spot slice (cheaper, may be taken away)   RESERVATION=  one you have
# REPOSITORY      a git URL that the hosts can clone; REF=    a branch or commit (main)
# SHARE           HOST:/EXPORT, an NFS share (Filestore) that is mounted at /mnt/share on all hosts:
#                 the working directory must be the same folder for all of them
# WORKDIR         a folder on it
# RESTARTS        how often it goes on by itself (50)
set -euo pipefail

: "${PROJECT:?}" "${ZONE:?}" "${NAME:?}"
where=("--project=$PROJECT" "--zone=$ZONE")

note() { echo "launch/tpu_vm.sh: $*" >&2; }

on_all() {
  gcloud compute tpus tpu-vm ssh "$NAME" "${where[@]}" --worker=all --command="$1"
}

state() {
  gcloud compute tpus queued-resources describe "$NAME" "${where[@]}" \
    --format='value(state.state)' 2>/dev/null || echo ABSENT
}

create() {
  : "${ACCELERATOR:?}" "${RUNTIME:?}"
  local extra=()
  if [ "${SPOT:-false}" = true ]; then extra+=(--spot); fi
  if [ -n "${RESERVATION:-}" ]; then extra+=("--reservation=$RESERVATION"); fi
  gcloud compute tpus queued-resources create "$NAME" "${where[@]}" --node-id="$NAME" \
    --accelerator-type="$ACCELERATOR" --runtime-version="$RUNTIME" "${extra[@]}"
}

delete() {
  gcloud compute tpus queued-resources delete "$NAME" "${where[@]}" --force --quiet
}

# Returns when the slice is there; asks for it again where it was taken away.
wait_active() {
  while true; do
    case "$(state)" in
      ACTIVE) return ;;
      ABSENT) create ;;
      SUSPENDED | FAILED)
        note "the slice is gone; asking for it again"
        delete
        create
        ;;
    esac
    sleep 30
  done
}

setup() {
  : "${REPOSITORY:?}" "${SHARE:?}"
  local repository share ref
  repository=$(printf %q "$REPOSITORY")
  share=$(printf %q "$SHARE")
  ref=$(printf %q "${REF:-main}")
  on_all "set -e
    if ! mountpoint -q /mnt/share; then
      sudo apt-get install -y -qq nfs-common
      sudo mkdir -p /mnt/share
      sudo mount -t nfs $share /mnt/share
    fi
    if [ ! -d daaa_jax ]; then git clone -q $repository daaa_jax; fi
    cd daaa_jax && git fetch -q && git checkout -q $ref
    if [ ! -d .venv ]; then python3 -m venv .venv; fi
    .venv/bin/pip install -q -r requirements.txt 'jax[tpu]'"
}

# How the run ended: 0 finished on all hosts, 1 for a person to mend, 75 to go on.
ended() {
  local codes code result=0
  codes=$(on_all 'cat ~/daaa_jax.code' 2>/dev/null) || return 75
  if [ -z "$codes" ]; then return 75; fi
  for code in $codes; do
    case "$code" in
      0) ;;
      1) return 1 ;;
      *) result=75 ;;
    esac
  done
  return "$result"
}

run() {
  : "${WORKDIR:?}"
  local arguments code attempt
  arguments=$(printf '%q ' --workdir="$WORKDIR" "$@")
  for ((attempt = 0; attempt <= ${RESTARTS:-50}; attempt++)); do
    wait_active
    # JAX finds the other hosts by the slice's metadata.
    code=0
    if setup; then
      on_all "cd daaa_jax && rm -f ~/daaa_jax.code
        .venv/bin/python -m daaa_jax.main $arguments 2>&1 | tee -a ~/daaa_jax.log
        echo \"\${PIPESTATUS[0]}\" > ~/daaa_jax.code" || true
      ended || code=$?
    else
      code=75
    fi
    if [ "$code" -le 1 ]; then return "$code"; fi
    note "it is to go on ($((attempt + 1)) of ${RESTARTS:-50})"
    on_all "pkill -TERM -f daaa_jax[.]main || true" || true
  done
  return "$code"
}

case "${1:-}" in
  create | state | setup | delete) "$1" ;;
  run)
    shift
    run "$@"
    ;;
  logs) gcloud compute tpus tpu-vm ssh "$NAME" "${where[@]}" --worker=0 \
    --command='tail -n 100 -f ~/daaa_jax.log' ;;
  stop) on_all "pkill -TERM -f daaa_jax[.]main || true" ;;
  *)
    sed -n '2,/^set /{/^#/p}' "$0"
    exit 1
    ;;
esac
