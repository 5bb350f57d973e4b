"""What the device of tests/support/simt promises: right kernels are right, mistakes are errors."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from artefacts import made, sources_in, version

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")

PROGRAM = r"""
#include "simt_cpu.h"

#include <cmath>
#include <cstdio>
#include <map>
#include <string>

// ---- right ----

__global__ void block_sum(const int* in, int* out, int rounds) {
  __shared__ int partial[256];
  int total = 0;
  for (int round = 0; round < rounds; ++round) {
    partial[threadIdx.x] = in[threadIdx.x] + round;
    __syncthreads();
    for (unsigned step = blockDim.x / 2; step > 0; step /= 2) {
      if (threadIdx.x < step) partial[threadIdx.x] += partial[threadIdx.x + step];
      __syncthreads();
    }
    total += partial[0];
    __syncthreads();
  }
  if (threadIdx.x == 0) out[blockIdx.x] = total;
}

__global__ void warp_collectives(int* out) {
  const int t = threadIdx.x, lane = t % 32;
  int sum = t;
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
  int scan = 1;
  for (int step = 1; step < 32; step *= 2) {
    const int below = __shfl_up_sync(~0u, scan, step);
    if (lane >= step) scan += below;
  }
  int* mine = out + t * 12;
  mine[0] = sum;
  mine[1] = scan;
  mine[2] = __shfl_sync(~0u, t, 5);
  mine[3] = __shfl_sync(~0u, t, 3, 8);
  mine[4] = __shfl_down_sync(~0u, t, 2);
  mine[5] = __shfl_down_sync(~0u, t, 2, 4);
  mine[6] = static_cast<int>(__ballot_sync(~0u, lane % 3 == 0));
  mine[7] = __any_sync(~0u, lane == 31) + 2 * __all_sync(~0u, lane < 31);
  if (lane < 16) {
    mine[8] = static_cast<int>(__ballot_sync(0xffffu, lane & 1));
  } else {
    mine[8] = static_cast<int>(__ballot_sync(0xffff0000u, lane & 1));
  }
  __syncwarp();
  mine[9] = __popc(t) + 100 * __clz(t) + 10000 * __ffs(t);
  mine[10] = static_cast<int>(__shfl_xor_sync(~0u, 0.5 + t, 1) * 2);
  mine[11] = static_cast<int>(__umul64hi(uint64_t{1} << 63, 2 * t));
}

__global__ void coordinates(int* out) {
  const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  const unsigned t = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  ++out[block * blockDim.x * blockDim.y * blockDim.z + t];
}

__global__ void fresh_shared(float* out) {
  __shared__ float fixed[8];
  float* dynamic = static_cast<float*>(simt::dynamic_shared());
  if (threadIdx.x == 0) out[blockIdx.x] = fixed[3] + dynamic[5];
  fixed[3] = dynamic[5] = 1.0f;
}

// ---- wrong ----

__global__ void missing_barrier(int* out) {
  __shared__ int values[64];
  values[threadIdx.x] = threadIdx.x;
  out[threadIdx.x] = threadIdx.x == 0 ? 0 : values[threadIdx.x - 1];
}

// Every thread waits for its warp before it reads what another warp wrote.
__global__ void missing_barrier_behind_a_collective(int* out) {
  __shared__ int values[64];
  values[threadIdx.x] = threadIdx.x;
  __syncwarp();
  __syncwarp();
  out[threadIdx.x] = values[threadIdx.x ^ 32];
}

__global__ void early_exit() {
  if (threadIdx.x == 40) return;
  __syncthreads();
}

__global__ void late_exit() {
  __syncthreads();
  if (threadIdx.x < 8) return;
  __syncthreads();
}

__global__ void divergent_barrier() {
  if (threadIdx.x < 16) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

__global__ void barrier_count(int rounds) {
  for (int round = 0; round < rounds + static_cast<int>(threadIdx.x % 2); ++round) __syncthreads();
}

__global__ void ballot_after_exit() {
  if (threadIdx.x >= 20) return;
  __ballot_sync(~0u, 1);
}

__global__ void ballot_of_half_a_warp() {
  if (threadIdx.x < 16) __ballot_sync(~0u, 1);
  __syncthreads();
}

__global__ void two_collectives() {
  if (threadIdx.x < 16) {
    __ballot_sync(~0u, 1);
  } else {
    __shfl_sync(~0u, 1, 0);
  }
}

__global__ void foreign_mask() {
  if (threadIdx.x < 2) __ballot_sync(2u, 1);
}

__global__ void shuffle_from_outside() {
  if (threadIdx.x < 4) __shfl_sync(0xfu, 1, 7);
}

__global__ void collective() { __syncwarp(); }

__global__ void misaligned(const float* in, float* out) {
  out[0] = __ldg(reinterpret_cast<const float4*>(in + 1)).x;
}

__global__ void write_shared(int i) {
  __shared__ float fixed[8];
  fixed[i] = 1.0f;
}

__global__ void write_dynamic(int i) { static_cast<float*>(simt::dynamic_shared())[i] = 1.0f; }

__global__ void fill_stack(int* out) {
  volatile char large[(128 << 10) - 4096];
  for (unsigned i = 0; i < sizeof(large); ++i) large[i] = 0;
  out[0] = large[5];
}

__global__ void nothing() {}

#define REQUIRE(condition) \
  if (!(condition)) throw std::runtime_error("wrong at line " + std::to_string(__LINE__))

void check_block_sum() {
  int in[256], out[3] = {};
  for (int i = 0; i < 256; ++i) in[i] = i;
  simt::launch(3, 256, 0, [&] { block_sum(in, out, 2); });
  for (int total : out) REQUIRE(total == 2 * 255 * 128 + 256);
}

void check_warp_collectives() {
  int out[64 * 12];
  simt::launch(1, 64, 0, [&] { warp_collectives(out); });
  for (int t = 0; t < 64; ++t) {
    const int* mine = out + t * 12;
    const int lane = t % 32, warp = t - lane;
    REQUIRE(mine[0] == 31 * 16 + 32 * warp);
    REQUIRE(mine[1] == lane + 1);
    REQUIRE(mine[2] == warp + 5);
    REQUIRE(mine[3] == t / 8 * 8 + 3);
    REQUIRE(mine[4] == (lane < 30 ? t + 2 : t));
    REQUIRE(mine[5] == (t % 4 < 2 ? t + 2 : t));
    REQUIRE(mine[6] == 0x49249249);
    REQUIRE(mine[7] == 1);
    REQUIRE(static_cast<unsigned>(mine[8]) == (lane < 16 ? 0xaaaau : 0xaaaa0000u));
    int bits = 0, top = 32, first = 0;
    for (int b = 31; b >= 0; --b) {
      if (t >> b & 1) {
        ++bits;
        if (top == 32) top = 31 - b;
        first = b + 1;
      }
    }
    REQUIRE(mine[9] == bits + 100 * top + 10000 * first);
    REQUIRE(mine[10] == 2 * (t ^ 1) + 1);
    REQUIRE(mine[11] == t);
  }
}

void check_coordinates() {
  int out[2 * 3 * 2 * 4 * 3 * 2] = {};
  simt::launch({2, 3, 2}, {4, 3, 2}, 0, [&] { coordinates(out); });
  for (int count : out) REQUIRE(count == 1);
}

void check_fresh_shared() {
  float out[2];
  simt::launch(2, 1, 64, [&] { fresh_shared(out); });
  REQUIRE(std::isnan(out[0]) && std::isnan(out[1]));
}

void check_missing_barrier() {
  int out[64];
  simt::launch(1, 64, 0, [&] { missing_barrier(out); });
  for (int t = 1; t < 64; ++t) REQUIRE(out[t] == t - 1);
}

void check_missing_barrier_behind_a_collective() {
  int out[64];
  simt::launch(1, 64, 0, [&] { missing_barrier_behind_a_collective(out); });
  for (int t = 0; t < 64; ++t) REQUIRE(out[t] == (t ^ 32));
}

void check_recovery() {
  for (int round = 0; round < 3; ++round) {
    bool caught = false;
    try {
      simt::launch(1, 64, 0, [] { early_exit(); });
    } catch (const simt::Error&) {
      caught = true;
    }
    REQUIRE(caught);
    check_block_sum();
  }
}

int main(int, char** arguments) {
  alignas(16) float values[8] = {};
  int number[1];
  const std::map<std::string, std::function<void()>> checks = {
      {"block_sum", check_block_sum},
      {"warp_collectives", check_warp_collectives},
      {"coordinates", check_coordinates},
      {"fresh_shared", check_fresh_shared},
      {"recovery", check_recovery},
      {"largest_block", [] { simt::launch(1, 1024, 48 << 10, [] { nothing(); }); }},
      {"missing_barrier", check_missing_barrier},
      {"missing_barrier_behind_a_collective", check_missing_barrier_behind_a_collective},
      {"early_exit", [] { simt::launch(1, 64, 0, [] { early_exit(); }); }},
      {"late_exit", [] { simt::launch(1, 64, 0, [] { late_exit(); }); }},
      {"divergent_barrier", [] { simt::launch(1, 32, 0, [] { divergent_barrier(); }); }},
      {"barrier_count", [] { simt::launch(1, 32, 0, [] { barrier_count(2); }); }},
      {"ballot_after_exit", [] { simt::launch(1, 32, 0, [] { ballot_after_exit(); }); }},
      {"ballot_of_half_a_warp", [] { simt::launch(1, 32, 0, [] { ballot_of_half_a_warp(); }); }},
      {"two_collectives", [] { simt::launch(1, 32, 0, [] { two_collectives(); }); }},
      {"foreign_mask", [] { simt::launch(1, 32, 0, [] { foreign_mask(); }); }},
      {"shuffle_from_outside", [] { simt::launch(1, 32, 0, [] { shuffle_from_outside(); }); }},
      {"half_a_warp_exists", [] { simt::launch(1, 48, 0, [] { collective(); }); }},
      {"misaligned", [&] { simt::launch(1, 1, 0, [&] { misaligned(values, values); }); }},
      {"fill_stack", [&] { simt::launch(1, 1, 0, [&] { fill_stack(number); }); }},
      {"too_many_threads", [] { simt::launch(1, 1025, 0, [] { nothing(); }); }},
      {"too_much_shared", [] { simt::launch(1, 32, (48 << 10) + 1, [] { nothing(); }); }},
      {"empty_grid", [] { simt::launch(0, 32, 0, [] { nothing(); }); }},
      {"empty_block", [] { simt::launch(1, 0, 0, [] { nothing(); }); }},
      {"last_static", [] { simt::launch(1, 1, 0, [] { write_shared(7); }); }},
      {"beyond_static", [] { simt::launch(1, 1, 0, [] { write_shared(8); }); }},
      {"last_dynamic", [] { simt::launch(1, 1, 32, [] { write_dynamic(7); }); }},
      {"beyond_dynamic", [] { simt::launch(1, 1, 32, [] { write_dynamic(8); }); }},
  };
  try {
    checks.at(arguments[1])();
  } catch (const std::exception& e) {
    std::printf("%s\n", e.what());
    return 3;
  }
}
"""

SANITIZE = ["-fsanitize=address,undefined", "-fsanitize-sections=simt_shared"]


def compiled(sanitize: bool) -> Path:
    command = ["g++", "-std=c++17", "-O1", "-g", f"-I{ROOT / 'tests' / 'support' / 'simt'}"]
    command += SANITIZE * sanitize

    def make(folder: Path) -> None:
        (folder / "kernels.cpp").write_text(PROGRAM)
        program = [str(folder / "kernels.cpp"), "-o", str(folder / "kernels")]
        subprocess.run([*command, *program], check=True)

    name = "simt-shim-sanitized" if sanitize else "simt-shim"
    sources = sources_in("tests/support/simt")
    return made(name, sources, [*command, PROGRAM, version("g++")], make) / "kernels"


@pytest.fixture(scope="session")
def program():
    """Compiles the kernels above; returns a function that runs one of them."""
    built = {sanitize: compiled(sanitize) for sanitize in (False, True)}

    def run(name: str, shuffle: int = 0, sanitize: bool = False) -> tuple[int, str]:
        done = subprocess.run(
            [built[sanitize], name],
            env={**os.environ, "SIMT_SHUFFLE": str(shuffle)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=60,
        )
        return done.returncode, done.stdout.decode()

    return run


RIGHT = ("block_sum", "warp_collectives", "coordinates", "fresh_shared", "recovery")


@pytest.mark.parametrize("sanitize", [False, True], ids=("plain", "sanitized"))
@pytest.mark.parametrize("shuffle", range(4))
@pytest.mark.parametrize("name", [*RIGHT, "largest_block"])
def test_right_kernels_pass_in_any_order(program, name, shuffle, sanitize):
    assert program(name, shuffle, sanitize) == (0, "")


@pytest.mark.parametrize("shuffle", [1, 2, 3])
@pytest.mark.parametrize("name", ["missing_barrier", "missing_barrier_behind_a_collective"])
def test_missing_barrier_shows_in_a_shuffled_order(program, name, shuffle):
    assert program(name, 0) == (0, "")  # the ascending order hides it
    status, output = program(name, shuffle)
    assert status == 3
    assert output.startswith("wrong at line")


@pytest.mark.parametrize("sanitize", [False, True], ids=("plain", "sanitized"))
@pytest.mark.parametrize(
    ("name", "parts"),
    {
        "early_exit": (
            "thread 0-39 waits in __syncthreads at kernels.cpp:",
            "thread 40 has exited",
        ),
        "late_exit": ("thread 0-7 has exited", "thread 8-63 waits in __syncthreads"),
        "divergent_barrier": ("wait for each other for ever", "thread 0-15 waits", "thread 16-31"),
        "barrier_count": ("thread 0 has exited", "thread 1 waits in __syncthreads"),
        "ballot_after_exit": ("__ballot_sync", "has exited"),
        "ballot_of_half_a_warp": (
            "thread 0-15 waits in __ballot_sync",
            "thread 16-31 waits in __s",
        ),
        "two_collectives": ("__shfl_sync", "waits in __ballot_sync"),
        "foreign_mask": ("thread 0: __ballot_sync", "does not name the calling lane"),
        "shuffle_from_outside": ("reads lane 7, which the mask does not name",),
        "half_a_warp_exists": ("names lane 16, which does not exist",),
        "misaligned": ("not a multiple of 16",),
        "fill_stack": ("needs more stack",),
        "too_many_threads": ("1025 threads; at most 1024",),
        "too_much_shared": ("49153 bytes of dynamic shared memory",),
        "empty_grid": ("an empty block or grid",),
        "empty_block": ("an empty block or grid",),
    }.items(),
)
def test_mistakes_are_errors(program, name, parts, sanitize):
    status, output = program(name, sanitize=sanitize)
    assert status == 3
    for part in parts:
        assert part in output


@pytest.mark.parametrize("memory", ["static", "dynamic"])
def test_address_sanitizer_sees_writes_beyond_shared_memory(program, memory):
    assert program(f"last_{memory}", sanitize=True) == (0, "")
    status, output = program(f"beyond_{memory}", sanitize=True)
    assert status != 0
    assert "AddressSanitizer" in output
    assert f"write_{memory.replace('static', 'shared')}" in output
