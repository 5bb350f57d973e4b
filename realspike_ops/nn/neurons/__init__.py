"""LIF neurons: those that are trained, and those of a folded network."""
