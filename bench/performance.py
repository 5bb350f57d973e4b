"""Write docs/performance.md from the results that benchmarks wrote: no number there is typed.

    python -m bench.performance

A table of the page names its rows by what was measured, and the peer beside which it was; a column
is a machine. `CHART` is the part of it that docs/draw.py draws for README.
"""

import itertools
import json
import re
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
PAGE = ROOT / "docs" / "performance.md"
WIDTH = 118  # of a line of prose

# Files of results by the name of their column.
WHOLE = {
    "AMD EPYC": "amd-epyc",
    "AMD EPYC, family 26": "amd-epyc-family-26",
    "Intel Xeon (AMX)": "intel-r-xeon-r-processor",
    "Intel Xeon, family 6": "intel-r-xeon-r-processor-family-6",
    "NVIDIA H100": "nvidia-h100-80gb-hbm3",
}
CPUS = {name: stem for name, stem in WHOLE.items() if not name.startswith("NVIDIA")}
CONVOLUTION = {
    **{name: f"unshared_conv/{CPUS[name]}" for name in ("AMD EPYC", "Intel Xeon (AMX)")},
    "AMD EPYC, family 26": CPUS["AMD EPYC, family 26"],  # of the same run as its other rows
    "NVIDIA H200": "unshared_conv/nvidia-h200",
}
CONVOLUTION_RUNS = {
    f"{name}, unshared convolution": stem
    for name, stem in CONVOLUTION.items()
    if stem not in WHOLE.values()
}
OTHERS = {
    "AMD EPYC, other firing rates": "unshared_conv/rates/amd-epyc",
    "AMD EPYC, a training step": "training_step/amd-epyc",
    "AMD EPYC, family 25": "amd-epyc-family-25",  # training steps and the host alone
}
STEP_CPUS = {**CPUS, "AMD EPYC, family 25": OTHERS["AMD EPYC, family 25"]}
NEWER_XEON = {"Intel Xeon, family 6": CPUS["Intel Xeon, family 6"]}

TEXT = """
Every number is a ratio of times, the peer's over ours, unless its table says otherwise. **Above 1
we are faster; below 1, in bold, the peer is.**

A ratio compares the fastest rounds of both in one run, in which rounds alternate: whatever else
runs on a machine only adds time. Peers are what a user would pick instead, in their strongest form.
Machines are shared, so ratios near 1 swing from run to run. An empty cell was not measured. On GPUs
times are those of the device, with cold caches. A training step and a small call include the host.

The runs, each with its full table. Absolute times are shown there, for GPUs alone. They were made
by `pytest bench/ --benchmark-only --results bench/results`, those of the convolution with `--full`,
and by `make gpu` on a machine with a CUDA card. Commits differ: a later one may be faster or
slower. The JSON of the AMD runs has medians for times; its ratios are those of fastest rounds too.
"""

JELLY, JELLY_COMPILED = "SpikingJelly", "SpikingJelly, torch.compile"
LOOP, EAGER_LOOP = "a loop over time, torch.compile", "a loop over time"
NEURONS = {
    JELLY_COMPILED: "SpikingJelly compiled",
    JELLY: "SpikingJelly",
    LOOP: "compiled loop",
    "`nn.ReLU`": "nn.ReLU",
}
CONVOLUTIONS = {
    "`F.conv2d` of `a * o`": "shared conv2d",
    "the same in bfloat16": "shared conv2d bf16",
    "the same in int8": "shared conv2d int8",
    "windows and a batched product": "unfold+bmm",
}
INFERENCE = {
    "the trained network": "trained",
    "the trained network, torch.compile": "trained, compiled",
    "the equal ANN, one pass": "ANN",
    "the equal ANN, one pass, torch.compile": "ANN, compiled",
}
NORMED = {
    "`nn.BatchNorm2d` and `nn.ReLU`": "nn.BatchNorm2d + nn.ReLU",
    "`nn.BatchNorm2d` and `lif`": "nn.BatchNorm2d + lif",
    "norm and loop over time, torch.compile": "compiled norm and loop",
    "`nn.BatchNorm2d` and SpikingJelly, torch.compile": "nn.BatchNorm2d + SpikingJelly compiled",
    "`batch_norm_lif` without amplitude": "batch_norm_lif without amplitude",
}
STEPS = {
    JELLY: "SpikingJelly",
    LOOP: "compiled LIF",
    "the whole network, torch.compile": "compiled whole",
    "ours, norms and neurons one by one": "ours, one by one",
    "ours, `detach_reset`": "ours, detach_reset",
    "ours, `compress_spikes`": "ours, compress_spikes",
    "the equal ANN": "ANN",
}
SHARED = {name: peer for name, peer in CONVOLUTIONS.items() if peer == "shared conv2d"}
STORAGES = ("float32", "bfloat16", "int8", "factored")


@dataclass(frozen=True)
class Table:
    title: str
    about: str
    machines: dict[str, str]  # file by column
    cases: dict[str, str]  # row of the results by what is said of it
    peers: dict[str, str]  # peer of the results by what is said of it
    write: Callable[["Table"], Iterator[str]] = field(default=lambda table: lines_of_ratios(table))


@cache
def read(stem: str) -> dict:
    return json.loads((RESULTS / f"{stem}.json").read_text())


def _sizes(stem: str) -> dict[str, str]:
    """Name the rows of networks of width 16, by network, weights and number of images."""
    pattern = r"bench_folded_sizes\[resnet(\d+)-(\w+)-16-.*-(\w+)-(\d+)-plain\]"
    found = {}
    for name in (row["name"] for row in read(stem)["rows"]):
        if match := re.match(pattern, name):
            depth, granularity, dtype, count = match.groups()
            images = "one image" if count == "1" else f"{count} images"
            weights = dtype.replace("_", ", ")
            found[f"ResNet{depth}, {granularity}-wise, {weights}, {images}"] = name
    return found


def _convolutions(layers, samples, rates=(0.1,)) -> dict[str, str]:
    cases = {}
    for layer in layers:
        channels, size = layer.split("ch-")
        shape = f"{channels} channels on {size.replace('x', ' x ')}"
        for count, rate, storage in itertools.product(samples, rates, STORAGES):
            case = f"{shape}, {count} samples, {rate:.0%}, {storage}"
            cases[case] = f"bench_unshared_conv[{layer}-S{count}-r{rate}-{storage}]"
    return cases


def _timesteps(name: str) -> dict[str, str]:
    return {
        f"{T} timesteps{', fresh memory' if kind == 'fresh' else ''}": f"{name}[T{T}-1M-{kind}]"
        for T, kinds in ((4, ["kept"]), (16, ["kept", "fresh"]), (32, ["kept", "fresh"]))
        for kind in kinds
    }


TABLES = [
    Table(
        "Neurons, forward and backward",
        "`lif` on 2^20 neurons, float32, no amplitude, detached reset. `nn.ReLU` reads and writes "
        "as much and keeps no state: it is the floor. glibc hands out tensors above 32 MiB as "
        "fresh pages unless it is told to keep its memory. Rows of such sizes are measured with "
        "memory that is used again, and with fresh memory, where they swing from run to run.",
        WHOLE,
        _timesteps("bench_lif_forward_backward"),
        NEURONS,
    ),
    Table(
        "Neurons, inference",
        "The same without gradients.",
        WHOLE,
        _timesteps("bench_lif_forward"),
        NEURONS,
    ),
    Table(
        "Amplitudes, and the attached reset",
        "2^20 neurons, 4 timesteps, forward and backward, with the gradient of the amplitude.",
        WHOLE,
        {
            f"{name} amplitude, {reset} reset": f"bench_lif_forms[{form}-{reset}]"
            for name, form in (
                ("no", "none"),
                ("a channel's", "channel"),
                ("an element's", "element"),
            )
            for reset in ("detached", "attached")
        }
        | {
            f"no amplitude, detached reset, {kind}": f"bench_lif_half_precision[{kind}]"
            for kind in ("bfloat16", "float16")
        },
        NEURONS,
    ),
    Table(
        "Small tensors",
        "Tensors that fit the caches: 2^16 neurons, forward and backward. A small call has 512 "
        "neurons and 4 timesteps: what it takes is the cost of a call.",
        WHOLE,
        {
            **{
                f"2^16 neurons, {T} timesteps": f"bench_lif_timesteps[{T}]"
                for T in (1, 4, 16, 64, 256, 1024)
            },
            "a small call, inference": "bench_lif_small_call[inference]",
            "a small call, training": "bench_lif_small_call[training]",
        },
        NEURONS,
    ),
    Table(
        "Memory that neurons keep for backward",
        "Bytes per neuron and timestep, without the input and the output, which the layers around "
        "keep anyway. No ratios: less is better.",
        {"AMD EPYC": "amd-epyc"},
        {f"{T} timesteps": f"bench_lif_saved_bytes[{T}-beside-x-and-y]" for T in (4, 16, 32)},
        {
            "ours, `detach_reset`": "lif, detached",
            "ours": "lif, attached",
            LOOP: "compiled loop",
            EAGER_LOOP: "eager loop",
            JELLY_COMPILED: "SpikingJelly compiled",
            JELLY: "SpikingJelly",
            "snnTorch": "snnTorch",
            "norse": "norse",
        },
        lambda table: _quantities(table),
    ),
    Table(
        "Unshared convolution",
        "One kernel per output position, 3 x 3, over packed spikes. A case names the layer, the "
        "firing rate and the type of the weights; factored weights multiply. Beside it the "
        "*shared* convolution that the trained network computes, in float32 unless it says "
        "otherwise, and windows of the map in a batched product with the same weights.",
        CONVOLUTION,
        _convolutions(["128ch-32x32", "64ch-8x8"], (4, 64)),
        CONVOLUTIONS,
    ),
    Table(
        "Unshared convolution, many samples and wide layers",
        "The same for other layers, beside the shared convolution in float32.",
        CONVOLUTION,
        _convolutions(["128ch-32x32"], (256,))
        | _convolutions(["256ch-16x16", "512ch-8x8"], (4, 64, 256)),
        SHARED,
    ),
    Table(
        "Unshared convolution, narrow layers",
        "The same.",
        {name: stem for name, stem in CONVOLUTION.items() if name != "AMD EPYC"},
        _convolutions(["32ch-16x16", "16ch-32x32"], (4, 64)),
        SHARED,
    ),
    Table(
        "Unshared convolution, other firing rates",
        "The same.",
        {"AMD EPYC": OTHERS["AMD EPYC, other firing rates"]}
        | {name: stem for name, stem in CONVOLUTION.items() if name.startswith("NVIDIA")},
        _convolutions(["128ch-32x32"], (4, 64), (0.05, 0.2, 0.3)),
        SHARED,
    ),
    Table(
        "One kernel for all positions",
        "What layer-wise and channel-wise amplitudes fold to: 128 channels on 32 x 32, firing rate "
        "10 %, float32.",
        WHOLE,
        {f"{count} samples": f"bench_shared_spike_conv[S{count}]" for count in (4, 64)},
        {name: CONVOLUTIONS[name] for name in list(CONVOLUTIONS)[:2]},
    ),
    Table(
        "Whole folded networks",
        "Inference, 4 timesteps. A case names the network and its width, what shares an amplitude, "
        "the firing rate and the type of the weights. The ANN has `nn.ReLU` for neurons and runs "
        "once per image, where spikes run four times.",
        {name: CPUS[name] for name in ("AMD EPYC", "Intel Xeon (AMX)")} | NEWER_XEON,
        {
            f"{name}, {rate}, {dtype}": f"bench_folded[{stem}-{dtype}]-rate{rate}"
            for name, stem, rate in (
                ("VGG5 x 32, channel-wise", "vgg5-channel", "11%"),
                ("SEW-ResNet10 x 32, vanilla", "sew-resnet10-none", "11%"),
                ("ResNet20 x 32, channel-wise", "resnet20-channel", "25%"),
                ("ResNet8 x 16, element-wise", "resnet8-element", "22%"),
            )
            for dtype in ("float32", "int8")
        },
        {**INFERENCE, "the folded network, maps of floats": "dense maps"},
    ),
    Table(
        "Folded networks of one image and of 64",
        "The same of width 16. Rows of auto multiply, on the CPU's matrix unit "
        '(`algorithm="auto"`).',
        NEWER_XEON,
        _sizes("intel-r-xeon-r-processor-family-6"),
        INFERENCE,
    ),
    Table(
        "Batch norm and neurons in one op",
        "`batch_norm_lif`, forward and backward, 4 timesteps, attached reset, float32, with the "
        "gradients of the norm and of the amplitude. `nn.BatchNorm2d` and `nn.ReLU` are what a "
        "network without spikes pays for as many images.",
        CPUS,
        {
            f"{shape.replace('x', ' x ')}, {amplitude} amplitude, {layout}": (
                f"bench_batch_norm_lif[{shape}-{granularity}-{layout}]"
            )
            for shape in ("64x32x32", "16x16x16", "64x8x8")
            for granularity, amplitude in (("none", "no"), ("element", "an element's"))
            for layout in ("contiguous", "channels_last")
        },
        NORMED,
    ),
    Table(
        "A training step",
        "ResNet20 of width 16, 4 timesteps, 8 images of 32 x 32, float32: forward, backward, SGD.",
        {**STEP_CPUS, **WHOLE},
        {"binary": "bench_training_step[none]", "element-wise": "bench_training_step[element]"},
        STEPS,
    ),
    Table(
        "Peak memory of a training step",
        "The same step; the peer's bytes over ours.",
        {**STEP_CPUS, **WHOLE},
        {"binary": "bench_training_memory[none]", "element-wise": "bench_training_memory[element]"},
        STEPS,
    ),
    Table(
        "A training step of other sizes",
        "The same beside the equal ANN alone, and beside ours without fused norms or kept spikes.",
        STEP_CPUS,
        {
            f"{kind}, width {width}, {size} images": (
                f"bench_training_step_of_sizes[{width}-{size}-{granularity}]"
            )
            for width, size in ((16, 32), (32, 8), (32, 32))
            for granularity, kind in (("none", "binary"), ("element", "element-wise"))
        },
        {
            name: STEPS[name]
            for name in (
                "the equal ANN",
                "ours, norms and neurons one by one",
                "ours, `compress_spikes`",
            )
        },
    ),
]


@dataclass(frozen=True)
class Bar:
    """One bar of the chart: ours beside a peer."""

    ours: str
    peer: str
    stem: str  # the file of results
    row: str
    column: str  # the peer there

    @property
    def machine(self) -> dict:
        return read(self.stem)["machine"]

    @property
    def ratio(self) -> float:
        return ratios_of(self.stem)[self.row][self.column]


def _bars(stem: str, *rows: tuple[str, str, str, str]) -> list[Bar]:
    return [Bar(ours, peer, stem, row, column) for ours, peer, row, column in rows]


LIF = "bench_lif_forward_backward[T16-1M-kept]"
AMPLITUDES = "bench_lif_forms[element-attached]"
STEP = "bench_training_step[element]"
CONV_4, CONV_64 = (f"bench_unshared_conv[128ch-32x32-S{count}-r0.1-float32]" for count in (4, 64))
VGG5, RESNET8, SEW_RESNET10 = (
    f"bench_folded[{name}-float32]-rate{rate}"
    for name, rate in (
        ("vgg5-channel", "11%"),
        ("resnet8-element", "22%"),
        ("sew-resnet10-none", "11%"),
    )
)
CHART = [
    *_bars(
        "intel-r-xeon-r-processor-family-6",
        ("neurons", "SpikingJelly", LIF, "SpikingJelly"),
        ("neurons", "SpikingJelly, torch.compile", LIF, "SpikingJelly compiled"),
        ("neurons", "nn.ReLU", LIF, "nn.ReLU"),
        ("neurons with amplitudes", "nn.ReLU", AMPLITUDES, "nn.ReLU"),
        ("training step", "SpikingJelly", STEP, "SpikingJelly"),
        ("training step", "the equal ANN", STEP, "ANN"),
        ("folded VGG5", "trained VGG5", VGG5, "trained"),
        ("folded ResNet8, unshared", "trained ResNet8", RESNET8, "trained"),
        ("folded SEW-ResNet10", "the compiled ANN", SEW_RESNET10, "ANN, compiled"),
        ("folded ResNet8, unshared", "the compiled ANN", RESNET8, "ANN, compiled"),
    ),
    *_bars(
        "unshared_conv/intel-r-xeon-r-processor",
        ("unshared conv, 64 samples", "shared F.conv2d", CONV_64, "shared conv2d"),
        ("unshared conv, 4 samples", "shared F.conv2d", CONV_4, "shared conv2d"),
    ),
    *_bars(
        "nvidia-h100-80gb-hbm3",
        ("neurons", "SpikingJelly, Triton", LIF, "SpikingJelly"),
        ("neurons", "nn.ReLU", LIF, "nn.ReLU"),
        ("neurons with amplitudes", "nn.ReLU", AMPLITUDES, "nn.ReLU"),
        ("training step", "SpikingJelly, Triton", STEP, "SpikingJelly"),
        ("training step", "the equal ANN", STEP, "ANN"),
    ),
    *_bars(
        "unshared_conv/nvidia-h200",
        ("unshared conv, 4 samples", "batched product", CONV_4, "unfold+bmm"),
        ("unshared conv, 4 samples", "shared F.conv2d", CONV_4, "shared conv2d"),
    ),
]


@cache
def ratios_of(stem: str) -> dict[str, dict[str, float]]:
    return {row["name"]: row["ratios"] for row in read(stem)["rows"]}


def _line(cells) -> str:
    return f"| {' | '.join(cells)} |"


def _head(*names: str) -> list[str]:
    return [_line(names), "|" + " --- |" * len(names)]


def ratio_text(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio < 10 else f"{ratio:.0f}"


def _cell(ratio: float | None) -> str:
    if ratio is None:
        return ""
    text = ratio_text(ratio)
    return f"**{text}**" if ratio < 1 else text


def lines_of_ratios(table: Table) -> Iterator[str]:
    """One line for a case beside a peer, one column for a machine; none without a number."""
    runs = [ratios_of(stem) for stem in table.machines.values()]
    yield from _head("case", "beside", *table.machines)
    for case, row in table.cases.items():
        for name, peer in table.peers.items():
            ratios = [run.get(row, {}).get(peer) for run in runs]
            if any(ratio is not None for ratio in ratios):
                yield _line([case, name, *map(_cell, ratios)])


def _quantities(table: Table) -> Iterator[str]:
    """One line for a case, one column for whose quantity it is."""
    (stem,) = table.machines.values()
    yield from _head("case", *table.peers)
    for case, row in table.cases.items():
        values = ratios_of(stem)[row]
        yield _line([case, *(f"{values[peer]:.2f}" for peer in table.peers.values())])


def _runs() -> Iterator[str]:
    yield from _head("run", "threads", "torch", "triton", "SpikingJelly", "commit")
    for name, stem in {**WHOLE, **CONVOLUTION_RUNS, **OTHERS}.items():
        machine = read(stem)["machine"]
        keys = ("threads", "torch", "triton", "spikingjelly", "commit")
        link = f"[{name}](../bench/results/{stem}.md)"
        yield _line([link, *(str(machine[key]) for key in keys)])


def _wrapped(paragraph: str) -> list[str]:
    return textwrap.wrap(" ".join(paragraph.split()), WIDTH, break_on_hyphens=False)


def page() -> str:
    """What docs/performance.md says."""
    stems = {**WHOLE, **CONVOLUTION_RUNS, **OTHERS}
    lines = [
        "# Performance",
        "",
        "<!-- Written by `python -m bench.performance` from bench/results/*.json. Do not edit. -->",
        "",
    ]
    for paragraph in TEXT.strip().split("\n\n"):
        lines += [*_wrapped(paragraph), ""]
    lines += [*_runs(), ""]
    for kind in ("light", "dark"):
        lines += [f"```{{image}} figures/speed-{kind}.svg", f":class: only-{kind}"]
        lines += [":alt: A part of the ratios below, as bars.", "```", ""]
    lines.pop()
    for table in TABLES:
        lines += ["", f"## {table.title}", "", *_wrapped(table.about), ""]
        lines += table.write(table)
    lines += ["", "```{toctree}", ":caption: Full tables", ":hidden:"]
    lines += [f"{name} </bench/results/{stem}>" for name, stem in stems.items()]
    return "\n".join([*lines, "```", ""])


if __name__ == "__main__":
    PAGE.write_text(page())
    print(f"written: {PAGE.relative_to(ROOT)}")
