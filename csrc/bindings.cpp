// The only file that knows Python. Pointers and streams cross as integers; realspike_ops/_native.py
// is the only caller and has checked every argument.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "core/batch_norm_lif.h"
#include "core/lif.h"
#include "core/numbers.h"
#include "core/pack_spikes.h"
#include "core/program.h"
#include "core/unshared_conv.h"
#include "cpu/common/isa.h"
#include "cpu/common/memory.h"
#include "cpu/common/parallel.h"
#include "cpu/unshared_conv/tiles.h"

#ifdef REALSPIKE_WITH_CUDA
#include <cuda_runtime_api.h>
#endif

namespace py = pybind11;
using namespace pybind11::literals;

namespace realspike {
namespace {

template <class T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

#ifdef REALSPIKE_WITH_CUDA
void check_cuda(int error, const char* op) {
  if (error == cudaSuccess) return;
  throw std::runtime_error(std::string(op) + ": " +
                           cudaGetErrorString(static_cast<cudaError_t>(error)));
}
#endif

// The form of a neuron, made once for many calls.
struct LifForm {
  float v_reset;
  Reset reset;
  bool detach_reset;
  bool ternary;
  Surrogate surrogate;
  float surrogate_scale;
};

LifForm lif_form(float v_reset, int reset, bool detach_reset, bool ternary, int surrogate,
                 float surrogate_scale) {
  return {v_reset, static_cast<Reset>(reset),         detach_reset,
          ternary, static_cast<Surrogate>(surrogate), surrogate_scale};
}

PerNeuron per_neuron(uintptr_t values, float all, int64_t inner, int64_t size) {
  return {pointer<const float>(values), all, inner, size};
}

LifParams lif_params(const LifForm& form, const PerNeuron& amplitude, const PerNeuron& decay,
                     const PerNeuron& v_threshold, int dtype, int save, int64_t T, int64_t N,
                     int64_t x_stride_t, int64_t period) {
  return {nullptr,
          nullptr,
          nullptr,
          amplitude,
          decay,
          v_threshold,
          static_cast<DType>(dtype),
          static_cast<LifSave>(save),
          T,
          N,
          x_stride_t,
          period,
          form.v_reset,
          form.reset,
          form.detach_reset,
          form.ternary,
          form.surrogate,
          form.surrogate_scale};
}

// The same neurons on other tensors.
LifParams lif_params_at(LifParams params, uintptr_t x, uintptr_t v_init, uintptr_t saved,
                        uintptr_t amplitude, uintptr_t decay, uintptr_t v_threshold) {
  params.x = pointer<const void>(x);
  params.v_init = pointer<const float>(v_init);
  params.saved = pointer<void>(saved);
  params.amplitude.values = pointer<const float>(amplitude);
  params.decay.values = pointer<const float>(decay);
  params.v_threshold.values = pointer<const float>(v_threshold);
  return params;
}

void lif_fwd(const LifParams& params, uintptr_t y, uintptr_t v_last, int num_threads) {
  lif_fwd_cpu({params, pointer<void>(y), pointer<float>(v_last)}, num_threads);
}

void lif_spikes(const LifParams& params, uintptr_t y, int num_threads) {
  lif_spikes_cpu({params, pointer<void>(y), nullptr}, num_threads);
}

void lif_packed(const LifParams& params, uintptr_t packed, uintptr_t v_last, int64_t C, int64_t P,
                bool channels_last, int num_threads) {
  lif_packed_cpu({params, pointer<uint32_t>(packed), pointer<float>(v_last), C, P, ceil_div(C, 32),
                  channels_last},
                 num_threads);
}

LifBackward lif_backward(const LifParams& params, uintptr_t grad_y, uintptr_t grad_v_last,
                         uintptr_t grad_x, uintptr_t grad_v_init, uintptr_t grad_amplitude,
                         uintptr_t grad_decay, uintptr_t grad_v_threshold) {
  return {params,
          pointer<const void>(grad_y),
          pointer<const float>(grad_v_last),
          pointer<void>(grad_x),
          pointer<float>(grad_v_init),
          pointer<float>(grad_amplitude),
          pointer<float>(grad_decay),
          pointer<float>(grad_v_threshold)};
}

void lif_bwd(const LifParams& params, uintptr_t grad_y, uintptr_t grad_v_last, uintptr_t grad_x,
             uintptr_t grad_v_init, uintptr_t grad_amplitude, uintptr_t grad_decay,
             uintptr_t grad_v_threshold, int num_threads) {
  lif_bwd_cpu(lif_backward(params, grad_y, grad_v_last, grad_x, grad_v_init, grad_amplitude,
                           grad_decay, grad_v_threshold),
              num_threads);
}

BatchNorm batch_norm(uintptr_t mean, uintptr_t inv_std, uintptr_t weight, uintptr_t bias,
                     uintptr_t residual, int64_t residual_stride, int64_t C, int64_t P,
                     bool channels_last) {
  return {pointer<const float>(mean),
          pointer<const float>(inv_std),
          pointer<const float>(weight),
          pointer<const float>(bias),
          pointer<const void>(residual),
          residual_stride,
          C,
          P,
          channels_last};
}

void batch_norm_moments(uintptr_t x, int dtype, int64_t T, int64_t B, int64_t C, int64_t P,
                        bool channels_last, int64_t x_stride_t, uintptr_t moments,
                        int num_threads) {
  batch_norm_moments_cpu({{static_cast<DType>(dtype), T, B, C, P, channels_last},
                          pointer<const void>(x),
                          x_stride_t,
                          pointer<double>(moments)},
                         num_threads);
}

void batch_norm_statistics(uintptr_t moments, uintptr_t running_mean, uintptr_t running_var,
                           uintptr_t mean, uintptr_t inv_std, int64_t C, double momentum,
                           double eps) {
  batch_norm_statistics_cpu({pointer<const double>(moments), pointer<float>(running_mean),
                             pointer<float>(running_var), pointer<float>(mean),
                             pointer<float>(inv_std), C, momentum, eps});
}

void batch_norm_of(uintptr_t x, int dtype, int64_t T, int64_t B, int64_t C, int64_t P,
                   bool channels_last, int64_t x_stride_t, uintptr_t running_mean,
                   uintptr_t running_var, uintptr_t mean, uintptr_t inv_std, uintptr_t count,
                   double momentum, double eps, int num_threads) {
  batch_norm_of_cpu(
      {{static_cast<DType>(dtype), T, B, C, P, channels_last}, pointer<const void>(x), x_stride_t},
      {nullptr, pointer<float>(running_mean), pointer<float>(running_var), pointer<float>(mean),
       pointer<float>(inv_std), C, momentum, eps},
      pointer<double>(count), num_threads);
}

void batch_norm_lif_fwd(const LifParams& lif, const BatchNorm& norm, uintptr_t y, uintptr_t v_last,
                        int num_threads) {
  batch_norm_lif_fwd_cpu({{lif, pointer<void>(y), pointer<float>(v_last)}, norm}, num_threads);
}

void batch_norm_lif_bwd(const LifParams& lif, const BatchNorm& norm, uintptr_t grad_y,
                        uintptr_t grad_v_last, uintptr_t grad_current, uintptr_t grad_v_init,
                        uintptr_t grad_amplitude, uintptr_t grad_decay, uintptr_t grad_v_threshold,
                        uintptr_t sums, uintptr_t grad_weight, uintptr_t grad_bias,
                        uintptr_t grad_x, uintptr_t count, int num_threads) {
  batch_norm_lif_bwd_cpu(
      {lif_backward(lif, grad_y, grad_v_last, grad_current, grad_v_init, grad_amplitude, grad_decay,
                    grad_v_threshold),
       norm, pointer<double>(sums), pointer<float>(grad_weight), pointer<float>(grad_bias),
       pointer<void>(grad_x), pointer<const double>(count)},
      num_threads);
}

void batch_norm_bwd(const BatchNorm& norm, int dtype, int64_t T, int64_t B, uintptr_t grad_current,
                    uintptr_t x, int64_t x_stride_t, uintptr_t sums, uintptr_t count,
                    uintptr_t grad_x, int num_threads) {
  batch_norm_bwd_cpu({{static_cast<DType>(dtype), T, B, norm.C, norm.P, norm.channels_last},
                      norm,
                      pointer<const void>(grad_current),
                      pointer<const void>(x),
                      x_stride_t,
                      pointer<const double>(sums),
                      pointer<const double>(count),
                      pointer<void>(grad_x)},
                     num_threads);
}

PackSpikesParams pack_params(uintptr_t spikes, uintptr_t packed, int64_t N, int64_t C, int64_t P,
                             int64_t stride_n, int64_t stride_c, int64_t stride_p, int element_size,
                             uint64_t one, uint64_t sign, uintptr_t not_binary) {
  return {pointer<const void>(spikes),
          pointer<uint32_t>(packed),
          N,
          C,
          P,
          ceil_div(C, 32),
          stride_n,
          stride_c,
          stride_p,
          element_size,
          one,
          sign,
          pointer<int32_t>(not_binary)};
}

UnpackSpikesParams unpack_params(uintptr_t packed, uintptr_t spikes, int64_t N, int64_t C,
                                 int64_t P, int64_t stride_n, int64_t stride_c, int64_t stride_p) {
  return {pointer<const uint32_t>(packed),
          pointer<float>(spikes),
          N,
          C,
          P,
          ceil_div(C, 32),
          stride_n,
          stride_c,
          stride_p};
}

// A field of UnsharedConvParams, which Python gives by its name.
struct Field {
  py::str name;
  bool is_pointer;
  void (*set)(UnsharedConvParams& params, py::handle value);
};

template <auto kMember>
Field field(const char* name) {
  using T = std::remove_reference_t<decltype(std::declval<UnsharedConvParams&>().*kMember)>;
  return {py::reinterpret_steal<py::str>(PyUnicode_InternFromString(name)), std::is_pointer_v<T>,
          [](UnsharedConvParams& params, py::handle value) {
            if constexpr (std::is_pointer_v<T>) {
              params.*kMember = reinterpret_cast<T>(value.cast<uintptr_t>());
            } else if constexpr (std::is_enum_v<T>) {
              params.*kMember = static_cast<T>(value.cast<int>());
            } else {
              params.*kMember = value.cast<T>();
            }
          }};
}

template <class... Fields>
std::vector<Field> all_of(const Fields&... fields) {
  return {fields...};
}

// A pointer that is not given is nullptr, a number has to be given, and other names are refused.
UnsharedConvParams unshared_conv_params(const py::kwargs& given) {
#define FIELD(name) field<&UnsharedConvParams::name>(#name)
  static const auto& fields = *new std::vector(
      all_of(FIELD(spikes), FIELD(weight), FIELD(bias), FIELD(amplitude), FIELD(scale), FIELD(out),
             FIELD(weight_dtype), FIELD(N), FIELD(H), FIELD(W), FIELD(words), FIELD(OH), FIELD(OW),
             FIELD(G), FIELD(KH), FIELD(KW), FIELD(Cin_g), FIELD(Cout_g), FIELD(stride_h),
             FIELD(stride_w), FIELD(padding_h), FIELD(padding_w), FIELD(dilation_h),
             FIELD(dilation_w), FIELD(weight_stride_p), FIELD(bias_stride_c), FIELD(bias_stride_p),
             FIELD(out_stride_n), FIELD(out_stride_c), FIELD(out_stride_p)));
#undef FIELD
  UnsharedConvParams params{};
  size_t found = 0;
  for (const Field& field : fields) {
    const py::handle value = PyDict_GetItemWithError(given.ptr(), field.name.ptr());
    found += value ? 1 : 0;
    if (value) {
      field.set(params, value);
    } else if (!field.is_pointer) {
      throw py::type_error("missing field: " + std::string(field.name));
    }
  }
  if (found != given.size()) {
    for (const Field& field : fields) given.attr("pop")(field.name, py::none());
    throw py::type_error("no such field: " + std::string(py::str(given.begin()->first)));
  }
  return params;
}

AddedCurrent added_current(uintptr_t values, int64_t stride_n, int64_t stride_c, int64_t stride_p,
                           uintptr_t spikes, uintptr_t negative) {
  return {pointer<const float>(values),
          stride_n,
          stride_c,
          stride_p,
          pointer<const uint32_t>(spikes),
          pointer<const uint32_t>(negative)};
}

UnsharedConvLif with_neurons(const UnsharedConvParams& conv, const LifParams& lif, int64_t maps,
                             int64_t signs, const std::vector<AddedCurrent>& added,
                             uintptr_t packed, uintptr_t v_last) {
  const int64_t C = conv.G * conv.Cout_g, P = conv.OH * conv.OW;
  UnsharedConvLif params{
      conv,
      {lif, pointer<uint32_t>(packed), pointer<float>(v_last), C, P, ceil_div(C, 32), true},
      maps,
      signs,
      static_cast<int64_t>(added.size()),
      {}};
  if (added.size() > kMostAddedCurrents) throw std::invalid_argument("too many added currents");
  std::copy(added.begin(), added.end(), params.added);
  return params;
}

Place place(const std::pair<int64_t, int64_t>& of) { return {of.first, of.second}; }

// Whether dictionaries still hold, in this order, the very objects of `items`: the keys and values
// of one dictionary after the other, None behind each.
bool hold(const py::tuple& dicts, const py::tuple& items) {
  Py_ssize_t at = 0;
  const Py_ssize_t count = PyTuple_GET_SIZE(items.ptr());
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(dicts.ptr()); ++i) {
    PyObject *key, *value;
    for (Py_ssize_t next = 0; PyDict_Next(PyTuple_GET_ITEM(dicts.ptr(), i), &next, &key, &value);) {
      if (at + 2 > count || PyTuple_GET_ITEM(items.ptr(), at) != key ||
          PyTuple_GET_ITEM(items.ptr(), at + 1) != value) {
        return false;
      }
      at += 2;
    }
    if (at == count || PyTuple_GET_ITEM(items.ptr(), at) != Py_None) return false;
    ++at;
  }
  return at == count;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Kernels of realspike_ops; see csrc/core for the contract of each.";

  py::class_<LifForm>(m, "LifForm").def(py::init(&lif_form));
  py::class_<PerNeuron>(m, "PerNeuron").def(py::init(&per_neuron));
  py::class_<LifParams>(m, "LifParams").def(py::init(&lif_params)).def("at", &lif_params_at);
  py::class_<BatchNorm>(m, "BatchNorm").def(py::init(&batch_norm));
  py::class_<PackSpikesParams>(m, "PackSpikesParams").def(py::init(&pack_params));
  py::class_<UnpackSpikesParams>(m, "UnpackSpikesParams").def(py::init(&unpack_params));
  py::class_<UnsharedConvParams>(m, "UnsharedConvParams").def(py::init(&unshared_conv_params));
  py::class_<AddedCurrent>(m, "AddedCurrent").def(py::init(&added_current));
  using PlaceOf = std::pair<int64_t, int64_t>;  // block, bytes
  py::class_<Program>(m, "Program")
      .def(py::init<>())
      .def("add_lif",
           [](Program& program, const LifParams& lif, int64_t C, int64_t P, bool channels_last,
              PlaceOf x, PlaceOf packed) {
             program.add_lif({lif, nullptr, nullptr, C, P, ceil_div(C, 32), channels_last},
                             place(x), place(packed));
           })
      .def("add_conv",
           [](Program& program, const UnsharedConvParams& conv, PlaceOf spikes, PlaceOf out,
              bool products) { program.add_conv(conv, place(spikes), place(out), products); })
      .def("add_conv_lif",
           [](Program& program, const UnsharedConvParams& conv, const LifParams& lif, int64_t maps,
              int64_t signs, const std::vector<AddedCurrent>& added, PlaceOf spikes, PlaceOf packed,
              const std::vector<std::tuple<PlaceOf, PlaceOf, PlaceOf>>& places, bool products) {
             std::vector<Program::AddedPlaces> of_added;
             for (const auto& [values, fired, negative] : places) {
               of_added.push_back({place(values), place(fired), place(negative)});
             }
             program.add_conv_lif(with_neurons(conv, lif, maps, signs, added, 0, 0), place(spikes),
                                  place(packed), std::move(of_added), products);
           })
      .def("add_copy", [](Program& program, PlaceOf from, PlaceOf to,
                          int64_t bytes) { program.add_copy(place(from), place(to), bytes); })
      .def("add_sum",
           [](Program& program, PlaceOf from, PlaceOf to, int64_t count, bool subtract) {
             program.add_sum(place(from), place(to), count, subtract);
           })
      .def("run_cpu", &Program::run_cpu, py::call_guard<py::gil_scoped_release>());
  m.def("hold", &hold);

  const auto no_gil = py::call_guard<py::gil_scoped_release>();
  m.def("lif_tiling", [](int64_t T, int64_t N, int64_t period) {
    const LifTiling tiling = lif_tiling(T, N, period);
    return py::make_tuple(tiling.chunks, tiling.row, tiling.width, tiling.rows_per_chunk);
  });
  m.def("lif_fwd_cpu", &lif_fwd, no_gil);
  m.def("lif_bwd_cpu", &lif_bwd, no_gil);
  m.def("lif_packed_cpu", &lif_packed, no_gil);
  m.def("lif_spikes_cpu", &lif_spikes, no_gil);
  m.def("batch_norm_moments_cpu", &batch_norm_moments, no_gil);
  m.def("batch_norm_statistics_cpu", &batch_norm_statistics, no_gil);
  m.def("batch_norm_of_cpu", &batch_norm_of, no_gil);
  m.def("batch_norm_lif_fwd_cpu", &batch_norm_lif_fwd, no_gil);
  m.def("batch_norm_lif_bwd_cpu", &batch_norm_lif_bwd, no_gil);
  m.def("batch_norm_bwd_cpu", &batch_norm_bwd, no_gil);
  m.def("pack_spikes_cpu", &pack_spikes_cpu, no_gil);
  m.def("unpack_spikes_cpu", &unpack_spikes_cpu, no_gil);
  m.def("has_spare_bits_cpu", [](uintptr_t packed, int64_t pixels, int64_t channels) {
    return has_spare_bits_cpu(pointer<const uint32_t>(packed), pixels, channels);
  });
  m.def("unshared_conv_cpu", &unshared_conv_cpu, no_gil);
  m.def(
      "unshared_conv_grad_weight_cpu",
      [](const UnsharedConvParams& params, uintptr_t grad_out, uintptr_t grad_weight,
         int num_threads) {
        unshared_conv_grad_weight_cpu(
            {params, pointer<const float>(grad_out), pointer<float>(grad_weight)}, num_threads);
      },
      no_gil);
  m.def("unshared_conv_lif_cpu", [](const UnsharedConvParams& conv, const LifParams& lif,
                                    int64_t maps, int64_t signs,
                                    const std::vector<AddedCurrent>& added, uintptr_t packed,
                                    uintptr_t v_last, int num_threads, bool products) {
    const UnsharedConvLif params = with_neurons(conv, lif, maps, signs, added, packed, v_last);
    const py::gil_scoped_release no_gil;
    unshared_conv_lif_cpu(params, num_threads, products);
  });
  m.def("multiplies_cpu", [](int64_t N, int64_t KH, int64_t KW, int64_t Cin_g, int64_t Cout_g) {
    UnsharedConvParams params{};
    params.weight_dtype = DType::kInt8;
    params.N = N;
    params.KH = KH;
    params.KW = KW;
    params.Cin_g = Cin_g;
    params.Cout_g = Cout_g;
    return multiplies_cpu(params);
  });
  m.def("unshared_conv_tiles", [](const UnsharedConvParams& params, int num_threads) {
    const UnsharedConvTiles tiles = choose_unshared_conv_tiles(params, 1, num_threads);
    return py::dict("positions"_a = tiles.positions, "channels"_a = tiles.channels,
                    "samples"_a = tiles.samples, "blocks_per_pass"_a = tiles.blocks_per_pass,
                    "kept"_a = tiles.kept, "prefetch"_a = tiles.prefetch, "tasks"_a = tiles.tasks);
  });

  m.def("prefer_huge_pages",
        [](uintptr_t begin, int64_t bytes) { prefer_huge_pages(pointer<void>(begin), bytes); });

  m.def("cpu_isa", [] { return isa_kernels().name; });
  m.def("parallel_backend", &parallel_backend);

  m.attr("build_info") = REALSPIKE_BUILD_INFO;
#ifdef REALSPIKE_WITH_CUDA
  m.attr("with_cuda") = true;
  m.def("pack_spikes_cuda", [](const PackSpikesParams& params, uintptr_t stream) {
    check_cuda(pack_spikes_cuda(params, pointer<void>(stream)), "pack_spikes_cuda");
  });
  m.def("unpack_spikes_cuda", [](const UnpackSpikesParams& params, uintptr_t stream) {
    check_cuda(unpack_spikes_cuda(params, pointer<void>(stream)), "unpack_spikes_cuda");
  });
  m.def("unshared_conv_workspace_cuda", &unshared_conv_workspace_cuda);
  m.def("unshared_conv_cuda", [](UnsharedConvParams params, uintptr_t workspace, uintptr_t stream) {
    params.workspace = pointer<void>(workspace);
    check_cuda(unshared_conv_cuda(params, pointer<void>(stream)), "unshared_conv_cuda");
  });
  m.def("unshared_conv_lif_workspace_cuda", &unshared_conv_lif_workspace_cuda);
  m.def("unshared_conv_lif_cuda", [](UnsharedConvParams conv, const LifParams& lif, int64_t maps,
                                     int64_t signs, const std::vector<AddedCurrent>& added,
                                     uintptr_t packed, uintptr_t v_last, uintptr_t workspace,
                                     uintptr_t stream) {
    conv.workspace = pointer<void>(workspace);
    const UnsharedConvLif params = with_neurons(conv, lif, maps, signs, added, packed, v_last);
    check_cuda(unshared_conv_lif_cuda(params, pointer<void>(stream)), "unshared_conv_lif_cuda");
  });
  m.attr("unshared_conv_grad_samples") = kUnsharedConvGradSamples;
  m.def("unshared_conv_grad_weight_cuda", [](const UnsharedConvParams& params, uintptr_t grad_out,
                                             uintptr_t grad_weight, uintptr_t stream) {
    check_cuda(unshared_conv_grad_weight_cuda(params, pointer<const float>(grad_out),
                                              pointer<void>(grad_weight), pointer<void>(stream)),
               "unshared_conv_grad_weight_cuda");
  });
#else
  m.attr("with_cuda") = false;
#endif
}

}  // namespace realspike
