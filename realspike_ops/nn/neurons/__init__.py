"""LIF neurons: layers that are trained, and layers of a folded network."""
