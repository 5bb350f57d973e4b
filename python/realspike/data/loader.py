"""Batches in an order that a seed decides, from any batch on."""

import atexit
import contextlib
import signal
import weakref
from collections.abc import Iterator, Sequence
from multiprocessing import connection
from typing import Any

from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    Sampler,
    default_collate,
)

from realspike.data.sets import InMemory, Part
from realspike.errors import RunFailed, UserError
from realspike.random_numbers import numbers_from


class _Batches(Sampler):
    """Batches of indices, without the first ``skip``.

    A last batch of one sample joins the one before it: the batch norm of a map of one pixel has no
    variance of one value.
    """

    def __init__(self, sampler: DistributedSampler, batch_size: int):
        self.sampler, self.batch_size = sampler, batch_size
        self.skip = 0

    def __len__(self) -> int:
        whole, rest = divmod(len(self.sampler), self.batch_size)
        return whole + (rest > (1 if whole else 0))

    def __iter__(self) -> Iterator[list[int]]:
        indices, last = list(self.sampler), len(self) - 1
        for number in range(self.skip, last + 1):
            end = (number + 1) * self.batch_size if number < last else None
            yield indices[number * self.batch_size : end]


class _Reading(Dataset):
    """A data set that gives whole batches, or as a batch the error of what cannot be read: raised
    in a worker, it would arrive with the worker's traceback for a message.

    What samples draw follows from seed, epoch and batch, whoever reads it."""

    def __init__(self, dataset: Part, seed: int):
        self.dataset, self.seed = dataset, seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, indices: Sequence[int]):
        try:
            if isinstance(self.dataset, InMemory):
                return self.dataset.__getitems__(indices)
            epoch: int = getattr(self.dataset, "epoch", 0)
            with numbers_from(self.seed, epoch, *indices):
                return default_collate([self.dataset[index] for index in indices])
        except UserError as error:
            return error


def _as_it_is(batch):
    return batch


class WorkerDied(RunFailed):
    """A process that reads data ended without being asked."""

    def __init__(self, error: Exception):
        said = " ".join(str(error).split()).partition(". ")[0]
        super().__init__(f"a process that reads data died, often for want of memory: {said}")


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    """Keep SIGTERM and SIGINT waiting; processes that are started in here never see them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _until_a_worker_dies(batches) -> Iterator:
    try:
        yield from batches
    except (EOFError, OSError, RuntimeError) as error:
        # Its connections end a moment before it does.
        if not connection.wait([worker.sentinel for worker in batches._workers], timeout=1):
            raise
        raise WorkerDied(error) from error


def _end_workers(batches) -> None:
    """End workers, also those that are stuck: torch sends them SIGTERM, which they do not hear, and
    Python waits for them at its end."""
    batches._shutdown_workers()
    for worker in batches._workers:
        if worker.is_alive():
            worker.kill()


def _end_workers_left(reference: weakref.ref) -> None:
    batches = reference()
    if batches is not None:
        _end_workers(batches)


class _Loader(DataLoader):
    """A loader whose workers leave signals to their parent, and end when it does.

    A signal to the whole group of processes must not take the data from under a step that its
    parent still finishes.
    """

    def __init__(self, dataset: Part, batch_sampler: Any, workers: int, seed: int = 0):
        super().__init__(
            _Reading(dataset, seed),
            batch_sampler=batch_sampler,
            num_workers=workers,
            collate_fn=_as_it_is,
        )

    def __iter__(self):
        with _signals_blocked():
            batches = super().__iter__()
        if not self.num_workers:
            yield from map(_not_an_error, batches)
            return
        # What nobody came to delete.
        atexit.register(_end_workers_left, weakref.ref(batches))
        try:
            yield from map(_not_an_error, _until_a_worker_dies(batches))
        finally:
            _end_workers(batches)


def _not_an_error(batch):
    if isinstance(batch, UserError):
        raise batch
    return batch


class ResumableLoader(_Loader):
    """A training loader whose ``state_dict`` is the number of batches of this epoch that were used.

    Loaded, it gives the rest of the epoch, whatever was read ahead: order and batches depend on the
    seed and the epoch alone. Every process of a run sees its own part, all of the same length.
    """

    def __init__(
        self,
        dataset: Part,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
    ):
        self._source: Any = dataset
        self._order = DistributedSampler(self._source, world_size, rank, shuffle=True, seed=seed)
        self._batches = _Batches(self._order, batch_size)
        super().__init__(dataset, self._batches, workers, seed)
        self.position = self._resume_at = 0

    def __iter__(self):
        # Workers start anew with every epoch, so that they see the epoch of the data set.
        self._source.epoch = self._order.epoch
        self.position = self._batches.skip = self._resume_at
        self._resume_at = 0
        for batch in super().__iter__():
            self.position += 1
            yield batch

    def state_dict(self) -> dict:
        return {"position": self.position % len(self)}

    def load_state_dict(self, state: dict) -> None:
        self._resume_at = state["position"]


def evaluation_loader(
    dataset: Part,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
    samples: "int | None" = None,
) -> DataLoader:
    """Return a loader of every sample, or the first ``samples``, once over all processes."""
    count = len(dataset) if samples is None else min(samples, len(dataset))
    indices = range(rank, count, world_size)
    return _Loader(dataset, BatchSampler(indices, batch_size, drop_last=False), workers)
