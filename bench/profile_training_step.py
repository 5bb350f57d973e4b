"""Where the time of a training step goes, ours beside the ANN; run it as a script.

Prints, for one thread and for all, the ratio of the steps and the operators that take most of each,
then what one layer costs on tensors so small that only the calls count.
"""

import time

import torch
from bench_training_step import batch, networks, training_step
from torch import nn
from torch.profiler import ProfilerActivity, profile

import realspike_ops as rso

ROUNDS, SHOWN = 15, 7
NAMES = ("ours", "ANN")


def fastest(steps) -> dict[str, float]:
    """Return the seconds of the fastest round of each, run in turn."""
    seconds = dict.fromkeys(steps, float("inf"))
    for _ in range(ROUNDS):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            seconds[name] = min(seconds[name], time.perf_counter() - start)
    return seconds


def print_operators(step) -> None:
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(5):
            step()
    events = sorted(profiler.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    for event in events[:SHOWN]:
        print(f"    {event.self_cpu_time_total / total:6.1%}  {event.key}")


def main() -> None:
    most = torch.get_num_threads()
    for granularity in ("none", "element"):
        made = networks(granularity, "cpu")
        steps = {name: training_step(made[name], *batch("cpu")) for name in NAMES}
        for threads in sorted({1, most}):
            torch.set_num_threads(threads)
            seconds = fastest(steps)
            ratio = seconds["ours"] / seconds["ANN"]
            print(f"{granularity}, threads {threads}: ours / ANN {ratio:.2f}", flush=True)
            for name, step in steps.items():
                print(f"  {name}, {1e3 * seconds[name]:.0f} ms")
                print_operators(step)
        layers = {"ours": rso.RealSpikeLIF(4, granularity, (2, 2, 2)), "ANN": nn.ReLU()}
        x = torch.randn(8, 2, 2, 2, requires_grad=True)

        def calls(layer, x=x):
            return lambda: [layer(x).sum().backward() for _ in range(200)]

        for name, seconds in fastest(
            {name: calls(layer) for name, layer in layers.items()}
        ).items():
            print(f"  one tiny layer, forward and backward, {name}: {seconds / 200 * 1e6:.0f} us")


if __name__ == "__main__":
    main()
