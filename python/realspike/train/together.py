"""Several optimizers that one schedule and one checkpoint take for one."""

import torch


class Together(torch.optim.Optimizer):
    """Optimizers that step parameters of their own, each, in the order in which they are given.

    Its groups are theirs, and its state is a list of theirs.
    """

    def __init__(self, *optimizers: torch.optim.Optimizer):
        self.optimizers = optimizers
        super().__init__([group for each in optimizers for group in each.param_groups], {})
        self._share_groups()

    def _share_groups(self) -> None:
        """Hold the very groups of the optimizers, whose learning rates a schedule sets here."""
        self.param_groups = [group for each in self.optimizers for group in each.param_groups]

    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for each in self.optimizers:
            each.step()
        return loss

    def state_dict(self) -> dict:
        return {"optimizers": [each.state_dict() for each in self.optimizers]}

    def load_state_dict(self, state_dict: dict) -> None:
        for each, state in zip(self.optimizers, state_dict["optimizers"], strict=True):
            each.load_state_dict(state)
        self._share_groups()
