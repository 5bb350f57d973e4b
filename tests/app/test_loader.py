"""The order of batches, the last of them, and what cannot be read in a worker."""

import itertools

import pytest
import torch

for package in ("sklearn", "PIL", "yaml", "lightning", "tensorboard", "safetensors"):
    pytest.importorskip(package)

from realspike import train
from realspike.config.run_config import RunConfig
from realspike.data.loader import ResumableLoader, evaluation_loader
from realspike.data.sets import DataError, InMemory
from torch.utils.data import Dataset


def numbered(count):
    return InMemory(torch.arange(count).float().view(count, 1, 1, 1), torch.arange(count))


def order(loader, epoch=0):
    loader.batch_sampler.sampler.set_epoch(epoch)
    return [labels.tolist() for _, labels in loader]


def test_the_order_follows_seed_and_epoch():
    orders = {
        (seed, epoch): tuple(itertools.chain(*order(ResumableLoader(numbered(40), 8, seed), epoch)))
        for seed in range(3)
        for epoch in range(3)
    }
    assert all(sorted(each) == list(range(40)) for each in orders.values())
    assert tuple(range(40)) not in orders.values()
    assert len({orders[seed, 0] for seed in range(3)}) == 3
    assert len({orders[0, epoch] for epoch in range(3)}) == 3
    assert order(ResumableLoader(numbered(40), 8, 1)) == order(ResumableLoader(numbered(40), 8, 1))


def test_the_seed_of_the_configuration_is_the_loaders(tmp_path, monkeypatch):
    """Runs of two seeds that share their weights and augment nothing differ by the order alone."""
    from realspike.train import run

    build = run.build_with_sizes
    monkeypatch.setattr(run, "build_with_sizes", lambda config, seed: build(config, 0))
    small = {"name": "digits", "architecture": "digits", "width": 2, "timesteps": 1, "epochs": 1}
    small |= {"batch_size": 256, "device": "cpu", "threads": 1}
    losses = {
        (seed, attempt): train.start(
            RunConfig().replaced(**small, seed=seed), tmp_path / f"{seed}{attempt}"
        ).records[0]["train_loss"]
        for seed, attempt in ((0, "a"), (0, "b"), (1, "a"))
    }
    assert losses[0, "a"] == losses[0, "b"] != losses[1, "a"]


@pytest.mark.parametrize(
    ("samples", "batch_size", "sizes"),
    [
        (9, 4, [4, 5]),
        (10, 4, [4, 4, 2]),
        (8, 4, [4, 4]),
        (5, 4, [5]),
        (3, 4, [3]),
        (1, 4, [1]),
        (3, 2, [3]),
        (3, 1, [1, 1, 1]),
    ],
)
def test_a_last_batch_of_one_sample_joins_the_one_before(samples, batch_size, sizes):
    loader = ResumableLoader(numbered(samples), batch_size, seed=0)
    batches = order(loader)
    assert [len(batch) for batch in batches] == sizes
    assert len(loader) == len(sizes)
    assert sorted(itertools.chain(*batches)) == list(range(samples))


def test_a_joined_batch_is_resumed():
    whole = order(ResumableLoader(numbered(13), 4, seed=0))
    resumed = ResumableLoader(numbered(13), 4, seed=0)
    resumed.load_state_dict({"position": 2})
    assert order(resumed) == whole[2:] != []
    assert len(whole[2]) == 5


def test_every_process_has_a_batch_less_where_one_sample_is_left():
    parts = [ResumableLoader(numbered(18), 4, 0, rank, 2) for rank in (0, 1)]
    assert [[len(batch) for batch in order(part)] for part in parts] == [[4, 5]] * 2


@pytest.mark.parametrize(("samples", "batch_size"), [(1347, 673), (1347, 1346)])
def test_the_last_sample_trains_a_network_whose_maps_are_a_pixel(samples, batch_size, tmp_path):
    config = RunConfig().replaced(
        **{"name": "digits", "architecture": "resnet20", "width": 2, "timesteps": 1, "epochs": 1},
        **{"batch_size": batch_size, "device": "cpu", "threads": 1},
    )
    assert samples % batch_size == 1
    [record] = train.start(config, tmp_path).records
    assert record["train_loss"] > 0


def test_batches_of_one_that_no_batch_norm_can_take_are_refused(tmp_path):
    config = RunConfig().replaced(
        **{"name": "digits", "architecture": "resnet20", "width": 2, "timesteps": 1, "epochs": 1},
        **{"batch_size": 1, "device": "cpu", "threads": 1},
    )
    with pytest.raises(train.RunError, match=r"resnet20 with timesteps=1 .* data\.batch_size=2"):
        train.start(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


class Unreadable(Dataset):
    def __init__(self, bad, error):
        self.bad, self.error = bad, error

    def __len__(self):
        return 6

    def __getitem__(self, index):
        if index == self.bad:
            raise self.error
        return torch.zeros(1), index


@pytest.mark.parametrize("workers", [0, 1])
def test_what_cannot_be_read_is_one_line(workers):
    dataset = Unreadable(3, DataError("DataError: 3.png is no image"))
    for loader in (
        evaluation_loader(dataset, 2, workers=workers),
        ResumableLoader(dataset, 2, 0, workers=workers),
    ):
        with pytest.raises(DataError) as raised:
            list(loader)
        assert str(raised.value) == "DataError: 3.png is no image"
    before = iter(evaluation_loader(dataset, 3, workers=workers))
    assert next(before)[1].tolist() == [0, 1, 2], "batches before it are given"


def test_a_bug_in_a_worker_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError, match="Original Traceback"):
        list(evaluation_loader(Unreadable(3, ZeroDivisionError("x")), 2, workers=1))
