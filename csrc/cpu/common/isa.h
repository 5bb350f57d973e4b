#pragma once

#include <cstdint>

#include "core/batch_norm_lif.h"
#include "core/lif.h"
#include "core/pack_spikes.h"
#include "core/unshared_conv.h"

namespace realspike {

struct LifTile;
struct MomentsPlan;
struct NormGradients;
struct NormTile;
struct PixelRun;
struct SpikeLists;
struct TaskMemory;
struct UnsharedConvTiles;

// The inner loops of every op for one instruction set. The files <op>/*isa.cpp are compiled once
// per set, so one binary serves every CPU of an architecture.
struct IsaKernels {
  const char* name;
  void (*lif_fwd)(const LifForward&, const LifTile&);
  void (*lif_spikes)(const LifForward&, const LifTile&);
  void (*lif_bwd)(const LifBackward&, const LifTile&);
  // Task number `task` of the plan, to [2 * plan.channels + 1].
  void (*batch_norm_moments)(const BatchNormMoments&, const MomentsPlan&, int64_t task,
                             double* partial);
  void (*batch_norm_lif_fwd)(const BatchNormLifForward&, const LifTile&);
  void (*batch_norm_lif_bwd)(const BatchNormLifBackward&, const NormTile&);
  void (*batch_norm_bwd)(const BatchNormBackward&, const NormGradients&, const LifTile&);
  // Task number `task` of the grid that lif_packed_cpu spans.
  void (*lif_packed)(const LifPacked&, int64_t task);
  // Pixels [begin, end) of sample n.
  void (*pack_spikes)(const PackSpikesParams&, int64_t n, int64_t begin, int64_t end);
  void (*unpack_spikes)(const UnpackSpikesParams&, int64_t n, int64_t begin, int64_t end);
  int64_t (*count_spikes)(const UnsharedConvParams&, const UnsharedConvTiles&, const PixelRun&);
  void (*decode_pixels)(const UnsharedConvParams&, const UnsharedConvTiles&, const PixelRun&,
                        const SpikeLists&);
  // The kernels of cpu/unshared_conv/dispatch.h, each for task number `task` of the grid that the
  // tiles span. UnsharedConvLif: the neurons behind the convolution, or nullptr.
  void (*unshared_conv_listed)(const UnsharedConvParams&, const UnsharedConvLif*,
                               const UnsharedConvTiles&, const SpikeLists&, int64_t task,
                               const TaskMemory&);
  // masks: [sample_tiles, H * W, G, masks_per_group()]. nullptr in a set without mask registers.
  void (*mask_pixels)(const UnsharedConvParams&, const UnsharedConvTiles&, const PixelRun&,
                      void* masks);
  void (*unshared_conv_masked)(const UnsharedConvParams&, const UnsharedConvLif*,
                               const UnsharedConvTiles&, const void* masks, int64_t task,
                               float* currents);
  // masks: as above. For a CPU that has_matrix_unit(); nullptr in a set that does not know it.
  void (*unshared_conv_matrix)(const UnsharedConvParams&, const UnsharedConvLif*,
                               const UnsharedConvTiles&, const void* masks, int64_t task,
                               const TaskMemory&);
  void (*unshared_conv_depthwise)(const UnsharedConvParams&, const UnsharedConvLif*,
                                  const UnsharedConvTiles&, int64_t task, const TaskMemory&);
  void (*unshared_conv_grad_weight)(const UnsharedConvGradWeight&, const UnsharedConvTiles&,
                                    const SpikeLists&, int64_t task);
};

// The best set that this CPU has, or the one that the environment variable REALSPIKE_CPU_ISA names
// (baseline, avx2, avx512); baseline if this CPU lacks it, which _native.py refuses. Chosen once
// per process.
const IsaKernels& isa_kernels();

}  // namespace realspike
