// The only file that knows Python. Pointers and streams cross as integers; realspike_ops/_native.py
// is the only caller and has checked every argument.

#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "core/lif.h"
#include "core/numbers.h"
#include "core/pack_spikes.h"
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
                     const PerNeuron& v_threshold, uintptr_t x, uintptr_t v_init, uintptr_t saved,
                     int dtype, int save, int64_t T, int64_t N, int64_t x_stride_t,
                     int64_t period) {
  return {pointer<const void>(x),
          pointer<const float>(v_init),
          pointer<void>(saved),
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

void lif_fwd(const LifParams& params, uintptr_t y, uintptr_t v_last, int num_threads) {
  lif_fwd_cpu({params, pointer<void>(y), pointer<float>(v_last)}, num_threads);
}

void lif_packed(const LifParams& params, uintptr_t packed, uintptr_t v_last, int64_t C, int64_t P,
                bool channels_last, int num_threads) {
  lif_packed_cpu({params, pointer<uint32_t>(packed), pointer<float>(v_last), C, P, ceil_div(C, 32),
                  channels_last},
                 num_threads);
}

void lif_bwd(const LifParams& params, uintptr_t grad_y, uintptr_t grad_v_last, uintptr_t grad_x,
             uintptr_t grad_v_init, uintptr_t grad_amplitude, uintptr_t grad_decay,
             uintptr_t grad_v_threshold, int num_threads) {
  lif_bwd_cpu({params, pointer<const void>(grad_y), pointer<const float>(grad_v_last),
               pointer<void>(grad_x), pointer<float>(grad_v_init), pointer<float>(grad_amplitude),
               pointer<float>(grad_decay), pointer<float>(grad_v_threshold)},
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

// A field of a record whose fields Python gives by name.
template <class Record>
struct Field {
  py::str name;
  bool is_pointer;
  void (*set)(Record& record, py::handle value);
};

template <auto kMember, class Record>
void set_field(Record& record, py::handle value) {
  auto& field = record.*kMember;
  using T = std::remove_reference_t<decltype(field)>;
  if constexpr (std::is_pointer_v<T>) {
    field = reinterpret_cast<T>(value.cast<uintptr_t>());
  } else if constexpr (std::is_enum_v<T>) {
    field = static_cast<T>(value.cast<std::underlying_type_t<T>>());
  } else {
    field = value.cast<T>();
  }
}

// Lets Python make a record. A pointer that is not given is nullptr, a number has to be given, and
// other names are refused.
template <class Record>
void def_record(py::module_& m, const char* name, std::vector<Field<Record>> fields) {
  py::class_<Record>(m, name).def(py::init([fields = std::move(fields)](const py::kwargs& given) {
    Record record{};
    size_t found = 0;
    for (const Field<Record>& field : fields) {
      const py::handle value = PyDict_GetItemWithError(given.ptr(), field.name.ptr());
      if (value) {
        field.set(record, value);
        ++found;
      } else if (!field.is_pointer) {
        throw py::type_error("missing field: " + std::string(field.name));
      }
    }
    if (found != given.size()) {
      for (const Field<Record>& field : fields) given.attr("pop")(field.name, py::none());
      throw py::type_error("no such field: " + std::string(py::str(given.begin()->first)));
    }
    return record;
  }));
}

#define FIELD(Record, name)                                                         \
  Field<Record> {                                                                   \
    py::reinterpret_steal<py::str>(PyUnicode_InternFromString(#name)),              \
        std::is_pointer_v<decltype(Record::name)>, set_field<&Record::name, Record> \
  }

void def_unshared_conv_params(py::module_& m) {
  using P = UnsharedConvParams;
  def_record<P>(m, "UnsharedConvParams",
                {FIELD(P, spikes),
                 FIELD(P, weight),
                 FIELD(P, bias),
                 FIELD(P, amplitude),
                 FIELD(P, scale),
                 FIELD(P, out),
                 FIELD(P, weight_dtype),
                 FIELD(P, N),
                 FIELD(P, H),
                 FIELD(P, W),
                 FIELD(P, words),
                 FIELD(P, OH),
                 FIELD(P, OW),
                 FIELD(P, G),
                 FIELD(P, KH),
                 FIELD(P, KW),
                 FIELD(P, Cin_g),
                 FIELD(P, Cout_g),
                 FIELD(P, stride_h),
                 FIELD(P, stride_w),
                 FIELD(P, padding_h),
                 FIELD(P, padding_w),
                 FIELD(P, dilation_h),
                 FIELD(P, dilation_w),
                 FIELD(P, weight_stride_p),
                 FIELD(P, bias_stride_c),
                 FIELD(P, bias_stride_p),
                 FIELD(P, out_stride_n),
                 FIELD(P, out_stride_c),
                 FIELD(P, out_stride_p)});
}

#undef FIELD

UnsharedConvLif with_neurons(const UnsharedConvParams& conv, const LifParams& lif, uintptr_t packed,
                             uintptr_t v_last) {
  const int64_t C = conv.G * conv.Cout_g, P = conv.OH * conv.OW;
  return {conv,
          {lif, pointer<uint32_t>(packed), pointer<float>(v_last), C, P, ceil_div(C, 32), true}};
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Kernels of realspike_ops; see csrc/core for the contract of each.";

  py::class_<LifForm>(m, "LifForm").def(py::init(&lif_form));
  py::class_<PerNeuron>(m, "PerNeuron").def(py::init(&per_neuron));
  py::class_<LifParams>(m, "LifParams").def(py::init(&lif_params));
  py::class_<PackSpikesParams>(m, "PackSpikesParams").def(py::init(&pack_params));
  py::class_<UnpackSpikesParams>(m, "UnpackSpikesParams").def(py::init(&unpack_params));
  def_unshared_conv_params(m);

  const auto no_gil = py::call_guard<py::gil_scoped_release>();
  m.def("lif_tiling", [](int64_t T, int64_t N, int64_t period) {
    const LifTiling tiling = lif_tiling(T, N, period);
    return py::make_tuple(tiling.chunks, tiling.row, tiling.width, tiling.rows_per_chunk);
  });
  m.def("lif_fwd_cpu", &lif_fwd, no_gil);
  m.def("lif_bwd_cpu", &lif_bwd, no_gil);
  m.def("lif_packed_cpu", &lif_packed, no_gil);
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
  m.def(
      "unshared_conv_lif_cpu",
      [](const UnsharedConvParams& conv, const LifParams& lif, uintptr_t packed, uintptr_t v_last,
         int num_threads) {
        unshared_conv_lif_cpu(with_neurons(conv, lif, packed, v_last), num_threads);
      },
      no_gil);
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
  m.def(
      "unshared_conv_lif_cuda", [](UnsharedConvParams conv, const LifParams& lif, uintptr_t packed,
                                   uintptr_t v_last, uintptr_t workspace, uintptr_t stream) {
        conv.workspace = pointer<void>(workspace);
        const UnsharedConvLif params = with_neurons(conv, lif, packed, v_last);
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
