#!/usr/bin/env bash
# One machine. A single process uses all GPUs or TPU chips; several processes simulate a cluster on a
# laptop.
#
#   launch/local.sh --config=configs/digits.py:smoke --workdir=runs/smoke
#   PROCESSES=2 DEVICES=2 launch/local.sh --config=configs/digits.py:smoke --workdir=runs/two
#
# Logs: process 0 on the terminal; process I, with its errors, in $LOGS/I.log.
# Stop:  Ctrl-C, or `kill` this script. The run saves; rerun the same command to resume.
#
# PROCESSES  how many (1)        DEVICES   simulated CPU devices per process (1; several processes only)
# PYTHON     (.venv/bin/python)  PORT      of process 0 (29500)
# RESTARTS   restarts after a preemption or a lost process (10)
# LOGS       folder for logs of the other processes (a new one under /tmp, which is printed)
set -euo pipefail
cd "$(dirname "$0")/.."

processes=${PROCESSES:-1}
python=${PYTHON:-.venv/bin/python}
port=${PORT:-29500}
restarts=${RESTARTS:-10}

if [ "$#" -eq 0 ]; then
  sed -n '2,/^set /{/^#/p}' "$0"
  exit 1
fi
if [ "$processes" -gt 1 ]; then
  export JAX_PLATFORMS=cpu
  export XLA_FLAGS="--xla_force_host_platform_device_count=${DEVICES:-1} ${XLA_FLAGS:-}"
  logs=${LOGS:-$(mktemp -d)}
  mkdir -p "$logs"
  echo "logs of the other processes: $logs" >&2
fi

pids=()
stopped=0
forward() {
  stopped=1
  if [ "${#pids[@]}" -gt 0 ]; then kill -TERM "${pids[@]}" 2>/dev/null || true; fi
}
trap forward TERM INT

# Starts all processes and waits. Returns 1 if any process did, else the last code that is not 0.
run_all() {
  local code=0 each
  pids=()
  if [ "$processes" -eq 1 ]; then
    "$python" -m daaa_jax.main "$@" &
    pids+=("$!")
  else
    for ((i = 0; i < processes; i++)); do
      local arguments=("--coordinator=localhost:$port" "--num_processes=$processes" "--process_id=$i")
      if [ "$i" -eq 0 ]; then
        "$python" -m daaa_jax.main "$@" "${arguments[@]}" &
      else
        "$python" -m daaa_jax.main "$@" "${arguments[@]}" >>"$logs/$i.log" 2>&1 &
      fi
      pids+=("$!")
    done
  fi
  for pid in "${pids[@]}"; do
    each=0
    # A trapped signal ends `wait` early: wait until the process has ended.
    while kill -0 "$pid" 2>/dev/null; do
      wait "$pid" || true
    done
    wait "$pid" || each=$?
    if [ "$each" -ne 0 ] && [ "$code" -ne 1 ]; then code=$each; fi
  done
  return "$code"
}

for ((attempt = 0; ; attempt++)); do
  code=0
  run_all "$@" || code=$?
  # 0: finished; 1: an error that the user must fix; others resume from the last checkpoint.
  if [ "$code" -le 1 ] || [ "$stopped" -eq 1 ] || [ "$attempt" -ge "$restarts" ]; then
    exit "$code"
  fi
  echo "launch/local.sh: ended with $code; started again ($((attempt + 1)) of $restarts)" >&2
done
