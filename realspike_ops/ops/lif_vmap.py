"""torch.func.vmap of the LIF ops: the vmapped dimension becomes a part of the batch."""

import torch

from realspike_ops.ops.lif_contract import SAVE_NOTHING, Neuron


def merge_batch(tensor, dim, size, batch_axis):
    """Make the vmapped dimension `dim` of a tensor part of its batch, which is `batch_axis`."""
    if tensor is None:
        return None
    if dim is None:
        tensor = tensor.unsqueeze(batch_axis).expand(
            *tensor.shape[:batch_axis], size, *tensor.shape[batch_axis:]
        )
    else:
        tensor = tensor.movedim(dim, batch_axis)
    return tensor.flatten(batch_axis, batch_axis + 1)


def split_state(v_last, size, keep_state):
    """Return the last potentials and the dimension that is the vmapped one; None without them."""
    return (v_last.unflatten(0, (size, -1)), 0) if keep_state else (v_last, None)


def check_vmap(in_dims) -> None:
    """Refuse a vmapped dimension of the parameters."""
    if any(dim is not None for dim in in_dims):
        raise NotImplementedError(
            "lif: torch.func.vmap over amplitude, decay or v_threshold is not supported; vmap over "
            "x and v_init alone, or use realspike_ops.reference.lif"
        )


def lif_fwd(info, in_dims, x, amplitude, decay, v_threshold, v_init, *form):
    x_dim, *parameter_dims, v_init_dim = in_dims[:5]
    check_vmap(parameter_dims)
    size = info.batch_size
    *neuron, save, keep_state = form
    if save != SAVE_NOTHING:
        raise NotImplementedError(
            "lif: torch.func.vmap over a forward pass that needs gradients is not supported; put "
            "the vmapped dimension into the batch, or use realspike_ops.reference.lif"
        )
    x, v_init = merge_batch(x, x_dim, size, 1), merge_batch(v_init, v_init_dim, size, 0)
    y, v_last, saved = torch.ops.realspike.lif_fwd(
        x, amplitude, decay, v_threshold, v_init, *neuron, save, keep_state
    )
    y, v_last, v_last_dim = y.unflatten(1, (size, -1)), *split_state(v_last, size, keep_state)
    return (y, v_last, saved), (1, v_last_dim, None)


def lif_packed(info, in_dims, x, decay, v_threshold, v_init, *form):
    x_dim, *parameter_dims, v_init_dim = in_dims[:4]
    check_vmap(parameter_dims)
    size = info.batch_size
    *neuron, keep_state = form
    x, v_init = merge_batch(x, x_dim, size, 1), merge_batch(v_init, v_init_dim, size, 0)
    packed, v_last = torch.ops.realspike.lif_packed(
        x, decay, v_threshold, v_init, *neuron, keep_state
    )
    batch = 2 if Neuron(*neuron).ternary else 1
    v_last, v_last_dim = split_state(v_last, size, keep_state)
    return (packed.unflatten(batch, (size, -1)), v_last), (batch, v_last_dim)
