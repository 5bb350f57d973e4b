"""From a graph to the layers of a folded network."""
