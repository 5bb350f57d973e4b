"""Benchmarks that compare: every row is this library beside its peers, interleaved in one run.

    pytest bench/ --benchmark-only                       the table
    pytest bench/ --benchmark-only --results DIR         also DIR/<machine>.md and .json

A round times each peer once, then ours. A ratio compares the fastest rounds of both: whatever else
runs on the machine only ever adds time. Above 1 we are faster.
"""

import platform
import statistics
import subprocess
import time
from importlib import metadata
from pathlib import Path

import pytest
import torch
from results import Row, write_results

import realspike_ops as rso

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ROWS = pytest.StashKey[list[Row]]()


class CudaEventTimer:
    """A clock for pairs of readings: the second returns the seconds of GPU time since the first."""

    def __init__(self):
        self.start = None

    def __call__(self) -> float:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        if self.start is None:
            self.start = event
            return 0.0
        event.synchronize()
        seconds = self.start.elapsed_time(event) / 1e3
        self.start = None
        return seconds


def new_timer():
    return CudaEventTimer() if DEVICE == "cuda" else time.perf_counter


def seconds_of(function, timer) -> float:
    start = timer()
    function()
    return timer() - start


def pytest_addoption(parser):
    parser.addoption("--results", type=Path, help="folder for <machine>.md and <machine>.json")
    parser.addoption("--full", action="store_true", help="every row of the unshared convolution")


def pytest_configure(config):
    config.stash[ROWS] = []


def pytest_collection_modifyitems(items):
    for item in items:
        item.add_marker(pytest.mark.benchmark(timer=new_timer()))


@pytest.fixture
def device() -> str:
    return DEVICE


@pytest.fixture
def compare(request, benchmark):
    """compare(ours, {name: peer}, rounds): time all in turn, and report the ratios.

    `ours` and the peers take no arguments; what they return is dropped.
    """

    def run(ours, peers, rounds=15):
        timer = new_timer()
        times = {name: [] for name in peers}
        for function in (ours, *peers.values()):
            function()
            function()

        def time_peers():
            for name, peer in peers.items():
                times[name].append(seconds_of(peer, timer))

        benchmark.pedantic(ours, setup=time_peers, rounds=rounds)
        own = benchmark.stats.stats.data
        ratios = {name: min(values) / min(own) for name, values in times.items()}
        row = Row(
            name=request.node.name,
            group=benchmark.group or request.node.module.__name__,
            seconds=statistics.median(own),
            peer_seconds={name: statistics.median(values) for name, values in times.items()},
            ratios=ratios,
        )
        benchmark.extra_info.update(device=DEVICE, ratios=ratios, peer_seconds=row.peer_seconds)
        request.config.stash[ROWS].append(row)

    return run


@pytest.fixture
def report_values(request, benchmark):
    """report_values({name: value}, unit): a row of quantities other than times."""

    def run(values, unit):
        benchmark.pedantic(lambda: None)  # nothing is timed
        benchmark.extra_info.update(device=DEVICE, unit=unit, values=values)
        row = Row(request.node.name, request.node.module.__name__, 0.0, {}, values, unit)
        request.config.stash[ROWS].append(row)

    return run


@pytest.fixture
def compare_bytes(request, benchmark):
    """compare_bytes(ours, {name: bytes}): report the ratios of sizes beside those of times."""

    def run(ours, peers):
        benchmark.pedantic(lambda: None)  # nothing is timed
        ratios = {name: size / ours for name, size in peers.items()}
        benchmark.extra_info.update(device=DEVICE, ratios=ratios, bytes=ours, peer_bytes=peers)
        row = Row(request.node.name, "peak memory of a step", 0.0, {}, ratios)
        request.config.stash[ROWS].append(row)

    return run


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def describe_machine() -> dict:
    def version(package):
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            return None

    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent,
    )
    machine = {
        "device": torch.cuda.get_device_name() if DEVICE == "cuda" else _cpu_name(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": version("triton"),
        "spikingjelly": version("spikingjelly"),
        "realspike": rso.__version__,
        "build": rso.build_info(),
        "commit": commit.stdout.strip() or None,
    }
    if DEVICE == "cuda":
        machine["cuda"] = torch.version.cuda
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(query, capture_output=True, text=True, check=False)
        machine["driver"] = driver.stdout.strip()
    return machine


def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info["realspike"] = describe_machine()


def pytest_terminal_summary(terminalreporter, config):
    rows = config.stash[ROWS]
    if not rows:
        return
    machine = describe_machine()
    terminalreporter.section("ratio of each peer's time to ours (above 1: we are faster)")
    for key, value in machine.items():
        terminalreporter.write_line(f"{key}: {value}")
    for row in rows:
        cells = "  ".join(f"{name} {row.cell(name)}" for name in row.ratios)
        unit = "" if row.unit is None else f"  ({row.unit})"
        terminalreporter.write_line(f"{row.name:<64} {cells}{unit}")
    if config.getoption("--results"):
        path = write_results(config.getoption("--results"), machine, rows)
        terminalreporter.write_line(f"written: {path}")
