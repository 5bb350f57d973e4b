"""How the neurons of a launch are split among the programs of a card, and its sums among tiles."""

import math
from typing import NamedTuple

from realspike_ops.ops.lif_contract import (
    BITS_INTERVAL,
    POTENTIAL_INTERVAL,
    SAVE_BITS,
    SAVE_POTENTIALS,
    PerNeuron,
)

NUM_WARPS = 4
THREADS = 32 * NUM_WARPS
# Enough programs to fill the largest card once; more neurons than that are walked row by row.
PROGRAMS = 2048
# With fewer programs, some multiprocessors of a large card have little or nothing to do.
FEW_PROGRAMS = 256
# From here on, the neurons of a sample and those of a tile are not counted in 32 bits.
WIDE = 2**31 - 2**16


class Tiling(NamedTuple):
    """How the neurons are split; LifTiling in csrc/core/lif.h says what a row is."""

    row: int
    columns: int  # tiles side by side
    rows_per_chunk: int
    chunks: int


def tiling(N: int, period: int, block: int, programs: int) -> Tiling:
    row = period * min(max(1, block // period), -(-N // period))
    columns = -(-row // block)
    rows = -(-N // row)
    rows_per_chunk = max(1, rows * columns // programs)
    return Tiling(row, columns, rows_per_chunk, -(-rows // rows_per_chunk))


class Folding(NamedTuple):
    """How the columns of a tile are added up where they share the values of a parameter.

    A tile is `groups` of `keep` runs of `run` neighbouring columns. All columns of a run have one
    value, and so have equal runs of all groups.
    """

    run: int
    keep: int
    groups: int

    @staticmethod
    def of(parameter: PerNeuron, block: int) -> "Folding":
        inner, size = parameter.inner, parameter.size
        if size == 1:
            return Folding(block, 1, 1)
        run = math.gcd(inner, block)
        groups = block // (size * inner) if block % (size * inner) == 0 else 1
        return Folding(run, block // (run * groups), groups)

    def width(self, tiles: Tiling) -> int:
        """Return how many sums a chunk of rows has."""
        return tiles.columns * self.keep if self.groups > 1 else -(-tiles.row // self.run)


def runs_of(parameter: PerNeuron, folding: Folding) -> int:
    """Return how many sums a kernel leaves side by side for one value of a parameter."""
    return 1 if parameter.size == 1 else parameter.inner // folding.run


def kind_of(parameter: PerNeuron, row: int, block: int) -> str:
    """Return how a tile of `block` columns of a `row` loads its values of a parameter."""
    if parameter.values is None:
        return "none"
    if parameter.size == 1 or parameter.inner % block == 0:
        return "tile"
    return "dense" if parameter.inner == 1 and parameter.size == row else "gather"


def neurons_per_thread(T, N, save, element_size, backward=False, sums=False) -> tuple[int, bool]:
    """Return the neurons of a row that a thread owns, and whether few programs run.

    A thread moves 16 bytes of x per timestep, and fewer where that takes too many registers. That
    is so where it recomputes potentials, above all those of 8 timesteps. In half precision (8
    neurons) it is also so where the thread writes words of bits, or adds up the `sums` that are
    gradients of parameters. Where few programs would run, a thread owns less. Each answer is
    compiled for itself, so that there are at most two as N alone varies.
    """
    recompute = save == SAVE_POTENTIALS
    neurons = 16 // element_size
    if recompute or sums or (save == SAVE_BITS and not backward):
        neurons = 4
    if recompute and backward and element_size == 4 and T > BITS_INTERVAL:
        neurons = 2
    few = N // (THREADS * neurons) < FEW_PROGRAMS
    return (2 if few else neurons), few


def steps_per_chunk(T: int, save: int) -> int:
    """Return the timesteps from one saved word or potential to the next, which are unrolled.

    Up to 4 timesteps save no potential.
    """
    return POTENTIAL_INTERVAL if save == SAVE_POTENTIALS and T > BITS_INTERVAL else BITS_INTERVAL


class Shape(NamedTuple):
    """The shape of a launch: its tiles, and the constants of the kernel that follow from them."""

    tiles: Tiling
    block: int
    warps: int
    steps: int
    prefetch: bool


def _shape(T, N, period, save, neurons, warps, programs, prefetch) -> Shape:
    block = 32 * warps * neurons
    tiles = tiling(N, period, block, programs)
    return Shape(tiles, block, warps, steps_per_chunk(T, save), prefetch)


# Where many programs run, those that wait hide each other's latency, and registers are what lets
# many of them run. Few programs each load a chunk ahead.
def forward_shape(T, N, period, save, element_size) -> Shape:
    """Return the shape of a forward pass."""
    neurons, few = neurons_per_thread(T, N, save, element_size)
    return _shape(T, N, period, save, neurons, NUM_WARPS, PROGRAMS, few)


def backward_shape(T, N, period, save, element_size, sums, is_per_column) -> Shape:
    """Return the shape of a backward pass.

    Args:
        sums: Whether it adds up gradients of parameters.
        is_per_column: Whether such a sum is of one column. Then programs own few columns and walk
            all their rows, where there are columns enough for a card: a column's sum stays in
            registers, and what a program writes is the gradient.
    """
    neurons, few = neurons_per_thread(T, N, save, element_size, True, sums)
    warps, programs = NUM_WARPS, PROGRAMS
    if is_per_column:
        programs = 2 * FEW_PROGRAMS
        if period < programs * THREADS * neurons:
            neurons, warps, few = 2, 2, True
        programs = max(programs, -(-period // (32 * warps * neurons)))
    # The loads of 8 steps, of x and of the gradient, are enough.
    prefetch = few and steps_per_chunk(T, save) == BITS_INTERVAL
    return _shape(T, N, period, save, neurons, warps, programs, prefetch)


def partial_shape_of(
    parameter: PerNeuron, period: int, tiles: Tiling, block: int
) -> tuple[int, ...]:
    """Return the shape of the partial sums of a parameter: see `sum_to_parameter`."""
    folding = Folding.of(parameter, block)
    sums = tiles.chunks * folding.width(tiles)
    if parameter.inner == 1 and parameter.size == period:
        return sums // parameter.size, parameter.size
    runs = runs_of(parameter, folding)
    return sums // (parameter.size * runs), parameter.size, runs
