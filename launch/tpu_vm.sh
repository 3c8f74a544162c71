#!/usr/bin/env bash
# A Cloud TPU slice, from one host to a pod, by queued resources, on demand or spot.
#
#   export PROJECT=… ZONE=… NAME=daaa ACCELERATOR=v5litepod-32 RUNTIME=v2-alpha-tpuv5-lite
#   export REPOSITORY=https://…/daaa_jax.git SHARE=… WORKDIR=/mnt/share/runs/w2a
#   launch/tpu_vm.sh create                     # queues the request; billing starts when it is ACTIVE
#   launch/tpu_vm.sh run --config=configs/office.py:w2a,pod --config.data.dir=/mnt/share/office31
#
# `run` waits until the slice is active, sets up all hosts and runs the command on them. If the slice
# is preempted or a host is lost, it requests the slice again and resumes. Run it in tmux.
#
# Logs:  launch/tpu_vm.sh logs            State: launch/tpu_vm.sh state
# Stop:  launch/tpu_vm.sh stop            saves and ends the run on all hosts, and ends `run`; the
#                                         slice is STILL BILLED
#        launch/tpu_vm.sh delete          deletes the slice, which ends billing; `run` ends too, as
#                                         it does not recreate a slice that somebody deleted
#
# PROJECT ZONE NAME ACCELERATOR RUNTIME  of the slice; they cost money, and have no default
# SPOT=true       a spot slice (cheaper, may be preempted)    RESERVED=true  from your reservation
# REPOSITORY      a git URL that the hosts can clone; REF=    a branch or commit (main)
# SHARE           HOST:/EXPORT, an NFS share (Filestore), mounted at /mnt/share on all hosts
# WORKDIR         a folder on it, shared by all hosts
# RESTARTS        number of automatic restarts (50)
#
# The hosts need internet access: they install Python 3.12 with uv, as their images have an older one.
set -euo pipefail

: "${PROJECT:?}" "${ZONE:?}" "${NAME:?}"
where=("--project=$PROJECT" "--zone=$ZONE")

note() { echo "launch/tpu_vm.sh: $*" >&2; }

on_all() {
  gcloud compute tpus tpu-vm ssh "$NAME" "${where[@]}" --worker=all --command="$1"
}

# Prints the slice's state; ABSENT if there is no such slice, UNKNOWN if the request fails.
state() {
  local said
  if said=$(gcloud compute tpus queued-resources describe "$NAME" "${where[@]}" \
    --format='value(state.state)' 2>&1); then
    echo "$said"
  elif [[ $said == *NOT_FOUND* || $said == *"not found"* ]]; then
    echo ABSENT
  else
    echo UNKNOWN
  fi
}

create() {
  : "${ACCELERATOR:?}" "${RUNTIME:?}"
  local extra=()
  if [ "${SPOT:-false}" = true ]; then extra+=(--spot); fi
  if [ "${RESERVED:-false}" = true ]; then extra+=(--reserved); fi
  gcloud compute tpus queued-resources create "$NAME" "${where[@]}" --node-id="$NAME" \
    --accelerator-type="$ACCELERATOR" --runtime-version="$RUNTIME" "${extra[@]}"
}

delete() {
  gcloud compute tpus queued-resources delete "$NAME" "${where[@]}" --force --quiet
}

# Waits until the slice is active; requests it again if it was preempted. Fails if it was deleted or
# cannot be allocated.
wait_active() {
  while true; do
    case "$(state)" in
      ACTIVE) return ;;
      ABSENT)
        note "there is no slice $NAME: launch/tpu_vm.sh create asks for one"
        return 1
        ;;
      FAILED)
        note "the slice cannot be had; gcloud compute tpus queued-resources describe says why"
        return 1
        ;;
      SUSPENDED)
        note "the slice was taken away; asking for it again"
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
      sudo mount -t nfs -o lookupcache=positive $share /mnt/share
    fi
    if [ ! -d daaa_jax ]; then git clone -q $repository daaa_jax; fi
    cd daaa_jax && git fetch -q origin $ref && git checkout -q FETCH_HEAD
    if [ ! -d .venv ]; then
      python3 -m pip install -q --user uv
      python3 -m uv venv -q --seed --python 3.12 .venv
    fi
    .venv/bin/pip install -q -r requirements.txt 'jax[tpu]'"
}

# Matches the command line of the run itself, not of a shell around it.
process='^[^ ]*python -m daaa_jax[.]main'

# Returns how the run ended: 0 finished on all hosts, 1 an error to fix, 2 by `stop`, 75 to resume.
ended() {
  local codes code result=0
  codes=$(on_all 'cat ~/daaa_jax.code; if [ -e ~/daaa_jax.stop ]; then echo stop; fi' \
    2>/dev/null) || return 75
  if [ -z "$codes" ]; then return 75; fi
  for code in $codes; do
    case "$code" in
      0) ;;
      1) return 1 ;;
      stop) result=2 ;;
      *) if [ "$result" -eq 0 ]; then result=75; fi ;;
    esac
  done
  return "$result"
}

# Ends the run on all hosts by SIGTERM, and waits until it is gone, as the next one needs the TPU.
end_all() {
  on_all "$1
    pkill -TERM -f '$process'
    for _ in \$(seq 90); do pgrep -f '$process' > /dev/null || exit 0; sleep 2; done
    pkill -KILL -f '$process' || true"
}

run() {
  : "${WORKDIR:?}"
  local arguments code attempt failed=0
  arguments=$(printf '%q ' --workdir="$WORKDIR" "$@")
  for ((attempt = 0; attempt <= ${RESTARTS:-50}; attempt++)); do
    wait_active || return 1
    # JAX finds the other hosts by the slice's metadata.
    code=0
    if setup; then
      failed=0
      # Ignore a `stop` for an earlier run, but not one from now on.
      on_all "if [ $attempt -eq 0 ]; then rm -f ~/daaa_jax.stop; fi
        echo 75 > ~/daaa_jax.code
        if [ -e ~/daaa_jax.stop ]; then exit; fi
        cd daaa_jax && rm ~/daaa_jax.code
        .venv/bin/python -m daaa_jax.main $arguments >> ~/daaa_jax.log 2>&1
        echo \"\$?\" > ~/daaa_jax.code" || true
      ended || code=$?
    else
      code=75 failed=$((failed + 1))
      # The first time, the slice may have been preempted meanwhile.
      if [ "$failed" -gt 1 ]; then
        note "the hosts cannot be set up, see above; the slice is STILL BILLED"
        return 1
      fi
    fi
    if [ "$code" -eq 2 ]; then
      note "stopped; the slice is STILL BILLED: launch/tpu_vm.sh delete"
      return 0
    fi
    if [ "$code" -le 1 ]; then return "$code"; fi
    note "it is to go on ($((attempt + 1)) of ${RESTARTS:-50})"
    end_all true || true
    sleep 10
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
  stop) end_all "touch ~/daaa_jax.stop" ;;
  *)
    sed -n '2,/^set /{/^#/p}' "$0"
    exit 1
    ;;
esac
