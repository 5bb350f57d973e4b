"""Time the LIF kernels in every shape of a launch beside the one that is chosen.

    python bench/tune_lif.py [FORM ...]

Per form and size: the microseconds and the GB/s of the chosen shape and of the fastest ones, beside
what a copy moves, and any whose outputs are not those of the chosen one. A shape is neurons of a
thread, warps of a program, timesteps of a chunk, and whether the next chunk is loaded ahead. No
launch finds in a cache what it reads. Needs a CUDA card.
"""

import itertools
import sys

import torch

from realspike_ops.ops import batch_norm_lif_cuda, lif_contract, lif_cuda, lif_tiling
from realspike_ops.ops import lif as lif_op
from realspike_ops.ops.batch_norm_lif import passes_with
from realspike_ops.ops.lif_contract import SAVE_NOTHING, Neuron

PAPERS = Neuron(0.25, 0.5, 0.0, "hard", True, False, "rectangular", 1.0)
ATTACHED = PAPERS._replace(detach_reset=False)
# name: (neuron, granularity of the amplitude, dtype, channels_last, batch norm and residual)
FORMS = {
    "plain": (PAPERS, None, torch.float32, False, False),
    "attached": (ATTACHED, None, torch.float32, False, False),
    "element": (PAPERS, "element", torch.float32, False, False),
    "attached-element": (ATTACHED, "element", torch.float32, False, False),
    "bfloat16": (PAPERS, None, torch.bfloat16, False, False),
    "norm": (PAPERS, "channel", torch.bfloat16, True, True),
    "attached-norm": (ATTACHED, "channel", torch.bfloat16, True, True),
}
# [T, B, C, H, W]
SIZES = [(4, 16, 64, 32, 32), (16, 16, 64, 32, 32), (256, 16, 64, 8, 8), (4, 128, 64, 32, 32)]
NEURONS, WARPS, STEPS, AHEAD = (1, 2, 4, 8), (1, 2, 4, 8), (2, 4, 8), (False, True)
MORE_THAN_A_CACHE = 2**28  # bytes
ROUNDS = 5
SHOWN = 5

forward = lif_op.forward_with(lif_cuda.launch_fwd)
backward = lif_op.backward_with(lif_cuda.launch_bwd, lif_cuda.partial_shapes)
norm_passes = passes_with(lambda: batch_norm_lif_cuda)


class Case:
    """A form at a size: what is launched, and how many bytes it must move."""

    def __init__(self, form, size, device):
        self.neuron, granularity, dtype, channels_last, self.norm = FORMS[form]
        torch.manual_seed(0)
        _, _, C, H, W = size

        def maps():
            x = (torch.randn(size, device=device) * 0.5 + 0.2).to(dtype)
            return (
                x.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3) if channels_last else x
            )

        shapes = {"element": (C, H, W), "channel": (C, 1, 1)}
        amplitude = torch.rand(shapes[granularity], device=device) if granularity else None
        self.save = lif_contract.what_to_save(self.neuron)
        self.x, self.grad_y = maps(), maps()
        self.parameters = (amplitude, None, None, None)
        self.channels_last, self.wanted = channels_last, [granularity is not None, *(False,) * 3]
        self.norm_tensors = ()
        if self.norm:
            channels = (torch.rand(C, device=device) for _ in range(4))
            self.norm_tensors = (maps(), *channels)
        self.saved = self.forward(self.save)[2]

    def forward(self, save):
        inputs = (self.x, *self.norm_tensors, *self.parameters, self.neuron, save, False)
        return norm_passes.fwd(*inputs) if self.norm else forward(*inputs)

    def backward(self):
        if self.norm:
            inputs = (self.x, *self.norm_tensors, *self.parameters, self.saved, self.wanted)
            return norm_passes.bwd(self.grad_y, None, *inputs, self.neuron, self.save)
        kept = (None if self.save == lif_contract.SAVE_BITS else self.x, *self.parameters)
        how = (self.channels_last, self.wanted, self.neuron, self.save)
        return backward(self.grad_y, None, *kept, self.saved, *how)

    def passes(self):
        """Return the passes by name: (function, name of what chooses its shape, bytes)."""
        step = self.x.nbytes
        inputs = step * (1 + self.norm)
        saved = self.saved.nbytes
        recomputed = self.save == lif_contract.SAVE_POTENTIALS
        read = inputs if recomputed else step * self.norm
        return {
            "inference": (lambda: self.forward(SAVE_NOTHING), "forward_shape", inputs + step),
            "forward": (lambda: self.forward(self.save), "forward_shape", inputs + step + saved),
            "backward": (self.backward, "backward_shape", read + 2 * step + saved),
        }


def candidates(chosen: lif_tiling.Shape, name: str) -> list[tuple[int, int, int, bool]]:
    """Return (neurons, warps, steps, ahead) to try; what is kept says how many steps there are."""
    steps = STEPS if name == "inference" else (chosen.steps,)
    return list(itertools.product(NEURONS, WARPS, steps, AHEAD))


def shaped(chooses, neurons, warps, steps, ahead):
    """Return a function in the place of `chooses` that gives a shape of these numbers."""

    def shape(T, N, period, save, *how):
        chosen = chooses(T, N, period, save, *how)
        block = 32 * warps * neurons
        programs = chosen.tiles.columns * chosen.tiles.chunks
        tiles = lif_tiling.tiling(N, period, block, max(programs, lif_tiling.PROGRAMS))
        return lif_tiling.Shape(tiles, block, warps, steps, ahead)

    return shape


def forget() -> None:
    for plans in (lif_cuda._FORWARD, lif_cuda._BACKWARD):
        plans.clear()
    lif_cuda._backward.cache_clear()


def with_shape(chooser: str, chooses, function):
    """Call a function while `chooses` takes the place of what chooses the shape."""
    before = getattr(lif_cuda, chooser)
    setattr(lif_cuda, chooser, chooses)
    forget()
    try:
        return function()
    finally:
        setattr(lif_cuda, chooser, before)
        forget()


def is_same(actual, expected) -> bool:
    """Whether outputs are equal, and sums, whose order follows from the shape, all but equal."""
    pairs = [(a, b) for a, b in zip(actual, expected, strict=True) if b is not None]
    return all(
        torch.equal(a, b) if a.dim() == expected[0].dim() else torch.allclose(a, b, 1e-4, 1e-4)
        for a, b in pairs
    )


def microseconds(function) -> float:
    """Return the fastest of a few calls, each of which reads from memory."""
    flushed = torch.empty(MORE_THAN_A_CACHE, dtype=torch.uint8, device="cuda")
    best = float("inf")
    function()
    for _ in range(ROUNDS):
        flushed.zero_()
        # The host launches while the device waits, so that kernels follow one another.
        torch.cuda._sleep(1_000_000)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        function()
        end.record()
        end.synchronize()
        best = min(best, start.elapsed_time(end) * 1e3)
    return best


def copied(clock) -> float:
    """Return the GB/s of a copy."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    source = torch.zeros(MORE_THAN_A_CACHE if device == "cuda" else 64, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / clock(lambda: target.copy_(source)) / 1e3


def tune(case: Case, name: str, clock, bandwidth: float) -> bool:
    """Print how fast every shape of every pass is; return whether all gave the same outputs."""
    is_right = True
    for kind, (function, chooser, moved) in case.passes().items():
        chooses = getattr(lif_cuda, chooser)
        chosen = []

        def noting(*arguments, chooses=chooses, chosen=chosen):
            chosen.append(chooses(*arguments))
            return chosen[-1]

        expected = with_shape(chooser, noting, function)
        own = clock(function)
        found = []
        for candidate in candidates(chosen[0], kind):
            replaced = shaped(chooses, *candidate)
            try:
                if not is_same(with_shape(chooser, replaced, function), expected):
                    print(f"  WRONG OUTPUTS {name} {kind} {candidate}")
                    is_right = False
                    continue
                timed = with_shape(chooser, replaced, lambda: clock(function))  # noqa: B023
                found.append((timed, candidate))
            except Exception as error:  # more registers than there are
                print(f"  {candidate} is left out: {error!r:.100}")
        shape = chosen[0]
        neurons = shape.block // (32 * shape.warps)
        print(
            f"{name:40} {kind:9} {own:8.1f} us {moved / own / 1e3:6.0f} GB/s "
            f"{moved / own / 1e3 / bandwidth:4.0%} of a copy: "
            f"{(neurons, shape.warps, shape.steps, shape.prefetch)}"
        )
        for time, candidate in sorted(found)[:SHOWN]:
            print(f"  {time:8.1f} us {moved / time / 1e3:6.0f} GB/s {candidate}", flush=True)
    return is_right


def main(forms: list[str]) -> None:
    if not torch.cuda.is_available():
        sys.exit("tune_lif: no CUDA device that torch can see; there is nothing to tune")
    bandwidth = copied(microseconds)
    print(f"{torch.cuda.get_device_name()}: a copy moves {bandwidth:.0f} GB/s")
    print("neurons of a thread, warps, timesteps of a chunk, loaded ahead")
    right = [
        tune(
            Case(form, size, "cuda"), f"{form}-{'x'.join(map(str, size))}", microseconds, bandwidth
        )
        for form, size in itertools.product(forms or FORMS, SIZES)
    ]
    if not all(right):
        sys.exit("tune_lif: outputs differ")


if __name__ == "__main__":
    with torch.no_grad():
        main(sys.argv[1:])
