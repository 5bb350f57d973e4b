"""Batches in an order that a seed decides, from any batch on."""

import itertools
from collections.abc import Iterator

from torch.utils.data import BatchSampler, DataLoader, Dataset, DistributedSampler, Sampler

from realspike.data.sets import InMemory


def _whole(batch):
    """A batch that `InMemory` has already put together."""
    return batch


class _Batches(Sampler):
    """Batches of indices, without the first ``skip``."""

    def __init__(self, sampler: Sampler, batch_size: int):
        self.sampler = sampler
        self.batches = BatchSampler(sampler, batch_size, drop_last=False)
        self.skip = 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        return itertools.islice(iter(self.batches), self.skip, None)


class ResumableLoader(DataLoader):
    """A training loader whose ``state_dict`` is the number of batches of this epoch that were used.

    Loaded, it gives the rest of the epoch, whatever was read ahead: order and batches depend on the
    seed and the epoch alone. Every process of a run sees its own part, all of the same length.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
    ):
        order = DistributedSampler(dataset, world_size, rank, shuffle=True, seed=seed)
        super().__init__(
            dataset,
            batch_sampler=_Batches(order, batch_size),
            num_workers=workers,
            collate_fn=_whole if isinstance(dataset, InMemory) else None,
        )
        self.position = self._resume_at = 0

    def __iter__(self):
        # Workers start anew with every epoch, so that they see the epoch of the data set.
        self.dataset.epoch = self.batch_sampler.sampler.epoch
        self.position = self.batch_sampler.skip = self._resume_at
        self._resume_at = 0
        for batch in super().__iter__():
            self.position += 1
            yield batch

    def state_dict(self) -> dict:
        return {"position": self.position % len(self)}

    def load_state_dict(self, state: dict) -> None:
        self._resume_at = state["position"]


def evaluation_loader(
    dataset: Dataset,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
    samples: "int | None" = None,
) -> DataLoader:
    """Return a loader of every sample, or the first ``samples``, once over all processes."""
    count = len(dataset) if samples is None else min(samples, len(dataset))
    return DataLoader(
        dataset,
        batch_sampler=BatchSampler(range(rank, count, world_size), batch_size, drop_last=False),
        num_workers=workers,
        collate_fn=_whole if isinstance(dataset, InMemory) else None,
    )
