"""Sums of linear operators on maps of spikes: what a tensor between two LIF layers is."""
