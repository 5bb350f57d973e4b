"""The proof by execution that a folded network multiplies nothing behind its encoding layer."""

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from realspike_ops import _checks as checks
from realspike_ops.reparam.check.whole_operators import parts_of

# Operators that move, compare, add or select. The kernels of our own operators are checked at the
# level of instructions. An operator that is not listed is refused: a new one cannot slip through.
_FREE = frozenset(
    (
        "add add_ sum cumsum sub sub_ neg abs maximum minimum max min amax amin argmax argmin "
        "max_pool2d max_pool2d_with_indices constant_pad_nd "
        "clone copy_ _to_copy contiguous detach alias view "
        "_unsafe_view reshape _reshape_alias flatten unflatten expand permute transpose t squeeze "
        "unsqueeze slice select split unbind cat stack as_strided empty empty_like empty_strided "
        "new_empty zeros zeros_like new_zeros fill_ zero_ eq ne lt le gt ge where index gather "
        "__rshift__ __and__ __or__ __xor__ bitwise_and bitwise_or bitwise_xor bitwise_not any "
        "_local_scalar_dense promote_types"
    ).split()
)
_OUR_OPS = frozenset(
    {"lif_fwd", "pack_spikes", "unpack_spikes", "unshared_conv", "unshared_conv_lif"}
)


class MultiplicationError(AssertionError):
    """An operator behind the encoding layer multiplies, or is not known not to."""


class _RefuseMultiplications(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.layers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if (result := parts_of(self, func, args, kwargs)) is not NotImplemented:
            return result
        namespace, name = func.name().split("::")
        name = name.split(".")[0]
        if namespace == "realspike" and name in ("lif_fwd", "lif_packed"):
            self.layers += 1
            # Packed spikes have no amplitude.
            if name == "lif_fwd" and args[1] is not None:
                raise MultiplicationError(
                    f"LIF layer number {self.layers} emits real-valued spikes (it has an "
                    "amplitude): the layer that reads them multiplies"
                )
        elif self.layers > 0:
            if func.name().startswith("realspike::unshared_matmul") or kwargs.get("products"):
                raise MultiplicationError(
                    f"the convolution behind LIF layer number {self.layers} runs on matrix units, "
                    'which multiply: algorithm="auto" chose them; algorithm="gather" only adds'
                )
            free = name in (_OUR_OPS if namespace == "realspike" else _FREE)
            # add and sub can scale their second operand.
            free = free and kwargs.get("alpha", 1) == 1
            if name in ("unshared_conv", "unshared_conv_lif") and namespace == "realspike":
                self._check_weights(args)
                self.layers += name == "unshared_conv_lif"
            if not free:
                raise MultiplicationError(
                    f"{func.name()}, behind LIF layer number {self.layers}, is not an operator "
                    "that is known to be free of multiplications"
                )
        return func(*args, **kwargs)

    def _check_weights(self, args) -> None:
        _, _, _, amplitude, scale, *_ = args
        if amplitude is not None or scale is not None:
            reason = (
                "storage='factored' multiplies every weight by an amplitude"
                if amplitude is not None
                else "the scale of int8 weights multiplies every current; fold_scale=True does not"
            )
            raise MultiplicationError(
                f"the weights behind LIF layer number {self.layers} are not materialized: {reason}"
            )


@torch.no_grad()
def assert_multiplication_free(folded: nn.Module, x: Tensor) -> None:
    """Run ``folded(x)`` and raise if a multiplying operator is called behind the encoding layer.

    Everything up to the first LIF layer is the encoding, which multiplies real values by weights.
    From there on only operators that move, add, compare or select are accepted, and the ops of
    this library, as long as no LIF layer scales its spikes. The neuron's own decay is part of the
    LIF op: one product per neuron and timestep, none per synapse.

    Args:
        folded: A network that `reparameterize` returned.
        x: An input for it.

    Raises:
        TypeError: if ``folded`` is not a module, or ``x`` not a tensor.
        MultiplicationError: naming the operator and the LIF layer before it, or if no LIF layer
            was run at all.
    """
    checks.check_module("folded", folded)
    checks.check_tensor("x", x)
    with _RefuseMultiplications() as mode:
        folded(x)
    if mode.layers == 0:
        raise MultiplicationError("no LIF layer was run: nothing was checked")
