#!/usr/bin/env bash
# Runs the benchmarks for a GPU, the most valuable part first, in 9 minutes on one H100.
#
#   python -m benchmarks.gpu_data --data=DIR --out=DATA     packs the data, on any machine
#   benchmarks/gpu.sh --data=DATA [--out=OUT] [PART ...]    on the GPU machine
#   benchmarks/gpu.sh --dry                                 all parts at tiny size, on a CPU
#
# Parts: agreement (one update of each stage against the CPU), pytorch (times of our steps and of
# PyTorch's, eager and compiled), digits (the digits' default run), mnistm (MNIST -> MNIST-M on
# 25,000 images), office10 (amazon -> webcam at 256 pixels). Each has its own time limit, and its
# results are in OUT/PART as soon as it ends; OUT/summary.tsv has a line per part: name, exit code or
# "skipped", seconds. Uses the `python` first on PATH. The exit code is 1 if a part failed.

# shellcheck disable=SC2329  # functions are called by name
set -uo pipefail
skipped=77  # exit code of a part that cannot run here
dry=false data='' out=runs/gpu parts=()
for argument in "$@"; do
  case "$argument" in
    --dry) dry=true ;;
    --data=*) data=${argument#*=} ;;
    --out=*) out=${argument#*=} ;;
    agreement | pytorch | digits | mnistm | office10) parts+=("$argument") ;;
    *) echo "unknown argument $argument: see the top of benchmarks/gpu.sh" >&2; exit 1 ;;
  esac
done
out=$(realpath -m -- "$out")
data=${data:+$(realpath -m -- "$data")}
cd "$(dirname "$0")/.." || exit 1
[ ${#parts[@]} -gt 0 ] || parts=(agreement pytorch digits mnistm office10)
mkdir -p "$out" || exit 1
if $dry; then
  data=$out/data
  python -m benchmarks.gpu_data --out="$data" || exit 1
fi

skip() {
  echo "skipped: $1"
  exit "$skipped"
}

train() {
  local code
  rm -rf "$here/run"
  python -m daaa_jax.main "$@" --workdir="$here/run" --config.run.reuse=none
  code=$?
  cp "$here"/run/{metrics.jsonl,result.json} "$here/"
  return "$code"
}

agreement() {
  local small=()
  if $dry; then small=(--small); fi
  python -m benchmarks.agreement "${small[@]}" --out="$here/agreement.json"
}

pytorch() {
  if ! python -c 'import torch' 2> /dev/null; then
    skip 'this Python has no torch (pip install -r benchmarks/requirements.txt)'
  fi
  local cases=cyclegan256_4,resnet50_128,efficientnet,digits_1024,cyclegan32_64
  local options=()
  if $dry; then cases=evaluation options=(--rounds=1 --no_compile); fi
  python -m benchmarks.performance --cases="$cases" "${options[@]}" --out="$here/performance.json"
}

digits() {
  if $dry; then train --config=configs/digits.py:smoke; else train --config=configs/digits.py; fi
}

mnistm() {
  [ -d "$data/digits" ] || skip '--data names no folder with digits/'
  local counts=(25000 3000) sizes=(--config.pair.epochs=2 --config.adapt.rounds=12
    --config.adapt.round_steps=300)
  local task=mnist2mnistm
  if $dry; then counts=(300 100) sizes=() task=mnist2mnistm,smoke; fi
  train --config="configs/digits.py:$task" --config.data.dir="$data/digits" "${sizes[@]}" \
    --config.data.expected_counts.mnist_train="${counts[0]}" \
    --config.data.expected_counts.mnist_test="${counts[1]}" \
    --config.data.expected_counts.mnist_m_train="${counts[0]}" \
    --config.data.expected_counts.mnist_m_test="${counts[1]}"
}

office10() {
  [ -d "$data/office10" ] || skip '--data names no folder with office10/'
  local task=a2w
  local sizes=(--config.pair.epochs=3 --config.source.epochs=10 --config.adapt.rounds=10
    --config.adapt.round_steps=100 --config.model.weights="$data/office10/weights.pth")
  if $dry; then
    task=a2w,smoke
    sizes=(--config.data.expected_counts.amazon=0 --config.data.expected_counts.webcam=0)
  fi
  train --config="configs/office10.py:$task" --config.data.dir="$data/office10" "${sizes[@]}"
}

declare -A limits=([agreement]=100 [pytorch]=90 [digits]=70 [mnistm]=80 [office10]=200)
export -f skip train agreement pytorch digits mnistm office10
export dry data here skipped
failed=0
for part in "${parts[@]}"; do
  here=$out/$part
  mkdir -p "$here"
  limit=${limits[$part]}
  if $dry; then limit=600; fi
  start=$SECONDS
  timeout --kill-after=5 "$limit" bash -c "$part" 2>&1 | tee "$here/log.txt"
  code=${PIPESTATUS[0]}
  status=$code
  case "$code" in
    0) ;;
    "$skipped") status=skipped ;;
    *) failed=1 ;;
  esac
  printf '%s\t%s\t%s\n' "$part" "$status" $((SECONDS - start)) > "$here/status.tsv"
  cat "$out"/*/status.tsv > "$out/summary.tsv"
  echo "$part: $status after $((SECONDS - start)) s"
done
exit $failed
