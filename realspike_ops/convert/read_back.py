"""What lets a converted network be pickled: PyTorch stores its code, and records it anew."""

import torch
from torch import fx

# They take sizes one by one, too, but none that a record stands for.
_BY_SIZES = (torch.zeros, torch.ones, torch.empty, torch.rand, torch.randn)


class Tracer(fx.Tracer):
    """Records what is done with buffers, where fx computes it once, with sizes that it knows."""

    proxy_buffer_attributes = True


def make_readable(graph: fx.Graph) -> None:
    """Make a graph one whose code fx can record."""
    graph._tracer_cls = Tracer
    for node in graph.nodes:
        if node.target in _BY_SIZES and node.args and not isinstance(node.args[0], (tuple, list)):
            node.args = (node.args,)
