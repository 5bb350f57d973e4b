"""Time tiles of the convolution on matrix units around the one that is chosen, and the gather.

    python bench/tune_unshared_matmul.py [CHANNELS SIZE SAMPLES RATE]

Per case: microseconds of the gather and of the chosen tile, what of a copy's speed its weights come
at, whether `algorithm="auto"` takes it, the fastest tiles, and any whose sums are not the gather's.
Launches follow one another, over copies of the weights that exceed the L2 cache. Needs a CUDA card.
"""

import itertools
import sys

import torch

import realspike_ops as rso
from realspike_ops.ops import unshared_conv, unshared_matmul
from realspike_ops.ops.unshared_matmul import Sizes, Tile

DTYPES = (torch.float32, torch.bfloat16, torch.uint8)
CASES = [  # channels, size of the map, samples, firing rate
    *itertools.product((128,), (32,), (64, 32, 256, 16), (0.1,)),
    *itertools.product((512, 64), (8,), (64,), (0.1,)),
]
MOST_CACHED = 2**28  # bytes; more than the L2 cache of any card
ROUNDS = 5
SHOWN = 5


def candidates(sizes: Sizes) -> list[Tile]:
    """Return the chosen tile, and those that differ in one thing: every other takes compiling."""
    chosen = unshared_matmul.tile_of(sizes)
    others = {
        "rows": (16, 32, 64, 128),
        "columns": (64, 128),
        "warps": (4, 8),
        "stages": (3, 4, 6),
    }
    changed = [chosen._replace(**{name: n}) for name, values in others.items() for n in values]
    return [chosen, *(tile for tile in changed if tile != chosen)]


def copies_of(weight: torch.Tensor) -> list[torch.Tensor]:
    return [weight.clone() for _ in range(max(2, -(-MOST_CACHED // weight.nbytes)))][:64]


def microseconds(launches) -> float:
    """Return the fastest round of launches that follow one another, per launch.

    They have run before. A graph replays them, so that the card waits for no host.
    """
    graph, best = torch.cuda.CUDAGraph(), float("inf")
    with torch.cuda.graph(graph):
        for launch in launches:
            launch()
    for _ in range(ROUNDS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        best = min(best, start.elapsed_time(end) * 1e3 / len(launches))
    return best


def copied_bytes_per_microsecond(device) -> float:
    source = torch.zeros(MOST_CACHED, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    launches = [lambda: target.copy_(source)] * 10
    launches[0]()
    return 2 * source.nbytes / microseconds(launches)


class Case:
    """One convolution with 3 x 3 kernels, its weights copied past the cache."""

    def __init__(self, channels, size, samples, rate, dtype, shared, device):
        torch.manual_seed(0)
        self.output_size = (size, size)
        spikes = (torch.rand(samples, channels, size, size, device=device) < rate).float()
        self.words = rso.pack_spikes(spikes)
        positions = 1 if shared else size
        shape = (positions, positions, 1, 3, 3, channels, channels)
        if dtype == torch.uint8:
            weight = torch.randint(0, 256, shape, dtype=dtype, device=device)
        else:
            weight = torch.randint(-64, 65, shape, device=device).to(dtype) / 64
        self.weights = copies_of(weight)
        self.sizes = unshared_matmul.sizes_of_call(samples, weight, self.output_size)

    def run(self, forward, weight) -> torch.Tensor:
        pairs = ((1, 1),) * 3
        arguments = (self.words, weight, None, None, None, self.output_size, *pairs)
        return forward(*arguments, True, False)[0]

    def gathered(self, weight) -> torch.Tensor:
        return rso.unshared_spike_conv(self.words, weight, padding=1)

    def multiplied(self, tile, weight) -> torch.Tensor:
        forward = unshared_conv.forward_with(lambda a: unshared_matmul.launch(a, tile))
        return self.run(forward, weight)

    def time(self, function) -> float:
        function(self.weights[0])
        return microseconds([lambda w=w: function(w) for w in self.weights])


def tune(case: Case, name: str, bandwidth: float, capability) -> None:
    expected = case.gathered(case.weights[0])  # sums of steps of 1/64 are exact in any order
    gather = case.time(case.gathered)
    found = []
    for tile in candidates(case.sizes):
        try:
            if not torch.equal(case.multiplied(tile, case.weights[0]), expected):
                print(f"  WRONG SUMS {name} {tile}")
                continue
            found.append((case.time(lambda w, tile=tile: case.multiplied(tile, w)), tile))
        except Exception as error:  # more shared memory or registers than there are
            print(f"  {tile} is left out: {error!r:.100}")
    taken = unshared_matmul.fits(capability, case.sizes) and unshared_matmul.is_ahead(case.sizes)
    chosen = unshared_matmul.tile_of(case.sizes)
    of_chosen = next((time for time, tile in found if tile == chosen), float("nan"))
    share = case.weights[0].nbytes / of_chosen / bandwidth
    print(
        f"{name:40} gather {gather:7.1f}  chosen {of_chosen:7.1f} us  {share:4.0%} of a copy  "
        f"auto: {'products' if taken else 'gather'}"
    )
    for time, tile in sorted(found)[:SHOWN]:
        print(f"  {time:7.1f}  {tile}", flush=True)


def main(arguments: list[str], device: str = "cuda") -> None:
    if device == "cuda" and not torch.cuda.is_available():
        sys.exit(
            "tune_unshared_matmul: no CUDA device that torch can see; there is nothing to tune"
        )
    cases = CASES
    if arguments:
        *sizes, rate = arguments
        cases = [(*map(int, sizes), float(rate))]
    capability = unshared_matmul.capability_of(torch.device(device))
    bandwidth = copied_bytes_per_microsecond(device)
    print(f"{rso.build_info()}, compute capability {capability}, copy {bandwidth / 1e3:.0f} GB/s")
    for channels, size, samples, rate in cases:
        for dtype, shared in itertools.product(DTYPES, (False, True)):
            case = Case(channels, size, samples, rate, dtype, shared, device)
            kind = "shared" if shared else "unshared"
            name = f"{channels}ch-{size}x{size}-S{samples}-r{rate} {dtype} {kind}"
            tune(case, name.replace("torch.", ""), bandwidth, capability)


if __name__ == "__main__":
    with torch.no_grad():
        main(sys.argv[1:])
