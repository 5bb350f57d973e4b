#!/usr/bin/env bash
# make gpu: on a machine with a CUDA card, build for it, test, check memory and benchmark.
# Results go to bench/results/, or to $OUT where that is set. Uses the python3 that has torch.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
results=${OUT:-bench/results}

if ! "$python" -c "import torch; assert torch.cuda.is_available()" 2>/dev/null; then
  echo "make gpu: no CUDA device that torch can see; there is nothing to run" >&2
  exit 1
fi
# Before anything is built: time on a card is precious.
if ! "$python" -c "import pytest, pytest_benchmark, hypothesis, pybind11" 2>/dev/null; then
  echo "make gpu: needs pytest, pytest-benchmark, hypothesis and pybind11 in $python" >&2
  exit 1
fi
mkdir -p "$results"
capability=$("$python" -c "import torch; print('%d.%d' % torch.cuda.get_device_capability())")

site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
REALSPIKE_CUDA=on TORCH_CUDA_ARCH_LIST="$capability" "$python" -m pip install -q \
  --no-build-isolation --no-deps --no-index --target "$site" .
export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
# Tests import the installed package, with its extension, not the checkout's.
export PYTHONSAFEPATH=1
"$python" -c "import realspike_ops; print('realspike:', realspike_ops.build_info())"

"$python" -m pytest tests -m gpu -p no:cacheprovider 2>&1 | tee "$results/gpu-tests.log"

if command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck; do
    compute-sanitizer --tool "$tool" --error-exitcode 1 \
      "$python" tests/gpu_smoke.py 2>&1 | tee "$results/compute-sanitizer-$tool.log"
  done
else
  echo "make gpu: compute-sanitizer is not installed; memory was not checked"
fi

"$python" -m pytest bench --benchmark-only --results "$results" 2>&1 | tee "$results/bench.log"
