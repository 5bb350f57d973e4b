"""Batch norm and LIF neurons: C++ kernels."""

from planted.bug import Bug

_TESTS = "tests/batch_norm_lif/test_batch_norm_lif_cpu.py"

BUGS = [
    Bug(
        "norm-cpu-block-without-its-shift",
        "csrc/cpu/batch_norm_lif/moments_kernel.h",
        "const double distance = shift[i] + centre - mean[i];",
        "const double distance = centre - mean[i];",
        _TESTS,
        "moments_by_hand",
    ),
    Bug(
        "norm-cpu-blocks-weigh-the-same",
        "csrc/cpu/batch_norm_lif/moments_kernel.h",
        "const double share = values / (count + values), weight = count * share;",
        "const double share = count > 0.0 ? 0.5 : 1.0, weight = count * share;",
        _TESTS,
        "moments_of_every_size",
    ),
    Bug(
        "norm-cpu-pixels-left-over-are-not-counted",
        "csrc/cpu/batch_norm_lif/moments_kernel.h",
        "const double more = r < left ? count + 1.0 : count;",
        "const double more = count;",
        _TESTS,
        "moments_of_every_size",
    ),
    Bug(
        "norm-cpu-the-first-piece-of-a-map-again",
        "csrc/cpu/batch_norm_lif/moments_kernel.h",
        "row % plan.pieces * kNormPiece;",
        "0 * plan.pieces;",
        _TESTS,
        "moments_of_every_size",
    ),
    Bug(
        "norm-cpu-squares-in-float32-alone",
        "csrc/cpu/batch_norm_lif/launch.cpp",
        "if (!std::isfinite(squares))",
        "if (std::isinf(mean) && !std::isfinite(squares))",
        _TESTS,
        "beyond_the_range",
    ),
    Bug(
        "norm-cpu-timesteps-that-repeat-are-not-counted",
        "csrc/cpu/batch_norm_lif/launch.cpp",
        "static_cast<double>(p.T * p.B * p.P);",
        "static_cast<double>(images * p.P);",
        _TESTS,
        "repeated_timesteps",
    ),
    Bug(
        "norm-cpu-running-variance-biased",
        "csrc/cpu/batch_norm_lif/launch.cpp",
        "var * (count / std::max(count - 1.0, 1.0))",
        "var * (count / std::max(count, 1.0))",
        _TESTS,
        "statistics_by_hand",
    ),
    Bug(
        "norm-cpu-sums-start-at-channel-0",
        "csrc/cpu/batch_norm_lif/plan.h",
        "return (norm.channels_last ? column : column / norm.P) % norm.C;",
        "return column * 0 % norm.C;",
        _TESTS,
        "sums_of_whole_numbers",
    ),
    Bug(
        "norm-cpu-every-tile-starts-a-channel",
        "csrc/cpu/batch_norm_lif/currents.h",
        "int64_t end = inner - task_.tile.column % inner;",
        "int64_t end = inner;",
        _TESTS,
        "sums_of_whole_numbers",
    ),
    Bug(
        "norm-cpu-sums-of-what-is-not-centred",
        "csrc/cpu/batch_norm_lif/currents.h",
        "sum_centred_i += g * (Element::widen(x[k * x_stride + i]) - mean_i);",
        "sum_centred_i += g * (Element::widen(x[k * x_stride + i]) - 0.0f * mean_i);",
        _TESTS,
        "sums_of_whole_numbers",
    ),
    Bug(
        "norm-cpu-residual-before-the-scale",
        "csrc/cpu/batch_norm_lif/currents.h",
        "kResidual ? normed + Element::widen(residual[k",
        "kResidual ? normed + scale_i * Element::widen(residual[k",
        "tests/batch_norm_lif/test_batch_norm_lif.py",
        "bit_for_bit",
    ),
    Bug(
        "norm-cpu-slope-of-one-deviation",
        "csrc/cpu/batch_norm_lif/launch.cpp",
        "*p.count * inv_std * inv_std",
        "*p.count * inv_std",
        "tests/batch_norm_lif/test_batch_norm_lif.py",
        "equals_batch_norm_and_lif",
    ),
]
