"""From a model as its user wrote it to a graph, and the proof that they compute the same."""
