#!/usr/bin/env bash
# make gpu: on a machine with a CUDA card, build for it, test, benchmark and check memory.
#
#   bash bench/gpu.sh [build] [test] [bench] [sanitize]
#
# runs the named stages in this order, or all of them. Each has a time limit of its own (seconds:
# BUILD_S, TEST_S for a file, ten times that for all in parallel, BENCH_S, SANITIZE_S for a tool) and a
# log in bench/results/, or in $OUT where that is set, which holds what it found until then; one that
# fails does not keep the next from running. Uses the python3 that has torch, or $PYTHON. A later call
# finds what `build` made.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
python=${PYTHON:-python3}
results=${OUT:-bench/results}
site=$PWD/build/gpu-site
stages=("$@")
((${#stages[@]})) || stages=(build test bench sanitize)

for stage in "${stages[@]}"; do
  case $stage in
    build | test | bench | sanitize) ;;
    *)
      echo "make gpu: no stage is called $stage; there are build, test, bench and sanitize" >&2
      exit 2
      ;;
  esac
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

# limited SECONDS COMMAND...: an interrupt lets pytest still write what it has measured.
limited() {
  timeout --signal=INT --kill-after=20 "$@"
}

build() {
  git describe --always --dirty 2>/dev/null
  nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>/dev/null
  "$python" -c 'import sys, torch, setuptools, pybind11
print("python", sys.version.split()[0], "torch", torch.__version__, "cuda", torch.version.cuda)
print("setuptools", setuptools.__version__, "pybind11", pybind11.__version__)'
  local capability
  capability=$("$python" -c "import torch; print('%d.%d' % torch.cuda.get_device_capability())")
  rm -rf "$site"
  REALSPIKE_CUDA=on TORCH_CUDA_ARCH_LIST="$capability" limited "${BUILD_S:-240}" \
    "$python" -m pip install -q --no-build-isolation --no-deps --no-index --target "$site" . &&
    "$python" -c "import realspike_ops; print('realspike:', realspike_ops.build_info())"
}

# In parallel where pytest-xdist is installed: the time goes into compiling Triton kernels, one after
# the other in a process. Else a process per file: after an illegal access nothing works in the one
# that made it. Convolutions of PyTorch, with which ours are compared, would be in TF32.
run_tests() {
  export NVIDIA_TF32_OVERRIDE=0
  if "$python" -c "import xdist" 2>/dev/null; then
    OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} limited $((10 * ${TEST_S:-150})) "$python" -m pytest tests \
      -m gpu -q -p no:cacheprovider -n auto --dist worksteal --continue-on-collection-errors
    return
  fi
  local collected files file status=0
  collected=$("$python" -m pytest tests -m gpu --collect-only -q -p no:cacheprovider 2>&1)
  files=$(sed -n 's/^\(tests\/[^:]*\.py\)::.*/\1/p' <<<"$collected" | sort -u)
  if [[ -z $files ]]; then
    echo "$collected"
    return 1
  fi
  grep -i "error" <<<"$collected"
  for file in $(grep unshared <<<"$files") $(grep -v unshared <<<"$files"); do
    echo "== $file"
    limited "${TEST_S:-150}" "$python" -m pytest "$file" -m gpu -q -p no:cacheprovider ||
      { status=$?; echo "== $file: failed with $status"; }
  done
  return "$status"
}

run_benchmarks() {
  limited "${BENCH_S:-540}" "$python" -m pytest bench/bench_unshared_conv.py bench/bench_lif.py \
    bench/bench_training_step.py bench/bench_lif_memory.py \
    --benchmark-only --results "$results" -p no:cacheprovider
}

# Without the caching allocator, whose blocks would hide what reaches beyond a tensor.
sanitize() {
  if ! command -v compute-sanitizer >/dev/null; then
    echo "make gpu: compute-sanitizer is not installed; memory was not checked"
    return 1
  fi
  local tool status=0
  for tool in memcheck racecheck synccheck; do
    echo "== $tool"
    NVIDIA_TF32_OVERRIDE=0 PYTORCH_NO_CUDA_MEMORY_CACHING=1 limited "${SANITIZE_S:-180}" compute-sanitizer \
      --tool "$tool" --error-exitcode 1 "$python" tests/support/gpu_smoke.py ||
      { status=$?; echo "== $tool: failed with $status"; }
  done
  return "$status"
}

# Tests import the installed package, with its extension, not the checkout's.
export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}" PYTHONSAFEPATH=1
failed=()
for stage in "${stages[@]}"; do
  case $stage in
    build) command=build ;;
    test) command=run_tests ;;
    bench) command=run_benchmarks ;;
    sanitize) command=sanitize ;;
  esac
  if [[ $stage != build && ! -d $site/realspike_ops ]]; then
    echo "make gpu: $stage needs the stage build to have succeeded" >&2
    failed+=("$stage (not run)")
    continue
  fi
  started=$SECONDS
  "$command" 2>&1 | tee "$results/gpu-$stage.log"
  status=${PIPESTATUS[0]}
  ((status == 0)) || failed+=("$stage ($status)")
  echo "make gpu: $stage ended with $status after $((SECONDS - started)) s"
done
((${#failed[@]} == 0)) && exit 0
echo "make gpu: failed: ${failed[*]}; 124 and 137 are time limits" >&2
exit 1
