"""Bytes that a neuron keeps for its backward pass, beside the peers.

Counted with saved-tensor hooks, every storage once. "beside-x-and-y" leaves out what shares the
memory of the input or the output, which other layers may keep anyway.
"""

import weakref

import pytest
import torch
from bench_lif import functions, inputs
from peers import norse_lif, snntorch_lif

import realspike_ops as rso


class Saved:
    """What the graph holds in place of a tensor: it lives as long as the node that saved it."""

    def __init__(self, tensor):
        self.storage = tensor.untyped_storage()


def saved_bytes(function, outside=()) -> int:
    """Bytes of the storages that autograd keeps of a call, less those of `outside`."""
    saved = weakref.WeakSet()

    def save(tensor):
        handle = Saved(tensor)
        saved.add(handle)
        return handle

    def no_backward(_):
        raise AssertionError("only the forward pass is counted")

    with torch.autograd.graph.saved_tensors_hooks(save, no_backward):
        y = function()
    # Addresses tell storages apart only while all of them exist.
    storages = {each.storage.data_ptr(): each.storage.nbytes() for each in saved}
    for tensor in (*outside, y) if outside else ():
        storages.pop(tensor.untyped_storage().data_ptr(), None)
    return sum(storages.values())


@pytest.mark.parametrize("beside", ["all", "beside-x-and-y"])
@pytest.mark.parametrize("T", [4, 16, 32])
def bench_lif_saved_bytes(report_values, device, T, beside):
    x, _ = inputs((T, 4, 64, 8, 8), "none", device)
    _, peers = functions(x, None, False)
    peers |= {"snnTorch": snntorch_lif(x), "norse": norse_lif(x)}
    ours = {
        "lif, detached": lambda: rso.lif(x, detach_reset=True),
        "lif, attached": lambda: rso.lif(x),
        "lif, ternary, detached": lambda: rso.lif(x, detach_reset=True, emission="ternary"),
    }
    outside = () if beside == "all" else (x,)
    report_values(
        {
            name: saved_bytes(function, outside) / x.numel()
            for name, function in (ours | peers).items()
            if function is not None
        },
        "bytes per neuron and timestep",
    )
