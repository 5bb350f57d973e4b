"""Benchmarks that compare: every row is this library beside its peers, interleaved in one run.

    pytest bench/ --benchmark-only                       the table
    pytest bench/ --benchmark-only --results DIR         also DIR/<machine>.md and .json
    pytest bench/ --benchmark-only --results DIR --resume   rows alone that DIR lacks of this commit

A row that was measured is kept in DIR at once; those that a run does not measure stay as they are.

A round times each peer once, then ours. A ratio compares the fastest rounds of both: whatever else
runs on the machine only ever adds time. Above 1 we are faster.

On a GPU most rows are time of the device: of the kernels of a call, back to back, from memory
(`DeviceClock`). Those marked `wall_clock` are what a user waits for, the host's work included: a
training step, a whole network, the cost of a small call (`WallClock`, on a CPU for all rows).
"""

import functools
import platform
import time
import warnings
from importlib import metadata
from pathlib import Path

import pytest
import torch
from realspike.environment import device_name
from results import Row, case_of, commit, measured, printed_by, write_results

import realspike_ops as rso

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ROWS = pytest.StashKey[list[Row]]()
CLOCK = pytest.StashKey["WallClock | DeviceClock"]()


class WallClock:
    """Seconds, read when the device has done all that was asked of it."""

    def __call__(self) -> float:
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def prepare(self, function):
        """Tell the clock what it will time next."""


class DeviceClock:
    """Seconds on the GPU between two readings, whatever the host needs to launch the work.

    The first reading makes the device wait as long as the host launches, so that kernels then run
    back to back. It has read 256 MiB before, so that none of them finds its inputs in a cache: what
    the call before has left there would flatter all but the first of those that share an input.
    """

    def __init__(self):
        self._start = None
        self._host_seconds = {}
        self._wait = 0.0

    def prepare(self, function):
        """Find out how long the host needs for `function`, which has run before."""
        if function not in self._host_seconds:
            torch.cuda.synchronize()
            start = time.perf_counter()
            function()
            self._host_seconds[function] = time.perf_counter() - start
            torch.cuda.synchronize()
        self._wait = min(2 * self._host_seconds[function] + 1e-4, 0.1)

    def __call__(self) -> float:
        if self._start is None:
            torch.sum(_more_than_a_cache(), dim=0)
            torch.cuda._sleep(int(self._wait * MOST_CYCLES_A_SECOND))
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        if self._start is None:
            self._start = event
            return 0.0
        event.synchronize()
        seconds = self._start.elapsed_time(event) / 1e3
        self._start = None
        return seconds


MOST_CYCLES_A_SECOND = 2e9


@functools.cache
def _more_than_a_cache() -> torch.Tensor:
    return torch.zeros(2**26, device=DEVICE)


def seconds_of(function, clock) -> float:
    clock.prepare(function)
    start = clock()
    function()
    return clock() - start


def pytest_addoption(parser):
    parser.addoption("--results", type=Path, help="folder for <machine>.md and <machine>.json")
    parser.addoption("--resume", action="store_true", help="leave out the rows that it has")
    parser.addoption("--full", action="store_true", help="every row of the unshared convolution")


def pytest_configure(config):
    config.stash[ROWS] = []


def pytest_collection_modifyitems(config, items):
    if config.getoption("--resume"):
        found = measured(config.getoption("--results"), describe_machine())
        known = [item for item in items if case_of(item.name) in found]
        config.hook.pytest_deselected(items=known)
        items[:] = [item for item in items if item not in known]
    for item in items:
        wall = DEVICE == "cpu" or item.get_closest_marker("wall_clock")
        item.stash[CLOCK] = WallClock() if wall else DeviceClock()
        item.add_marker(pytest.mark.benchmark(timer=item.stash[CLOCK]))


def _runs(name: str, peer) -> bool:
    try:
        peer()
        peer()
    except Exception as error:
        warnings.warn(f"{name} is left out: {error!r:.500}", stacklevel=3)
        return False
    return True


@pytest.fixture
def device() -> str:
    return DEVICE


@pytest.fixture
def compare(request, benchmark):
    """compare(ours, {name: peer}, rounds): time all in turn, and report the ratios.

    `ours` and the peers take no arguments; what they return is dropped. A peer that fails is left
    out of the row, with a warning that says why.
    """

    def run(ours, peers, rounds=15):
        clock = request.node.stash[CLOCK]
        ours()
        ours()
        peers = {name: peer for name, peer in peers.items() if _runs(name, peer)}
        times = {name: [] for name in peers}

        def time_peers():
            for name, peer in peers.items():
                times[name].append(seconds_of(peer, clock))
            clock.prepare(ours)

        benchmark.pedantic(ours, setup=time_peers, rounds=rounds)
        own = benchmark.stats.stats.data
        fastest = {name: min(values) for name, values in times.items()}
        ratios = {name: seconds / min(own) for name, seconds in fastest.items()}
        row = Row(
            name=request.node.name,
            group=benchmark.group or request.node.module.__name__,
            seconds=min(own),
            peer_seconds=fastest,
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


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item):
    """Keep a row at once: what ends a run may not let it end in order."""
    folder, rows = item.config.getoption("--results"), item.config.stash[ROWS]
    if folder and rows and rows[-1].name == item.name:
        write_results(folder, describe_machine(), rows[-1:])


@functools.cache
def describe_machine() -> dict:
    def version(package):
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            return None

    machine = {
        "device": device_name(torch.device(DEVICE)),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": version("triton"),
        "spikingjelly": version("spikingjelly"),
        "realspike": rso.__version__,
        "build": rso.build_info(),
        "commit": commit(),
    }
    if DEVICE == "cuda":
        machine["cuda"] = torch.version.cuda
        query = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        machine["driver"] = printed_by(*query)
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
        terminalreporter.write_line(f"written: {config.getoption('--results')}")
