"""What several tests share: independent float64 computations with error bounds, and inputs.

Nothing here calls realspike_ops; the equations are those of docs and paper, written once more.
"""

import copy
import math
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROOT = Path(__file__).parents[2]
HALF_ULP = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
SUBNORMAL = {torch.float32: 2.0**-149, torch.float16: 2.0**-24, torch.bfloat16: 2.0**-133}
U = HALF_ULP[torch.float32]  # one float32 rounding, relative
SLACK = 1.01  # for the products of two errors, which the bounds leave out


# In the environment, i/n: run every n-th test alone, from the i-th on, counted from 0.
SHARD_VARIABLE = "REALSPIKE_TEST_SHARD"


# In the environment: how much is tried. A tenth of the examples (check), or ten times as many.
EFFORTS = {"check": 0.1, "test": 1, "proofs": 10}
EFFORT = EFFORTS[os.environ.get("REALSPIKE_EFFORT", "test")]


def examples(count: int) -> int:
    """Return how many random examples a test tries that usually tries `count`."""
    return max(1, round(EFFORT * count))


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def grid(shape, seed: int, step: float = 0.125, largest: float = 2.0) -> Tensor:
    """Random multiples of `step`: sums and products of few of them are exact in float32, and ties
    with a threshold are common."""
    steps = round(largest / step)
    drawn = torch.randint(-steps, steps + 1, tuple(shape), generator=generator(seed))
    return drawn.to(torch.float32) * step


def normal(shape, seed: int, scale: float = 1.0) -> Tensor:
    return torch.randn(tuple(shape), generator=generator(seed)) * scale


def binary(shape, seed: int, rate: float = 0.3) -> Tensor:
    return (torch.rand(tuple(shape), generator=generator(seed)) < rate).to(torch.float32)


def float32_value(x: float) -> float:
    return torch.tensor(x, dtype=torch.float32).item()


def run_python(*arguments: str, **environment) -> str:
    """Run `python *arguments` and return what it prints."""
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    result = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": path} | environment,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


class WithSize:
    """A Triton kernel that is told that there are more numbers than its programs come to."""

    def __init__(self, kernel, name: str, size: int):
        self.kernel, self.name, self.size = kernel, name, size
        self.arg_names = kernel.arg_names

    def __getitem__(self, grid):
        def launch(*args, **options):
            at = self.arg_names.index(self.name)
            return self.kernel[grid](*args[:at], self.size, *args[at + 1 :], **options)

        return launch


def assert_within(actual: Tensor, expected: Tensor, bound: Tensor, what: str) -> None:
    assert actual.shape == expected.shape, (what, actual.shape, expected.shape)
    error = (actual.double() - expected.double()).abs()
    wrong = ~(error <= bound)  # NaN is wrong
    assert not wrong.any(), (
        f"{what}: {int(wrong.sum())} of {wrong.numel()} beyond the bound, by up to a factor "
        f"{(error / bound)[wrong].max().item():.3g}; first at {wrong.nonzero()[0].tolist()}: "
        f"{actual[wrong][0].item()!r} for {expected[wrong][0].item()!r}"
    )


# --- LIF ------------------------------------------------------------------------------------------


def surrogate_slope(name: str, d: Tensor, scale: float) -> Tensor:
    if name == "rectangular":
        return (d.abs() <= scale / 2).to(d.dtype) / scale
    if name == "triangle":
        return 2 / scale * torch.clamp(1 - 2 / scale * d.abs(), min=0)
    if name == "atan":
        return scale / (2 * (1 + (math.pi / 2 * scale * d) ** 2))
    assert name == "sigmoid"
    return scale / (2 + torch.exp(scale * d) + torch.exp(-scale * d))


# name -> (largest slope, largest change of the slope per unit of h), as functions of the scale
_SLOPE_LIMITS = {
    "rectangular": lambda width: (1 / width, 0.0),
    "triangle": lambda width: (2 / width, 4 / width**2),
    "atan": lambda alpha: (alpha / 2, alpha**2),
    "sigmoid": lambda alpha: (alpha / 4, alpha**2),
}


@dataclass
class LifByHand:
    """Outputs and gradients in float64, each with a bound on the float32 error of any order of the
    same operations. `certain` marks the neurons whose every decision (spike, window) survives that
    error; an exact tie is certain as long as float32 computes it exactly."""

    o: Tensor  # [T, B, ...]
    y: Tensor  # [T, B, ...]
    v_last: Tensor  # [B, ...]
    v_last_bound: Tensor
    certain: Tensor  # [B, ...] bool
    grad_x: Tensor  # [T, B, ...]
    grad_x_bound: Tensor
    grad_v_init: Tensor  # [B, ...]
    grad_v_init_bound: Tensor
    grad_amplitude_terms: Tensor  # [T, B, ...]


def is_float32(x: Tensor) -> Tensor:
    return x.float().double() == x


def lif_by_hand(
    x: Tensor,  # [T, B, ...]
    amplitude: Tensor | None,
    v_init: Tensor | None,  # [B, ...]
    grad_y: Tensor,  # [T, B, ...]
    grad_v_last: Tensor,  # [B, ...]
    *,
    decay: float,
    v_threshold: float,
    v_reset: float | None,
    detach_reset: bool,
    surrogate: tuple[str, float],
) -> LifByHand:
    name, scale = surrogate[0], float32_value(surrogate[1])
    decay, v_threshold = float32_value(decay), float32_value(v_threshold)
    v_reset = None if v_reset is None else float32_value(v_reset)
    x, grad_y = x.double(), grad_y.double()
    a = torch.ones((), dtype=torch.float64) if amplitude is None else amplitude.double()
    T = x.shape[0]

    v = torch.zeros_like(x[0]) if v_init is None else v_init.double()
    v_error = torch.zeros_like(v)
    certain = torch.ones_like(v, dtype=torch.bool)
    hs, h_errors, os = [], [], []
    for t in range(T):
        decayed = decay * v
        h = decayed + x[t]
        d = h - v_threshold
        exact = (v_error == 0) & is_float32(decayed) & is_float32(h) & is_float32(d)
        h_error = torch.where(exact, 0.0, decay * v_error + U * (decayed.abs() + h.abs()))
        d_error = torch.where(exact, 0.0, h_error + U * d.abs())
        certain &= exact | (d.abs() > d_error)
        if name == "rectangular":
            certain &= exact | ((d.abs() - scale / 2).abs() > d_error)
        o = (h >= v_threshold).double()
        if v_reset is None:
            v = h - v_threshold * o
            rounded = torch.where(is_float32(v) & exact, 0.0, h_error + U * v.abs())
            v_error = torch.where(o == 1, rounded, h_error)
        else:
            v = torch.where(o == 1, v_reset, h)
            v_error = torch.where(o == 1, 0.0, h_error)
        hs.append(h)
        h_errors.append(h_error)
        os.append(o)
    v_last, v_last_bound = v, v_error

    steepest, curvature = _SLOPE_LIMITS[name](scale)
    q = grad_v_last.double()
    q_error = torch.zeros_like(q)
    grad_x, grad_x_bound = [], []
    for t in reversed(range(T)):
        h, o, h_error = hs[t], os[t], h_errors[t]
        grad_o = a * grad_y[t]
        o_error = U * grad_o.abs()
        if not detach_reset:
            lever = torch.full_like(h, -v_threshold) if v_reset is None else v_reset - h
            lever_error = torch.zeros_like(h) if v_reset is None else h_error + U * lever.abs()
            through_reset = lever * q
            grad_o = grad_o + through_reset
            o_error = o_error + lever.abs() * q_error + lever_error * q.abs()
            o_error = o_error + U * (through_reset.abs() + grad_o.abs())
        slope = surrogate_slope(name, h - v_threshold, scale)
        slope_error = curvature * (h_error + U * (h - v_threshold).abs()) + 16 * U * steepest
        if name == "rectangular":
            slope_error = 2 * U * slope
        through_spike = grad_o * slope
        passes = torch.ones_like(o) if v_reset is None else 1 - o
        grad_h = through_spike + passes * q
        error = slope * o_error + slope_error * grad_o.abs() + U * through_spike.abs()
        error = error + passes * q_error + U * grad_h.abs()
        grad_x.append(grad_h)
        grad_x_bound.append(error * SLACK)
        q = decay * grad_h
        q_error = decay * error + U * q.abs()
    o = torch.stack(os)
    return LifByHand(
        o=o,
        y=a * o,
        v_last=v_last,
        v_last_bound=v_last_bound * SLACK,
        certain=certain,
        grad_x=torch.stack(grad_x[::-1]),
        grad_x_bound=torch.stack(grad_x_bound[::-1]),
        grad_v_init=q,
        grad_v_init_bound=q_error * SLACK,
        grad_amplitude_terms=grad_y * o,
    )


def lif_gradients_by_hand(
    x: Tensor,  # [T, B, ...], and everything else, in float64
    amplitude: Tensor | None,
    decay: float | Tensor,
    v_threshold: float | Tensor,
    v_init: Tensor | None,  # [B, ...]
    grad_y: Tensor,  # [T, B, ...]
    grad_v_last: Tensor,  # [B, ...]
    *,
    v_reset: float,
    reset: str,
    detach_reset: bool,
    emission: str,
    surrogate: tuple[str, float],
) -> dict[str, Tensor]:
    """Every form of the neuron and its gradients, by their equations: no autograd, no bounds.

    The gradients of amplitude, decay and v_threshold are the terms [T, B, ...] to be summed, and
    abs_grad_... their sizes; `magnitude` is the largest that meets grad_x of a neuron [B, ...].
    """
    a = torch.ones((), dtype=torch.float64) if amplitude is None else amplitude
    v = torch.zeros_like(x[0]) if v_init is None else v_init

    def spike(h):
        s = torch.where(h.signbit(), -1.0, 1.0).double() if emission == "ternary" else 1.0
        return s, (s * h >= v_threshold).double()

    first_s, first_o = spike(v)
    delayed_s, delayed_o = (first_s, first_o) if reset == "soft_delayed" else (1.0, 0.0)
    first_h, steps = v, []
    for x_t in x:
        h = decay * v + x_t - delayed_s * delayed_o * v_threshold
        s, o = spike(h)
        steps.append((v, h, s, o))
        if reset == "soft_delayed":
            delayed_s, delayed_o = s, o
        if reset == "hard":
            v = torch.where(o == 1, v_reset, h)
        elif reset == "soft":
            v = h - s * o * v_threshold
        else:
            v = h
    out = {"y": [a * s * o for _, _, s, o in steps], "v_last": v}
    q = grad_v_last
    # The gradient that reaches what a spike takes from the potential: a delayed reset is not
    # followed by a decay.
    r = torch.zeros_like(q) if reset == "soft_delayed" else q
    terms = {name: [] for name in ("x", "amplitude", "decay", "v_threshold")}
    magnitude = torch.zeros_like(v)
    sizes = []
    for (v_before, h, s, o), g in reversed(list(zip(steps, grad_y, strict=True))):
        slope = surrogate_slope(surrogate[0], s * h - v_threshold, surrogate[1])
        lever = {"hard": v_reset - h, "none": 0.0}.get(reset, -s * v_threshold)
        grad_fires = a * s * g + (0.0 if detach_reset else lever * r)
        through_state = q * (1 - o) if reset == "hard" else q
        grad_h = s * slope * grad_fires + through_state
        subtracted = s * o * r if reset.startswith("soft") else torch.zeros_like(q)
        terms["x"].append(grad_h)
        terms["amplitude"].append(g * s * o)
        terms["decay"].append(grad_h * v_before)
        terms["v_threshold"].append(-(slope * grad_fires) - subtracted)
        size = slope * ((a * g).abs() + (lever * r).abs()) + q.abs() + r.abs()
        magnitude = torch.maximum(magnitude, size)
        sizes.append((size * v_before.abs(), size))
        q = decay * grad_h
        r = grad_h if reset == "soft_delayed" else q
    if reset == "soft_delayed":  # v_init, too, is a potential that may have fired
        slope = surrogate_slope(surrogate[0], first_s * first_h - v_threshold, surrogate[1])
        grad_fires = 0.0 if detach_reset else -first_s * v_threshold * r
        q = q + first_s * slope * grad_fires
        terms["v_threshold"][-1] = (
            terms["v_threshold"][-1] - slope * grad_fires - first_s * first_o * r
        )
        magnitude = torch.maximum(magnitude, slope * (v_threshold * r).abs() + r.abs())
        sizes[-1] = (sizes[-1][0], sizes[-1][1] + slope * (v_threshold * r).abs() + r.abs())
    out["y"] = torch.stack(out["y"]) if steps else torch.zeros_like(x)
    for name, values in terms.items():
        out[f"grad_{name}"] = torch.stack(values[::-1])
    out["abs_grad_amplitude"] = out["grad_amplitude"].abs()
    out["abs_grad_decay"] = torch.stack([of_decay for of_decay, _ in sizes])
    out["abs_grad_v_threshold"] = torch.stack([of_threshold for _, of_threshold in sizes])
    out["grad_v_init"] = q
    out["magnitude"] = magnitude
    return out


def sum_to(tensor: Tensor, shape) -> Tensor:
    """Sum the dimensions over which `shape` would be broadcast."""
    shape = tuple(shape)
    leading = tuple(range(tensor.dim() - len(shape)))
    tensor = tensor.sum(leading) if leading else tensor
    dims = [d for d, size in enumerate(shape) if size == 1 and tensor.shape[d] != 1]
    return tensor.sum(dims, keepdim=True) if dims else tensor


# --- unshared convolution -------------------------------------------------------------------------


def as_pair(value) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


def paddings(padding, kernel_size, dilation) -> tuple[tuple[int, int], tuple[int, int]]:
    """((before, after) of the rows, (before, after) of the columns), as F.conv2d defines them."""
    if padding == "valid":
        padding = 0
    if padding == "same":
        total = [d * (k - 1) for k, d in zip(kernel_size, as_pair(dilation), strict=True)]
        return tuple((p // 2, p - p // 2) for p in total)
    return tuple((p, p) for p in as_pair(padding))


def windows(
    maps: Tensor, kernel_size, stride=1, padding=0, dilation=1
) -> Tensor:  # [N, C, H, W] -> [N, C, OH, OW, KH, KW]
    """Return what every kernel position sees; outside the map, zeros."""
    (KH, KW), (sh, sw), (dh, dw) = kernel_size, as_pair(stride), as_pair(dilation)
    (top, bottom), (left, right) = paddings(padding, kernel_size, dilation)
    padded = F.pad(maps, (left, right, top, bottom))
    rows = padded.unfold(2, dh * (KH - 1) + 1, sh)[..., ::dh]
    return rows.unfold(3, dw * (KW - 1) + 1, sw)[..., ::dw]  # [N, C, OH, OW, KH, KW]


def unshared_conv_by_hand(
    spikes: Tensor,  # [N, Cin, H, W]
    weight: Tensor,  # [OH, OW, G, KH, KW, Cin/G, Cout/G]
    bias: Tensor | None = None,
    **geometry,
) -> tuple[Tensor, Tensor]:  # [N, Cout, OH, OW] float64, and the bound on a float32 sum
    """Return the result in float64, and n_terms * u * sum |terms|."""
    G, KH, KW = weight.shape[2:5]
    seen = windows(spikes.double(), (KH, KW), **geometry)
    N, _, OH, OW = seen.shape[:4]
    seen = seen.reshape(N, G, weight.shape[5], OH, OW, KH, KW)
    assert tuple(weight.shape[:2]) == (OH, OW)

    def total(weight):
        return torch.einsum("ngmklij,klgijmo->ngokl", seen, weight.double()).flatten(1, 2)

    out, magnitude, terms = total(weight), total(weight.abs()), total(torch.ones_like(weight))
    if bias is not None:
        bias = bias.double().reshape(-1, *(bias.shape[1:] or (1, 1)))
        out, magnitude, terms = out + bias, magnitude + bias.abs(), terms + 1
    return out, terms * U * magnitude * SLACK


def kernel_order(weight: Tensor, groups: int) -> Tensor:
    """[Cout, Cin/G, KH, KW] -> [G, KH, KW, Cin/G, Cout/G]"""
    Cout, Cin_g, KH, KW = weight.shape
    return weight.reshape(groups, Cout // groups, Cin_g, KH, KW).permute(0, 3, 4, 2, 1)


def random_batch_norm(norm: nn.Module, seed: int) -> nn.Module:
    """Statistics and an affine part that are far from trivial; the scale may be negative."""
    channels = (norm.num_features,)
    with torch.no_grad():
        norm.running_mean.copy_(normal(channels, seed, 0.3))
        norm.running_var.copy_(0.3 + normal(channels, seed + 1).abs())
        norm.weight.copy_(normal(channels, seed + 2).sign() * (0.5 + binary(channels, seed + 3)))
        norm.bias.copy_(normal(channels, seed + 4, 0.3))
    return norm.eval()


def in_float64(module: nn.Module | None) -> nn.Module:
    return nn.Identity() if module is None else copy.deepcopy(module).double().eval()
