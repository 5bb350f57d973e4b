"""A whole step of training as one function of tensors: forward, backward, optimizer."""

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor


class Step:
    """Add the gradients of a batch, and step the optimizer at the end of an accumulation.

    Nothing in it waits for the device, and what differs from step to step comes as a tensor.

    Args:
        loss: ``loss(samples, labels, draws)`` returns the mean loss of a batch, and what `History`
            adds up.
        optimizer: Whose learning rates are given at every call. It is made one whose step can be
            recorded: fused, with everything that it counts on the device.
        device: Of the parameters.
        accumulate: Batches per step of the optimizer.
        clip_gradient: Largest norm of the gradient; 0: any.
        precision: ``"bf16-mixed"`` or ``"32-true"``.
    """

    def __init__(
        self,
        loss: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]],
        optimizer: torch.optim.Optimizer,
        device: torch.device,
        accumulate: int,
        clip_gradient: float,
        precision: str,
    ):
        self.loss, self.optimizer, self.device = loss, optimizer, device
        self.accumulate, self.clip_gradient = accumulate, clip_gradient
        self.is_mixed = precision == "bf16-mixed"
        make_recordable(optimizer, device)

    def __call__(
        self, samples: Tensor, labels: Tensor, draws: Tensor, rates: Tensor, first: bool, last: bool
    ) -> Tensor:
        if first:
            # Gradients that are added to in later calls stay where they are.
            self.optimizer.zero_grad(set_to_none=self.accumulate == 1)
        # What was cast in one call must not be read in another.
        kind = self.device.type
        with torch.autocast(kind, torch.bfloat16, enabled=self.is_mixed, cache_enabled=False):
            loss, sums = self.loss(samples, labels, draws)
        with torch.autocast(kind, enabled=False):
            (loss / self.accumulate).backward()
            if last:
                self._step(rates)
        return sums

    def _step(self, rates: Tensor) -> None:
        groups = self.optimizer.param_groups
        if self.clip_gradient:
            parameters = [parameter for group in groups for parameter in group["params"]]
            torch.nn.utils.clip_grad_norm_(parameters, self.clip_gradient)
        with _with_rates(groups, rates):
            self.optimizer.step()


@contextlib.contextmanager
def _with_rates(groups: list[dict], rates: Tensor) -> Iterator[None]:  # [groups]
    """Let an optimizer read its learning rates from a tensor; a schedule sets numbers."""
    numbers = [group["lr"] for group in groups]
    for group, rate in zip(groups, rates.unbind(), strict=True):
        group["lr"] = rate
    try:
        yield
    finally:
        for group, number in zip(groups, numbers, strict=True):
            group["lr"] = number


def rates_of(optimizer: torch.optim.Optimizer) -> Tensor:  # [groups], on the CPU
    return torch.tensor([group["lr"] for group in optimizer.param_groups])


def make_recordable(optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """Let the device do all of an optimizer's step, also of one whose state was loaded."""
    for group in optimizer.param_groups:
        group["fused"] = True
        if "capturable" in group:
            group["capturable"] = True
    _move_counts(optimizer, device)


def make_ordinary(optimizer: torch.optim.Optimizer) -> None:
    """Undo `make_recordable`, which a checkpoint of a run that was captured remembers."""
    for group in optimizer.param_groups:
        group["fused"] = None
        if "capturable" in group:
            group["capturable"] = False
    _move_counts(optimizer, torch.device("cpu"))


def _move_counts(optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    for each in getattr(optimizer, "optimizers", (optimizer,)):
        for state in each.state.values():
            if isinstance(count := state.get("step"), Tensor):
                state["step"] = count.to(device)
