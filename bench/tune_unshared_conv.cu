// Times every configuration of the CUDA convolution beside the one that the launcher chooses.
//
//   nvcc -O3 -std=c++17 --fmad=false -arch=native -Icsrc -o build/tune bench/tune_unshared_conv.cu
//   build/tune [CHANNELS SIZE SAMPLES RATE]
//
// Per case: what a copy of the card moves, the launcher's choice, the fastest configurations, and
// any whose sums are not those of the launcher's choice. Bytes are those of the weights that some
// sample uses. Launches follow one another, over copies of the weights that exceed the L2 cache.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <utility>
#include <vector>

#include "cuda/common/launch.cuh"
#include "cuda/unshared_conv/listed_kernel.cuh"
#include "cuda/unshared_conv/second_pass.cuh"
#include "cuda/unshared_conv/staged_kernel.cuh"

namespace realspike {
namespace {

void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::printf("%s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}

template <typename T>
T* allocate(size_t count) {
  T* memory = nullptr;
  check(cudaMalloc(&memory, count * sizeof(T)), "cudaMalloc");
  return memory;
}

// Numbers of the type of the weights: floats of [-1, 1), or any bytes.
__global__ void fill(uint32_t* words, size_t count, int type) {
  const size_t step = size_t{gridDim.x} * blockDim.x;
  for (size_t i = size_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += step) {
    uint64_t z = (i + 1) * 0x9e3779b97f4a7c15ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    const auto bits = static_cast<uint32_t>(z ^ (z >> 31));
    const auto number = [](uint32_t half) {
      return __float_as_uint(static_cast<float>(half) / 32768.0f - 1.0f);
    };
    const uint32_t pair = number(bits & 0xffff) >> 16 | (number(bits >> 16) & 0xffff0000u);
    words[i] = type == 0 ? number(bits >> 16) : type == 1 ? pair : bits;
  }
}

__global__ void largest_difference(const float* a, const float* b, size_t count, int* result) {
  const size_t step = size_t{gridDim.x} * blockDim.x;
  for (size_t i = size_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += step) {
    const float difference = fabsf(a[i] - b[i]);  // NaN is above every number, as an int too
    atomicMax(result, __float_as_int(difference));
  }
}

// A configuration of one of the kernels for rows.
struct Config {
  bool staged;
  StagedConfig in_stages;
  ListedConfig in_lists;

  int splits() const { return staged ? 1 : in_lists.splits; }
};

void launch(UnsharedConvParams p, const Config& config) {
  if (config.splits() == 1) p.workspace = nullptr;
  if (config.staged) {
    const StagedConfig& c = config.in_stages;
    launch(select_staged_kernel(p.weight_dtype, c), c.blocks, c.threads, c.shared_bytes, nullptr, p,
           make_staged_grid(p, c));
    return;
  }
  const ListedConfig& c = config.in_lists;
  launch(select_listed_kernel(p.weight_dtype, c), c.blocks, c.threads, c.shared_bytes, nullptr, p,
         make_listed_grid(p, c));
  if (c.splits == 1) return;
  const SecondPassGrid grid = make_second_pass_grid(p, c.splits);
  const auto finish = p.weight_dtype == DType::kInt8 ? unshared_conv_second_pass_kernel<int32_t>
                                                     : unshared_conv_second_pass_kernel<float>;
  launch(finish, grid.blocks, kSecondPassThreads, 0, nullptr, p, grid);
}

template <typename Run>
float fastest_us(int repeats, const Run& run) {
  static cudaEvent_t start, stop;
  if (start == nullptr) {
    check(cudaEventCreate(&start), "cudaEventCreate");
    check(cudaEventCreate(&stop), "cudaEventCreate");
  }
  float best = INFINITY;
  for (int round = 0; round < 4; ++round) {
    cudaEventRecord(start);
    for (int i = 0; i < repeats; ++i) run(round * repeats + i);
    cudaEventRecord(stop);
    check(cudaEventSynchronize(stop), "a kernel");
    float ms = 0;
    cudaEventElapsedTime(&ms, start, stop);
    best = std::min(best, ms * 1000 / static_cast<float>(repeats));
  }
  return best;
}

// The launcher's choice, and every configuration that has a kernel and may make sense.
std::vector<Config> configurations(const UnsharedConvParams& p) {
  std::vector<Config> all = {{stages_rows(p), choose_staged_config(p), choose_listed_config(p)}};
  const int widest = lanes_of_a_row(p, kUnsharedConvVec);
  for (int lanes = widest; lanes >= std::max(1, widest / 2); lanes /= 2) {
    ListedConfig listed{};
    listed.vec = kUnsharedConvVec;
    listed.lanes = lanes;
    listed.keep_rows = all[0].in_lists.keep_rows;
    for (int tile = 1; tile < 2 * p.N; tile *= 2) {
      for (int shares = 1; shares <= 16; shares *= 2) {
        const int threads = lanes * tile * shares;
        if (threads < 32 || threads > kUnsharedConvMaxThreads) continue;
        listed.sample_tile = tile;
        listed.shares = shares;
        for (const int splits : {1, 2, 4}) {
          if (splits > 1 && p.OH * p.OW > 256) continue;
          listed.splits = splits;
          all.push_back({false, {}, complete_listed_config(p, listed)});
        }
      }
    }
    for (const int threads : {64, 128, 256}) {
      for (const int samples : {4, 8}) {
        StagedConfig staged{};
        staged.lanes = lanes;
        staged.threads = threads;
        staged.stream_samples = samples;
        const bool enough_threads = threads / lanes >= 8 && lanes >= samples;
        if (enough_threads) all.push_back({true, complete_staged_config(p, staged), {}});
      }
    }
  }
  return all;
}

struct Case {
  int channels;
  int size;
  int samples;
  float rate;
};

class Tuner {
 public:
  Tuner() {
    const float us = fastest_us(
        4, [&](int) { cudaMemcpyAsync(other_, weights_, kWeightBytes, cudaMemcpyDeviceToDevice); });
    copy_ = 2.0 * kWeightBytes / us / 1e3;
    std::printf("a copy moves %.0f GB/s, read and written\n", copy_);
  }

  void run(const Case& of, DType dtype) {
    const int bytes = bytes_of(dtype);
    UnsharedConvParams p{};
    p.weight_dtype = dtype;
    p.N = of.samples;
    p.H = p.W = p.OH = p.OW = of.size;
    p.words = (of.channels + 31) / 32;
    p.G = 1;
    p.KH = p.KW = 3;
    p.Cin_g = p.Cout_g = of.channels;
    p.stride_h = p.stride_w = p.padding_h = p.padding_w = p.dilation_h = p.dilation_w = 1;
    p.weight_stride_p = int64_t{9} * of.channels * of.channels;
    const int64_t positions = int64_t{of.size} * of.size;
    p.out_stride_n = positions * of.channels;
    p.out_stride_c = 1;
    p.out_stride_p = of.channels;
    p.spikes = spikes_;
    p.workspace = workspace_;
    fill<<<2048, 256>>>(reinterpret_cast<uint32_t*>(weights_), kWeightBytes / 4, type_of(dtype));
    const double touched = make_spikes(of, p) * of.channels * bytes;

    const int64_t outputs = p.N * p.out_stride_n;
    const int64_t weight_bytes = positions * p.weight_stride_p * bytes;
    const auto copies = std::max<int64_t>(1, static_cast<int64_t>(kWeightBytes) / weight_bytes);
    if (outputs > kOutputs || weight_bytes > static_cast<int64_t>(kWeightBytes)) {
      std::printf("%d channels on %d x %d do not fit\n", of.channels, of.size, of.size);
      return;
    }
    const auto configs = configurations(p);
    p.weight = weights_;
    p.out = expected_;
    launch(p, configs[0]);
    p.out = out_;
    std::vector<Timed> timed;
    for (const Config& config : configs) {
      check(cudaMemset(out_, 0xff, outputs * sizeof(float)), "cudaMemset");
      p.weight = weights_;
      launch(p, config);
      check(cudaMemset(difference_, 0, sizeof(int)), "cudaMemset");
      largest_difference<<<1024, 256>>>(out_, expected_, outputs, difference_);
      int bits = 0;
      check(cudaMemcpy(&bits, difference_, sizeof bits, cudaMemcpyDeviceToHost), "a kernel");
      const float us = fastest_us(8, [&](int i) {
        p.weight = weights_ + i % copies * weight_bytes;
        launch(p, config);
      });
      float difference = 0;
      std::memcpy(&difference, &bits, sizeof difference);
      timed.push_back({config, us, difference});
    }
    std::printf("\n%d channels, %d x %d, %d samples, rate %g, %d bytes a weight: %.1f MB touched\n",
                of.channels, of.size, of.size, of.samples, of.rate, bytes, touched / 1e6);
    show("chosen", timed[0], touched);
    std::sort(timed.begin(), timed.end(), [](auto& a, auto& b) { return a.us < b.us; });
    for (size_t i = 0; i < std::min<size_t>(5, timed.size()); ++i) show("", timed[i], touched);
    for (const Timed& each : timed) {
      if (!(each.difference < 1e-3f * std::sqrt(9.0f * of.channels))) show("WRONG", each, touched);
    }
  }

 private:
  struct Timed {
    Config config;
    float us;
    float difference;
  };

  static constexpr size_t kWeightBytes = size_t{1280} << 20;
  static constexpr int64_t kOutputs = int64_t{64} << 20;

  static int type_of(DType dtype) {
    return dtype == DType::kFloat32 ? 0 : dtype == DType::kInt8 ? 2 : 1;
  }

  // Returns how many rows of the weights some sample uses.
  double make_spikes(const Case& of, const UnsharedConvParams& p) {
    const int64_t pixels = p.H * p.W;
    std::vector<uint32_t> words(p.N * pixels * p.words), any(pixels * p.words);
    std::mt19937 random(1);
    std::bernoulli_distribution fires(of.rate);
    for (size_t i = 0; i < words.size(); ++i) {
      const int64_t channels = std::min<int64_t>(32, of.channels - i % p.words * 32);
      for (int c = 0; c < channels; ++c) words[i] |= static_cast<uint32_t>(fires(random)) << c;
      any[i % any.size()] |= words[i];
    }
    check(cudaMemcpy(spikes_, words.data(), words.size() * 4, cudaMemcpyHostToDevice), "spikes");
    double rows = 0;
    for (size_t i = 0; i < any.size(); ++i) {
      const int64_t pixel = static_cast<int64_t>(i) / p.words, h = pixel / p.W, w = pixel % p.W;
      const auto windows = [](int64_t at, int64_t size) {
        return 3 - (at == 0) - (at == size - 1);
      };
      rows += __builtin_popcount(any[i]) * windows(h, p.H) * windows(w, p.W);
    }
    return rows;
  }

  void show(const char* what, const Timed& each, double touched) const {
    const double rate = touched / each.us / 1e3;
    std::printf("%7s %8.1f us %5.0f GB/s %3.0f%% of a copy  ", what, each.us, rate,
                100 * rate / copy_);
    const auto show_sizes = [&](const char* kernel, const auto& c, int shares) {
      std::printf("%s tile %d lanes %d shares %d threads %d splits %d blocks %lld", kernel,
                  c.sample_tile, c.lanes, shares, c.threads, each.config.splits(),
                  static_cast<long long>(c.blocks));
    };
    if (each.config.staged) {
      show_sizes("staged", each.config.in_stages, 1);
    } else {
      show_sizes("listed", each.config.in_lists, each.config.in_lists.shares);
    }
    std::printf(" difference %.1g\n", each.difference);
  }

  char* const weights_ = allocate<char>(kWeightBytes);
  char* const other_ = allocate<char>(kWeightBytes);
  uint32_t* const spikes_ = allocate<uint32_t>(size_t{16} << 20);
  float* const out_ = allocate<float>(kOutputs);
  float* const expected_ = allocate<float>(kOutputs);
  char* const workspace_ = allocate<char>(size_t{2} << 30);
  int* const difference_ = allocate<int>(1);
  double copy_ = 0;
};

}  // namespace
}  // namespace realspike

int main(int count, char** arguments) {
  using namespace realspike;
  std::vector<Case> cases;
  if (count == 5) {
    cases.push_back({std::atoi(arguments[1]), std::atoi(arguments[2]), std::atoi(arguments[3]),
                     static_cast<float>(std::atof(arguments[4]))});
  } else {
    for (const auto& [channels, size] :
         {std::pair{128, 32}, {256, 16}, {512, 8}, {64, 8}, {16, 32}}) {
      for (const int samples : {1, 4, 16, 64}) cases.push_back({channels, size, samples, 0.1f});
    }
  }
  Tuner tuner;
  for (const Case& each : cases) {
    for (const DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kInt8}) {
      tuner.run(each, dtype);
    }
  }
}
