#pragma once

#include <cstdint>

#include "core/unshared_conv.h"
#include "cpu/lif/packed_kernel.h"
#include "cpu/unshared_conv/task.h"

// The neurons behind a convolution. A tile has all timesteps of its sequences, so that the loops of
// lif_packed run over the currents of one position.

namespace realspike {
namespace {

template <bool kTernary, ResetForm kReset>
void emit_spikes_form(const UnsharedConvParams& p, const LifPacked& lif, const Tile& tile,
                      int64_t position, const float* currents) {
  PackedBuffers<Float32> buffers;
  LifPacked neurons = lif;
  neurons.x_stride_t = tile.sequences * tile.channels;
  const int64_t channel = tile.group * p.Cout_g + tile.first_channel;
  const int64_t at_once = kPackedNeurons / tile.channels;
  for (int64_t b = 0; b < tile.sequences; b += at_once) {
    const int64_t some = least(tile.sequences - b, at_once);
    const int64_t pixel = (tile.first_sequence + b) * lif.P + position;
    lif_packed_rows<Float32, kTernary, kReset>(
        neurons, buffers, currents + b * tile.channels, tile.channels, pixel * lif.C + channel,
        some, tile.channels, lif.P * lif.C, [&](int64_t t, const float* spikes) {
          for (int64_t c = 0; c < tile.channels; c += 32) {
            const int64_t bits = least(tile.channels - c, 32);
            pack_timestep<Float32>(lif, t, spikes + c, bits, some, 1, tile.channels, pixel, lif.P,
                                   (channel + c) / 32);
          }
        });
  }
}

struct EmitForms {
  template <bool kTernary, ResetForm kReset>
  static constexpr auto form = emit_spikes_form<kTernary, kReset>;
};

// currents [T, sequences, channels] of one position.
void emit_spikes(const UnsharedConvParams& p, const LifPacked& lif, const Tile& tile,
                 int64_t position, const float* currents) {
  choose_packed<EmitForms>(lif)(p, lif, tile, position, currents);
}

}  // namespace
}  // namespace realspike
