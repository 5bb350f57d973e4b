"""Sums of linear operators on maps of spikes: the values of tensors between two LIF layers."""
