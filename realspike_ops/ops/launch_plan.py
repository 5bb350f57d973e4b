"""Launches of Triton kernels that are planned once per signature.

Triton's own launch binds and specializes every argument of every call, which takes several times as
long as the launch. A plan keeps what that comes to: the compiled kernel and all arguments but the
tensors. It serves calls of one key alone, and the tensors' dtypes, their presence and whether their
memory begins at a multiple of 16 bytes belong to the key: a kernel is compiled for them.
"""

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import torch
from torch import Tensor

# Plans of a kernel; the oldest make room. A network needs two per kind of layer and batch size.
MOST_PLANS = 1024


class Launch(NamedTuple):
    """What a key stands for."""

    grid: int
    arguments: dict[str, Any]  # of the kernel, behind its tensors, by name
    options: dict[str, Any]  # of Triton: num_warps, enable_fp_fusion


class Plans:
    """The planned launches of one kernel."""

    def __init__(self):
        self._plans: dict[Hashable, tuple[Callable[..., None], tuple[Any, ...]]] = {}

    def clear(self) -> None:
        self._plans.clear()

    def __len__(self) -> int:
        return len(self._plans)

    def launch(
        self,
        kernel: Any,
        device: int,
        tensors: tuple[Tensor | None, ...],
        key: Hashable,
        plan: Callable[[], Launch],
        numbers: tuple[float, ...] = (),
    ) -> None:
        """Launch `kernel` on `tensors`, its first arguments, as `plan` says.

        Args:
            kernel: A function of triton.jit, or of its interpreter.
            device: Of all tensors, as Tensor.get_device() tells it.
            tensors: In the kernel's order; None where the kernel does without.
            key: Everything else that decides about the launch.
            plan: Called where there is no launch of this key yet.
            numbers: The kernel's next arguments, which may be others at every call.
        """
        pointers = [None if tensor is None else tensor.data_ptr() for tensor in tensors]
        types = [
            None if pointer is None else (tensor.dtype, pointer % 16 == 0)  # type: ignore[union-attr]
            for tensor, pointer in zip(tensors, pointers, strict=True)
        ]
        full_key = (device, key, *types)
        found = self._plans.get(full_key)
        other_device = device >= 0 and device != torch.cuda.current_device()
        if other_device:
            with torch.cuda.device(device):
                self._launch(kernel, tensors, pointers, full_key, found, plan, numbers)
        else:
            self._launch(kernel, tensors, pointers, full_key, found, plan, numbers)

    def _launch(self, kernel, tensors, pointers, full_key, found, plan, numbers) -> None:
        if found is not None:
            run, arguments = found
            run(*pointers, *numbers, *arguments)
            return
        grid, arguments, options = plan()
        names = kernel.arg_names[len(tensors) + len(numbers) :]
        ordered = tuple(arguments[name] for name in names)
        compiled = kernel[(grid,)](*tensors, *numbers, *ordered, **options)
        # The interpreter compiles nothing, and launches from a tensor each time.
        if compiled is not None:
            while len(self._plans) >= MOST_PLANS:
                self._plans.pop(next(iter(self._plans)), None)
            self._plans[full_key] = compiled[(grid, 1, 1)], ordered
