#!/usr/bin/env bash
# make gpu: on a machine with a CUDA card, build for it, test, tune, benchmark and check memory.
#
#   bash bench/gpu.sh [build] [smoke] [tune] [step] [folded] [conv] [lif] [sanitize]
#
# runs the named stages in this order, or all of them, each for STAGE_S seconds at most. A stage that
# was ended, or in which something failed, goes on where it was when it is called again at the same
# commit: files of tests that passed, tunings, tools, and rows of benchmarks are not done twice. What
# is found goes to bench/results/, or to $OUT where that is set, with a log for each stage; rows of
# other runs stay there as they are. One that fails does not keep the next from running. Uses the
# python3 that has torch, or $PYTHON. REALSPIKE_COMMIT says what is measured where git cannot.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
python=${PYTHON:-python3}
results=${OUT:-bench/results}
site=$PWD/build/gpu-site
limit=${STAGE_S:-300}
all=(build smoke tune step folded conv lif sanitize)
stages=("$@")
((${#stages[@]})) || stages=("${all[@]}")

for stage in "${stages[@]}"; do
  if [[ " ${all[*]} " != *" $stage "* ]]; then
    echo "make gpu: no stage is called $stage; there are ${all[*]}" >&2
    exit 2
  fi
done
if ! "$python" -c "import torch; assert torch.cuda.is_available()" 2>/dev/null; then
  echo "make gpu: no CUDA device that torch can see; there is nothing to run" >&2
  exit 1
fi
# Before anything is built: time on a card is precious.
if ! "$python" -c "import pytest, pytest_benchmark, hypothesis, pybind11" 2>/dev/null; then
  echo "make gpu: needs pytest, pytest-benchmark, hypothesis and pybind11 in $python" >&2
  exit 1
fi
mkdir -p "$results" || exit 1
export PYTHONUNBUFFERED=1
REALSPIKE_COMMIT=${REALSPIKE_COMMIT:-$(cd bench && "$python" -c \
  "import results; print(results.commit() or '')")}
export REALSPIKE_COMMIT
# One line for each thing that is done; of no use where the commit says nothing.
finished=$results/gpu-${REALSPIKE_COMMIT:-unknown}.done

# limited COMMAND...: what is left of the stage's time. An interrupt lets pytest end in order.
limited() {
  local left=$((limit - (SECONDS - started) - 20))
  ((left > 0)) || return 124
  timeout --signal=INT --kill-after=15 "$left" "$@"
}

# once NAME COMMAND...: unless it has succeeded before.
once() {
  local name=$1 known=0
  shift
  [[ -z $REALSPIKE_COMMIT || $REALSPIKE_COMMIT == *-dirty ]] || known=1
  if ((known)) && grep -qxF "$name" "$finished" 2>/dev/null; then
    echo "== $name: done before"
    return
  fi
  echo "== $name"
  limited "$@"
  local status=$?
  if ((status)); then
    echo "== $name: failed with $status"
  elif ((known)); then
    echo "$name" >>"$finished"
  fi
  return "$status"
}

build() {
  echo "$REALSPIKE_COMMIT"
  nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>/dev/null
  "$python" -c 'import sys, torch, setuptools, pybind11
print("python", sys.version.split()[0], "torch", torch.__version__, "cuda", torch.version.cuda)
print("setuptools", setuptools.__version__, "pybind11", pybind11.__version__)'
  local capability
  capability=$("$python" -c "import torch; print('%d.%d' % torch.cuda.get_device_capability())")
  rm -rf "$site"
  REALSPIKE_CUDA=on TORCH_CUDA_ARCH_LIST="$capability" limited \
    "$python" -m pip install -q --no-build-isolation --no-deps --no-index --target "$site" . &&
    "$python" -c "import realspike_ops; print('realspike:', realspike_ops.build_info())"
}

# A process per file: after an illegal access nothing works in the one that made it. In parallel
# where pytest-xdist is installed, since the time goes into compiling Triton kernels. Convolutions of
# PyTorch, with which ours are compared, would be in TF32.
smoke() {
  export NVIDIA_TF32_OVERRIDE=0 OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
  local status=0 parallel=() collected files file
  once "smoke of every kernel" "$python" tests/support/gpu_smoke.py || status=$?
  "$python" -c "import xdist" 2>/dev/null && parallel=(-n auto --dist worksteal)
  collected=$("$python" -m pytest tests -m gpu --collect-only -q -p no:cacheprovider 2>&1)
  files=$(sed -n 's/^\(tests\/[^:]*\.py\)::.*/\1/p' <<<"$collected" | sort -u)
  if [[ -z $files ]]; then
    echo "$collected"
    return 1
  fi
  grep -i "error" <<<"$collected"
  for file in $(grep -i lif <<<"$files") $(grep -vi lif <<<"$files"); do
    once "$file" "$python" -m pytest "$file" -m gpu -q -p no:cacheprovider "${parallel[@]}" ||
      status=$?
  done
  return "$status"
}

tune() {
  local status=0 tuner
  for tuner in tune_lif tune_unshared_matmul; do
    once "$tuner" "$python" "bench/$tuner.py" || status=$?
  done
  return "$status"
}

benchmarks() {
  limited "$python" -m pytest "$@" --benchmark-only --results "$results" --resume \
    -p no:cacheprovider
  local status=$?
  return $((status == 5 ? 0 : status)) # 5: all rows were there
}

step() { benchmarks bench/bench_training_step.py; }
folded() { benchmarks bench/bench_folded.py; }
conv() { benchmarks bench/bench_unshared_conv.py; }
lif() {
  benchmarks bench/bench_lif.py bench/bench_batch_norm_lif.py bench/bench_host.py \
    bench/bench_lif_memory.py
}

# Without the caching allocator, whose blocks would hide what reaches beyond a tensor.
sanitize() {
  if ! command -v compute-sanitizer >/dev/null; then
    echo "make gpu: compute-sanitizer is not installed; memory was not checked"
    return 1
  fi
  export NVIDIA_TF32_OVERRIDE=0 PYTORCH_NO_CUDA_MEMORY_CACHING=1
  local tool status=0
  for tool in memcheck racecheck synccheck; do
    once "$tool" compute-sanitizer --tool "$tool" --error-exitcode 1 "$python" \
      tests/support/gpu_smoke.py || status=$?
  done
  return "$status"
}

# Tests import the installed package, with its extension, not the checkout's.
export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}" PYTHONSAFEPATH=1
failed=()
for stage in "${stages[@]}"; do
  if [[ $stage != build && ! -d $site/realspike_ops ]]; then
    echo "make gpu: $stage needs the stage build to have succeeded" >&2
    failed+=("$stage (not run)")
    continue
  fi
  started=$SECONDS
  # Behind what was logged before: a stage may take several calls.
  "$stage" 2>&1 | tee -a "$results/gpu-$stage.log"
  status=${PIPESTATUS[0]}
  ((status == 0)) || failed+=("$stage ($status)")
  echo "make gpu: $stage ended with $status after $((SECONDS - started)) s"
done
((${#failed[@]} == 0)) && exit 0
echo "make gpu: failed: ${failed[*]}; 124 and 137 are time limits" >&2
exit 1
