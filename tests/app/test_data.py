"""The data sets: small files in the official formats, what is wrong with them, and augmentation."""

import itertools
import pickle
import shutil
import tarfile

import numpy as np
import pytest
import torch

for package in ("sklearn", "PIL", "yaml"):
    pytest.importorskip(package)

from PIL import Image
from realspike.config.run_config import DataSection, RunConfig
from realspike.data import DataError, cifar, cifar10_dvs, digits, events, load
from realspike.data.image_folder import ImageFolder
from realspike.data.loader import ResumableLoader, evaluation_loader
from realspike.data.preprocess import Preprocess
from realspike.data.sets import InMemory


def config_of(name, root="", /, **changes):
    return RunConfig().replaced(**{"data.name": name, "data.root": str(root)} | changes)


# Digits


def test_digits_are_split_by_class_and_normalised_by_the_training_part():
    raw = pytest.importorskip("sklearn.datasets").load_digits()
    splits = load(config_of("digits"))
    both = torch.cat([splits.train.samples, splits.test.samples])
    labels = torch.cat([splits.train.labels, splits.test.labels])
    # Every image is there once, beside its label.
    given = sorted(zip(raw.images.reshape(1797, -1).tolist(), raw.target.tolist(), strict=True))
    found = sorted(zip((both * 16).flatten(1).tolist(), labels.tolist(), strict=True))
    assert found == given
    share = splits.test.labels.bincount() / labels.bincount()
    assert len(share) == 10
    assert (share - 0.25).abs().max() < 0.005
    assert splits.mean == [pytest.approx(splits.train.samples.mean().item())]
    assert splits.std == [pytest.approx(splits.train.samples.std().item())]
    assert abs(both.mean().item() - splits.mean[0]) > 1e-6


def test_another_seed_is_another_split():
    pixels, labels = digits.read_pixels()
    first, again, other = (digits.split(pixels, labels, seed) for seed in (0, 0, 1))
    assert torch.equal(first.test.samples, again.test.samples)
    assert not torch.equal(first.test.samples, other.test.samples)


@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_split_without_a_part_is_refused(fraction):
    with pytest.raises(ValueError, match="test_fraction"):
        digits.stratified_split(np.array([0, 0, 1, 1]), fraction, 0)


def test_digit_events_are_in_the_same_split_and_deterministic():
    config = config_of("digits-events", timesteps=6)
    splits, again = load(config), load(config)
    assert splits.train.samples.shape == (1347, 6, 2, 16, 16)
    assert torch.equal(splits.test.labels, load(config_of("digits")).test.labels)
    assert torch.equal(splits.test.samples, again.test.samples)
    share = (splits.test.samples > 0).float().mean().item()
    assert 0.02 < share < 0.4, "events are sparse, and there are some"
    assert splits.test.samples.flatten(1).sum(1).min() > 0


# Events


def test_a_pixel_that_brightens_emits_as_many_events_as_thresholds_it_crosses():
    image = torch.zeros(1, 1, 8, 8)
    image[..., 2:6, 3] = 1.0
    frames = events.saccades(image, timesteps=8, threshold=0.25)
    assert frames.shape == (1, 8, 2, 16, 16)
    assert torch.equal(frames, frames.round())
    # The camera returns to where it began: what brightened has darkened again, but for the rest
    # that has not reached a threshold.
    net = frames[0, :, 0].sum(0) - frames[0, :, 1].sum(0)
    assert net.abs().max() <= 1
    largest = np.log(1.1 / 0.1) / 0.25
    assert largest / 2 < frames[0, :, 0].sum(0).max() <= 3 * largest
    assert frames[0, :, :, 0, 0].sum() == 0, "nothing moves in the corner"


def test_more_timesteps_cut_the_same_events_finer():
    image = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    whole = events.saccades(image, timesteps=1)
    for timesteps in (2, 5, 16):
        assert torch.equal(events.saccades(image, timesteps).sum(1), whole[:, 0])
    assert events.saccades(image[:, :, :1, :1].expand(2, 1, 8, 8) * 0, 4).sum() == 0
    with pytest.raises(DataError, match="timesteps must be at most 96; got 97"):
        events.saccades(image, 97)
    with pytest.raises(ValueError, match="timesteps"):
        events.saccades(image, timesteps=97)


def test_frames_count_events_by_hand():
    t = np.array([100, 149, 150, 199])  # two intervals of 50
    x, y, p = np.array([0, 1, 2, 3]), np.array([0, 0, 3, 3]), np.array([0, 0, 1, 1])
    frames = events.frames_of_events(t, x, y, p, 2, sensor_size=4, image_size=4)
    expected = np.zeros((2, 2, 4, 4), np.float32)
    expected[0, 0, 0, 0] = expected[0, 0, 0, 1] = expected[1, 1, 3, 2] = expected[1, 1, 3, 3] = 1
    np.testing.assert_array_equal(frames, expected)
    half = events.frames_of_events(t, x, y, p, 2, sensor_size=4, image_size=2)
    assert half[0, 0, 0, 0] == half[1, 1, 1, 1] == 2
    assert half.sum() == 4
    none = events.frames_of_events(t[:0], x[:0], y[:0], p[:0], 3, 4, 4)
    assert none.shape == (3, 2, 4, 4)
    assert not none.any()


# CIFAR


def cifar_batch(name, count, first):
    archive = cifar.ARCHIVES[name]
    data = np.random.default_rng(first).integers(0, 256, (count, 3072), dtype=np.uint8)
    labels = [(first + i) % archive.classes for i in range(count)]
    return {b"data": data, archive.labels: labels, b"filenames": [b"x.png"] * count}


def write_cifar(name, root):
    archive, batches = cifar.ARCHIVES[name], []
    folder = root / archive.folder
    folder.mkdir()
    for number, file in enumerate(archive.train + archive.test):
        batches.append(cifar_batch(name, 6, 10 * number))
        # Protocol 2, as the official files are
        (folder / file).write_bytes(pickle.dumps(batches[-1], protocol=2))
    return batches


@pytest.fixture(params=["cifar10", "cifar100"])
def cifar_files(request, tmp_path):
    return request.param, tmp_path, write_cifar(request.param, tmp_path)


def test_cifar_round_trip(cifar_files):
    name, root, batches = cifar_files
    splits = load(config_of(name, root))
    count = len(cifar.ARCHIVES[name].train)
    assert len(splits.train) == 6 * count
    assert len(splits.test) == 6
    expected = np.concatenate([batch[b"data"] for batch in batches[:count]])
    np.testing.assert_array_equal(splits.train.samples.numpy().reshape(-1, 3072), expected)
    assert splits.train.samples.shape[1:] == (3, 32, 32)
    # Red first, then green, then blue, each row by row
    assert splits.test.samples[2, 1, 3, 5] == batches[-1][b"data"][2, 1024 + 3 * 32 + 5]
    assert splits.test.labels.tolist() == batches[-1][cifar.ARCHIVES[name].labels]


def test_cifar_archive_as_it_was_downloaded(cifar_files):
    name, root, _ = cifar_files
    unpacked = load(config_of(name, root))
    archive = cifar.ARCHIVES[name]
    with tarfile.open(root / archive.file, "w:gz") as tar:
        tar.add(root / archive.folder, archive.folder)
    shutil.rmtree(root / archive.folder)
    packed = load(config_of(name, root))
    assert torch.equal(packed.train.samples, unpacked.train.samples)
    assert torch.equal(packed.test.labels, unpacked.test.labels)
    content = (root / archive.file).read_bytes()
    (root / archive.file).write_bytes(content[: len(content) // 2])
    assert "truncated" in refusal(name, root, archive.file)


def refusal(name, root, *words):
    with pytest.raises(DataError) as raised:
        load(config_of(name, root))
    message = str(raised.value)
    assert "\n" not in message
    for word in (str(root), *words):
        assert word in message
    return message


def test_cifar_missing(tmp_path):
    message = refusal("cifar10", tmp_path, "cifar-10-python.tar.gz", "cs.toronto.edu")
    assert "neither" in message
    write_cifar("cifar10", tmp_path)
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").unlink()
    refusal("cifar10", tmp_path, "data_batch_3", "cs.toronto.edu")


@pytest.mark.parametrize("keep", [0, 10, 1000, -1])
def test_cifar_truncated(tmp_path, keep):
    write_cifar("cifar10", tmp_path)
    path = tmp_path / "cifar-10-batches-py" / "test_batch"
    path.write_bytes(path.read_bytes()[:keep])
    refusal("cifar10", tmp_path, "test_batch", "truncated or corrupt", "cs.toronto.edu")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({b"data": np.zeros((6, 3071), np.uint8)}, "3071"),
        ({b"data": np.zeros((6, 3072), np.float32)}, "'f4', not of integers"),
        ({b"labels": [0] * 5}, "6 images and 5 labels"),
        ({b"labels": [0, 1, 2, 3, 4, 10]}, "from 0 to 10"),
        ({b"labels": [-1] * 6}, "from -1"),
    ],
)
def test_cifar_with_wrong_contents(tmp_path, changes, reason):
    write_cifar("cifar10", tmp_path)
    batch = cifar_batch("cifar10", 6, 0) | changes
    (tmp_path / "cifar-10-batches-py" / "data_batch_1").write_bytes(pickle.dumps(batch))
    refusal("cifar10", tmp_path, "data_batch_1", reason)


class Malicious:
    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return (open, (self.target, "w"))


def test_cifar_pickles_run_nothing(tmp_path):
    write_cifar("cifar10", tmp_path)
    target = tmp_path / "owned"
    attack = pickle.dumps({b"data": Malicious(target), b"labels": []})
    (tmp_path / "cifar-10-batches-py" / "data_batch_2").write_bytes(attack)
    refusal("cifar10", tmp_path, "data_batch_2", "never loaded")
    assert not target.exists()
    pickle.loads(attack)[b"data"].close()
    assert target.exists(), "the attack itself must work, or this test shows nothing"


# Image folder


@pytest.fixture
def image_folder(tmp_path):
    """Images whose left half is red and right half green, so that a crop shows where it was."""
    for part, count in (("train", 3), ("val", 2)):
        for name in ("bird", "ant"):
            folder = tmp_path / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = np.zeros((40, 60, 3), np.uint8)
                pixels[:, :30, 0] = pixels[:, 30:, 1] = 250
                Image.fromarray(pixels).save(folder / f"{number}.png")
            (folder / "notes.txt").touch()
    return tmp_path


def test_image_folder(image_folder):
    splits = load(config_of("images", image_folder, image_size=32, classes=2))
    assert len(splits.train) == 6
    assert splits.test.classes == ["ant", "bird"]
    assert [label for _, label in splits.test] == [0, 0, 1, 1]
    image, _ = splits.test[0]
    assert image.shape == (3, 32, 32)
    assert image.dtype == torch.uint8
    assert (image[0, :, :15] == 250).all()
    assert (image[0, :, 17:] == 0).all()


def test_random_crops_follow_seed_epoch_and_index(image_folder):
    dataset = ImageFolder(image_folder / "train", 16, training=True, seed=1)
    first, again = dataset[0][0], dataset[0][0]
    assert torch.equal(first, again)
    others = [dataset[1][0]]
    dataset.epoch = 1
    others.append(dataset[0][0])
    others.append(ImageFolder(image_folder / "train", 16, training=True, seed=2)[0][0])
    assert all(not torch.equal(first, other) for other in others)
    reds = set()
    for dataset.epoch in range(20):
        reds.add((dataset[0][0][0] > 125).sum().item())
    assert len(reds) > 8


def test_image_folder_errors(image_folder, tmp_path):
    def refused(*words, **changes):
        with pytest.raises(DataError) as raised:
            load(config_of("images", image_folder, **({"classes": 2} | changes)))
        assert all(word in str(raised.value) for word in words), str(raised.value)

    refused("2 folders of classes", "data.classes", classes=3)
    path = image_folder / "val" / "ant" / "0.png"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"0\.png is no image, truncated or corrupt"):
        load(config_of("images", image_folder, classes=2)).test[0]
    (image_folder / "val" / "cat").mkdir()
    refused("val/cat/ has no images")
    shutil.copy(image_folder / "val" / "bird" / "0.png", image_folder / "val" / "cat")
    refused("same classes", "cat")
    shutil.rmtree(image_folder / "val")
    refused("neither", "val", "test")
    (image_folder / "val" / "ant").mkdir(parents=True)
    refused("no images", "val")


# CIFAR10-DVS


def write_aedat(path, t, x, y, p):
    """An AEDAT 2.0 file as the recording software writes it, for a sensor mounted turned."""
    address = (127 - x) << 8 | (127 - y) << 1 | (1 - p)
    words = np.stack([address, t], 1).astype(">u4")
    header = b"#!AER-DAT2.0\r\n# This is a raw AE data file - do not edit\r\n"
    path.write_bytes(header + words.tobytes())


@pytest.fixture
def recordings(tmp_path):
    random = np.random.default_rng(0)
    for label, name in enumerate(cifar10_dvs.CLASSES):
        (tmp_path / name).mkdir()
        for number in range(10):
            x, y = random.integers(0, 128, (2, 50))
            t, p = np.arange(50) * 1000 + 7, random.integers(0, 2, 50)
            t[-1] = 1_000_000 * label + 50_000
            write_aedat(tmp_path / name / f"cifar10_{name}_{number}.aedat", t, x, y, p)
    return tmp_path


def test_aedat_round_trip(tmp_path):
    random = np.random.default_rng(1)
    x, y = random.integers(0, 128, (2, 1000))
    t, p = np.sort(random.integers(0, 2**31, 1000)), random.integers(0, 2, 1000)
    write_aedat(tmp_path / "a.aedat", t, x, y, p)
    read = cifar10_dvs.read_events(tmp_path / "a.aedat")
    for name, expected in (("t", t), ("x", x), ("y", y), ("p", p)):
        np.testing.assert_array_equal(read[name], expected, err_msg=name)


def test_cifar10_dvs(recordings):
    splits = load(config_of("cifar10-dvs", recordings, timesteps=5, image_size=64))
    assert len(splits.train) == 90
    assert len(splits.test) == 10
    assert [label for _, label in splits.test] == list(range(10))
    assert [path.stem[-1] for path, _ in splits.test.files] == ["9"] * 10
    frames, _ = splits.train[3]
    assert frames.shape == (5, 2, 64, 64)
    assert frames.sum() == 50


def test_cifar10_dvs_is_sorted_by_number(tmp_path):
    names = [f"cifar10_ship_{n}.aedat" for n in (100, 9, 10)]
    assert [p.name for p in sorted(map(tmp_path.joinpath, names), key=cifar10_dvs._number)] == [
        names[i] for i in (1, 2, 0)
    ]


def test_cifar10_dvs_errors(recordings):
    path = recordings / "cat" / "cifar10_cat_0.aedat"
    content = path.read_bytes()
    for broken, reason in (
        (content[:-3], "truncated"),
        (content[7:], "no AEDAT 2.0"),
        (b"", "no AEDAT 2.0"),
    ):
        path.write_bytes(broken)
        with pytest.raises(DataError, match=rf"cifar10_cat_0\.aedat.*{reason}"):
            cifar10_dvs.read_events(path)
    with pytest.raises(DataError, match=r"absent\.aedat"):
        cifar10_dvs.read_events(recordings / "absent.aedat")
    shutil.rmtree(recordings / "truck")
    refusal("cifar10-dvs", recordings, "truck", "figshare")


# Augmentation


def preprocess_of(**options):
    return Preprocess(DataSection(**options), [0.0] * 3, [1.0] * 3, 32)


def augmented(preprocess, samples, seed):
    return preprocess(samples, preprocess.draw(len(samples), seed))


def images(count=64):  # whole levels, of which AutoAugment knows no others
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (count, 3, 32, 32), generator=generator) / 255


EVERYTHING = {"crop": 4, "flip": True, "autoaugment": True, "cutout": 16}


@pytest.mark.parametrize("options", [*({key: EVERYTHING[key]} for key in EVERYTHING), EVERYTHING])
def test_augmentation_follows_its_seed_alone(options):
    preprocess, batch = preprocess_of(**options), images()
    before = torch.random.get_rng_state()
    first = augmented(preprocess, batch, seed=3)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(5)
    assert torch.equal(augmented(preprocess, batch, seed=3), first)
    assert not torch.equal(augmented(preprocess, batch, seed=4), first)
    assert torch.equal(preprocess(batch), batch), "evaluation sees the images as they are"
    assert first.shape == batch.shape
    assert torch.isfinite(first).all()
    levels = (batch * 255).round().to(torch.uint8)
    assert torch.equal(augmented(preprocess, levels, seed=3), first)


def test_an_option_leaves_the_random_numbers_of_the_others_alone():
    batch, draws = images(32), Preprocess.draw(32, seed=0)
    alone = preprocess_of(crop=4)(batch, draws)
    flipped = preprocess_of(crop=4, flip=True)(batch, draws)
    pairs = list(zip(flipped, alone, strict=True))
    assert all(torch.equal(f, a) or torch.equal(f, a.flip(-1)) for f, a in pairs)
    cut = preprocess_of(crop=4, cutout=16)(batch, draws)
    assert torch.equal(cut, torch.where(cut == 0, 0, alone))
    hole = preprocess_of(cutout=16)(batch + 1, draws) == 0
    assert torch.equal(cut[~hole], alone[~hole])
    assert not cut[hole].any()


def test_every_image_is_augmented_on_its_own():
    same = images(1).expand(64, -1, -1, -1)
    out = augmented(preprocess_of(autoaugment=True), same, seed=0)
    distinct = {image.numpy().tobytes() for image in out}
    assert len(distinct) > 16, "one policy has eight outcomes at most"


def test_crops_are_windows_of_the_padded_image_and_flips_mirror_it():
    batch = images(32)
    padded = torch.nn.functional.pad(batch, (4,) * 4)
    windows = {
        padded[i, :, y : y + 32, x : x + 32].numpy().tobytes(): (i, y, x)
        for i in range(32)
        for y in range(9)
        for x in range(9)
    }
    cropped = augmented(preprocess_of(crop=4), batch, seed=1)
    found = [windows[image.numpy().tobytes()] for image in cropped]
    assert [i for i, _, _ in found] == list(range(32))
    assert len({(y, x) for _, y, x in found}) > 15
    flipped = augmented(preprocess_of(flip=True), batch, seed=1)
    mirrored = [torch.equal(a, b.flip(-1)) for a, b in zip(flipped, batch, strict=True)]
    kept = [torch.equal(a, b) for a, b in zip(flipped, batch, strict=True)]
    assert all(m != k for m, k in zip(mirrored, kept, strict=True))
    assert 5 < sum(mirrored) < 27


@pytest.mark.parametrize("draw", [0.0, 1 - 2**-24])
def test_the_first_and_the_last_crop_hole_and_policy(draw):
    """Random numbers just below 1 stay inside, although float32 rounds their products up."""
    draws = torch.full((1, 10), draw)
    batch = torch.arange(1, 37).view(1, 1, 6, 6).float()
    preprocess = Preprocess(DataSection(crop=4, cutout=1), [0.0], [1.0], 6)
    expected = torch.zeros(6, 6)
    if draw:  # the lower right of the padded image
        expected[:2, :2] = batch[0, 0, 4:, 4:]
    else:
        expected[4:, 4:] = batch[0, 0, :2, :2]
    assert torch.equal(preprocess(batch, draws)[0, 0], expected)
    hole = Preprocess(DataSection(cutout=3), [0.0], [1.0], 6)(batch, draws)[0, 0] == 0
    rows = torch.arange(6) > 3 if draw else torch.arange(6) < 2
    assert torch.equal(hole, rows[:, None] & rows)
    out = preprocess_of(autoaugment=True)(images(1), torch.full((1, 10), draw))
    assert out.shape == (1, 3, 32, 32)


def test_cutout_blanks_one_square():
    batch = images(200) + 1
    holes = augmented(preprocess_of(cutout=16), batch, seed=0) == 0
    assert (holes[:, :1] == holes).all(), "all channels alike"
    sizes = holes[:, 0].flatten(1).sum(1)
    assert sizes.max() == 256
    assert sizes.min() >= 64
    rows, columns = holes[:, 0].any(2), holes[:, 0].any(1)
    assert torch.equal(rows[:, :, None] & columns[:, None, :], holes[:, 0])


def test_frames_of_a_sample_are_augmented_alike_and_time_comes_first():
    for channels, options in ((2, {}), (3, {"autoaugment": True})):
        frames = torch.rand(6, 1, channels, 16, 16).expand(-1, 4, -1, -1, -1)  # [B, T, C, H, W]
        section = DataSection(crop=2, flip=True, cutout=4, **options)
        preprocess = Preprocess(section, [0.0] * channels, [1.0] * channels, 16)
        out = augmented(preprocess, frames, seed=1).view(4, 6, channels, 16, 16)
        assert (out == out[:1]).all()
        assert not torch.equal(out[0], frames[:, 0])
        assert torch.equal(preprocess(frames).view(4, 6, channels, 16, 16), frames.transpose(0, 1))


def test_double_precision_of_numpy_ends_at_the_normalisation():
    numbers = np.array([0.5, 0.25])
    image = torch.ones(1, 2, 2, 2, dtype=torch.uint8)
    given, plain = (
        Preprocess(DataSection(), mean, [*mean], 2)(image) for mean in (numbers, numbers.tolist())
    )
    assert given.dtype == torch.float32
    assert torch.equal(given, plain)


def test_normalisation():
    preprocess = Preprocess(DataSection(), [0.5, 0.0, 0.25], [0.5, 1.0, 0.25], 2)
    out = preprocess(torch.full((1, 3, 2, 2), 255, dtype=torch.uint8))
    assert out[0, :, 0, 0].tolist() == [1.0, 1.0, 3.0]


# Batches


def tiny(count=25):
    return InMemory(torch.arange(count).float().view(count, 1, 1, 1), torch.arange(count))


def order(loader, epoch):
    loader.batch_sampler.sampler.set_epoch(epoch)
    return [labels.tolist() for _, labels in loader]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_interrupted_epoch_continues_with_the_next_batch(workers):
    def loader():
        return ResumableLoader(tiny(27), 4, seed=1, workers=workers)

    whole, later = order(loader(), 0), order(loader(), 1)
    assert sorted(itertools.chain(*whole)) == list(range(27))
    assert whole != later
    for used in (1, 3, 6):
        interrupted = loader()
        batches = iter(interrupted)
        assert [next(batches)[1].tolist() for _ in range(used)] == whole[:used]
        state = interrupted.state_dict()
        del batches
        resumed = loader()
        resumed.load_state_dict(state)
        assert order(resumed, 0) == whole[used:]
        assert resumed.state_dict() == {"position": 0}
        assert order(resumed, 1) == later


def test_processes_share_the_data():
    parts = [ResumableLoader(tiny(), 4, 0, rank, 2) for rank in (0, 1)]
    seen = [list(itertools.chain(*order(part, 0))) for part in parts]
    assert len(seen[0]) == len(seen[1]) == 13
    assert set(seen[0]) | set(seen[1]) == set(range(25))
    tests = [evaluation_loader(tiny(), 4, rank, 2) for rank in (0, 1)]
    seen = [label for part in tests for _, labels in part for label in labels.tolist()]
    assert sorted(seen) == list(range(25)), "every test image once"


def test_batches_of_files_are_collated(image_folder):
    splits = load(config_of("images", image_folder, image_size=16, classes=2))
    loader = ResumableLoader(splits.train, 4, seed=0, workers=1)
    first = [images for images, _ in loader]
    assert [len(images) for images in first] == [4, 2]
    loader.batch_sampler.sampler.set_epoch(1)
    second = [images for images, _ in loader]
    assert not torch.equal(first[1], second[1])
    assert splits.train.epoch == 1
