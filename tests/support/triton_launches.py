"""What launches of Triton kernels would hand to Triton's compiler, without a card.

For a process with TRITON_INTERPRET=0: the interpreter replaces the compiler for a whole process.
Nothing is computed; tensors on the CPU stand for those of a card.
"""

from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel, compile, make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from realspike_ops.ops import batch_norm_lif_cuda, lif_contract, lif_cuda
from realspike_ops.ops import lif as lif_op
from realspike_ops.ops.batch_norm_lif import passes_with
from realspike_ops.ops.lif_packed import _packed_with

forward = lif_op.forward_with(lif_cuda.launch_fwd)
backward = lif_op.backward_with(lif_cuda.launch_bwd, lif_cuda.partial_shapes)
packed_forward = _packed_with(lif_cuda.launch_packed)
norm_passes = passes_with(lambda: batch_norm_lif_cuda)


@dataclass
class Launch:
    """One call of a kernel."""

    kernel: JITFunction
    args: tuple
    kwargs: dict

    def _specialized(self, target):
        backend = make_backend(target)
        bind = create_function_from_signature(self.kernel.signature, self.kernel.params, backend)
        return backend, *bind(*self.args, **self.kwargs)

    def key(self, arch: int) -> str:
        """What the launcher looks a compiled kernel up by."""
        _, _, specialization, options = self._specialized(GPUTarget("cuda", arch, 32))
        return str((specialization, sorted(options.items())))

    def compiled(self, arch: int) -> CompiledKernel:
        """What this launch would compile: `asm["cubin"]` and `metadata`."""
        target = GPUTarget("cuda", arch, 32)
        backend, bound, specialization, options = self._specialized(target)
        options, signature, constants, attributes = self.kernel._pack_args(
            backend, self.kwargs, bound, specialization, options
        )
        source = ASTSource(self.kernel, signature, constants, attributes)
        return compile(source, target=target, options=options.__dict__)


@dataclass
class Recorder:
    """Takes the place of a kernel."""

    kernel: JITFunction
    launches: list[Launch] = field(default_factory=list)

    @property
    def arg_names(self):
        return self.kernel.arg_names

    def __getitem__(self, grid):
        assert len(grid) == 1
        assert 0 < grid[0] < 2**31
        return lambda *args, **kwargs: self.launches.append(Launch(self.kernel, args, kwargs))


LIF_KERNELS = ("lif_fwd_kernel", "lif_bwd_kernel", "lif_packed_fwd_kernel")
NORM_KERNELS = (
    *("batch_norm_moments_kernel", "batch_norm_combine_kernel"),
    *("batch_norm_statistics_kernel", "batch_norm_bwd_kernel"),
)


@contextmanager
def recorded(module, *names: str):
    """Collect the launches of the with block of the kernels that a module has by these names."""
    kernels = {name: getattr(module, name) for name in names}
    launches: list[Launch] = []
    for name, kernel in kernels.items():
        setattr(module, name, Recorder(kernel, launches))
    try:
        yield launches
    finally:
        for name, kernel in kernels.items():
            setattr(module, name, kernel)


def launches_of(
    T: int,
    shape: tuple[int, ...],  # of a timestep, [B, C, H, W]
    neuron: lif_contract.Neuron,
    *,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
    expanded: bool = False,
    amplitude=None,  # shapes
    decay=None,
    v_threshold=None,
    learn: bool = False,
    state: bool = False,
    inference: bool = False,
    packed: bool = False,
    norm: bool = False,  # a batch norm before the neurons
    residual: bool = False,
) -> list[Launch]:
    """The launches of a forward pass and, unless in inference, of its backward pass."""
    x = torch.empty((T, *shape), dtype=dtype)
    if channels_last:
        x = x.movedim(2, -1).contiguous().movedim(-1, 2)
    if expanded:
        x = x[:1].expand_as(x)
    parameters = [None if size is None else torch.ones(size) for size in (amplitude, decay)]
    parameters.append(None if v_threshold is None else torch.ones(v_threshold))
    for parameter in parameters[1:]:
        if parameter is not None:
            parameter.requires_grad_(learn)
    v_init = torch.empty(shape) if state else None
    save = (
        lif_contract.SAVE_NOTHING
        if inference
        else lif_contract.what_to_save(neuron, *parameters[1:])
    )
    with (
        recorded(lif_cuda, *LIF_KERNELS) as launches,
        recorded(batch_norm_lif_cuda, *NORM_KERNELS) as norm_launches,
        torch.no_grad(),
    ):
        if packed:
            packed_forward(x, *parameters[1:], v_init, neuron, state)
            return launches
        if norm:
            others = torch.empty_like(x) if residual else None
            channels = [torch.empty(shape[1]) for _ in range(4)]
            moments = norm_passes.moments(x)
            norm_passes.statistics(moments, *channels[:2], 0.1, 1e-5)
            inputs = (x, others, *channels, *parameters, v_init)
            _, _, saved = norm_passes.fwd(*inputs, neuron, save, state)
            wanted = [amplitude is not None, False, False, state]
            grad = torch.empty_like(x)
            norm_passes.bwd(grad, v_init, *inputs, saved, wanted, neuron, save)
            sums = torch.empty(2, shape[1], dtype=torch.float64)
            norm_passes.norm_bwd(grad, x, *channels[:3], sums, moments[-1:])
            return launches + norm_launches
        _, _, saved = forward(x, *parameters, v_init, neuron, save, state)
        if inference:
            return launches
        bits = save == lif_contract.SAVE_BITS
        wanted = [amplitude is not None, *(learn and p is not None for p in parameters[1:]), state]
        backward(
            *(torch.empty_like(x, memory_format=torch.contiguous_format), v_init),
            *(None if bits else x, *parameters, None if bits else v_init, saved),
            *(channels_last, wanted, neuron, save),
        )
    return launches
