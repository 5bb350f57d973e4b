"""Synapses, which add what spikes select: convolutions, linear layers, sums, one-to-one."""
