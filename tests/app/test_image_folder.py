"""Image folders: what is a class, what is an image, and what becomes of its levels."""

import contextlib
import math
import os
import struct
import zlib

import numpy as np
import pytest

pytest.importorskip("PIL")

from PIL import Image
from realspike.data import DataError, image_folder
from realspike.data.image_folder import ImageFolder


def save(path, pixels, mode=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


def read(path, size=8):
    """Return the only image of a folder in its own size, [3, H, W]."""
    folder = path.parent.parent
    dataset = ImageFolder(folder, size, training=False)
    dataset._central_box = lambda image: (0, 0, *image.size)
    [(found, _)] = dataset.files
    assert found == path
    return dataset[0][0].numpy()


GREY = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
COLOURS = np.stack([GREY, GREY[::-1], 255 - GREY], -1)


# Levels


@pytest.mark.parametrize("rotated", [False, True])
def test_sixteen_bits_are_scaled(tmp_path, rotated):
    levels = GREY.astype(np.uint16) * 257
    levels[0] = [0, 128, 129, 257, 65535, 65407, 65406, 1000]
    exif = Image.Exif()
    if rotated:
        exif[0x0112] = 3  # by half a turn
    image = read(save(tmp_path / "a" / "x.png", levels, exif=exif))
    expected = GREY.copy()
    expected[0] = [0, 0, 1, 1, 255, 255, 254, 4]
    expected = expected[::-1, ::-1] if rotated else expected
    for channel in image:
        np.testing.assert_array_equal(channel, expected)


def png(rows, depth, colour):
    """A PNG file of 8 pixels per row, whose rows are given as bytes."""
    header = struct.pack(">IIBBBBB", 8, len(rows), depth, colour, 0, 0, 0)
    packed = zlib.compress(b"".join(b"\0" + row for row in rows))
    chunks = ((b"IHDR", header), (b"IDAT", packed), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


@pytest.mark.parametrize(("colour", "channels"), [(2, 3), (4, 2), (6, 4)])
def test_sixteen_bits_of_colour_and_alpha_are_scaled(tmp_path, colour, channels):
    path = tmp_path / "a" / "x.png"
    path.parent.mkdir()
    levels = np.repeat(GREY[..., None], channels, -1).astype(">u2") * 257
    path.write_bytes(png([row.tobytes() for row in levels], 16, colour))
    for channel in read(path):
        np.testing.assert_array_equal(channel, GREY)


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_few_bits_are_scaled(tmp_path, depth):
    path = tmp_path / "a" / "x.png"
    path.parent.mkdir()
    row = np.packbits(np.tile([0, 1] * 4, depth).reshape(depth, 8).T.ravel()).tobytes()
    path.write_bytes(png([row] * 8, depth, 0))
    np.testing.assert_array_equal(read(path), np.tile([0, 255] * 4, (3, 8, 1)))


def test_levels_beyond_sixteen_bits_are_refused():
    def levels(*numbers):
        return image_folder._rgb(Image.fromarray(np.array([numbers], np.int32)))

    assert np.asarray(levels(0, 65535))[0, :, 0].tolist() == [0, 255]
    for numbers in ((-1, 5), (0, 65536), (-1, 65536)):
        with pytest.raises(ValueError, match=f"reach from {numbers[0]} to {numbers[1]}"):
            levels(*numbers)


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "P"])
@pytest.mark.parametrize("suffix", ["png", "PNG"])
def test_modes_of_png(tmp_path, mode, suffix, recwarn):
    pixels = GREY if mode in ("L", "LA") else COLOURS
    image = read(save(tmp_path / "a" / f"x.{suffix}", pixels, mode))
    expected = np.asarray(Image.fromarray(pixels).convert(mode).convert("RGB"))
    np.testing.assert_array_equal(image, expected.transpose(2, 0, 1))
    assert not recwarn.list


def test_a_palette_with_transparency(tmp_path, recwarn):
    picture = Image.fromarray(COLOURS).quantize(16)
    expected = np.asarray(picture.convert("RGB")).transpose(2, 0, 1)
    path = tmp_path / "a" / "x.png"
    path.parent.mkdir()
    picture.save(path, transparency=bytes(range(0, 256, 16)))
    np.testing.assert_array_equal(read(path), expected)
    assert not recwarn.list


def test_cmyk_and_bitmaps(tmp_path):
    white = read(save(tmp_path / "c" / "a" / "x.jpg", np.full((8, 8, 3), 255, np.uint8), "CMYK"))
    assert white.min() > 250
    for suffix in ("bmp", "webp"):
        options = {"lossless": True} if suffix == "webp" else {}
        image = read(save(tmp_path / suffix / "a" / f"x.{suffix}", COLOURS, **options))
        np.testing.assert_array_equal(image, COLOURS.transpose(2, 0, 1))


def test_a_picture_is_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # what is at the left belongs to the top
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:, :4, 0] = 255
    image = read(save(tmp_path / "a" / "x.png", pixels, exif=exif))
    assert image[0, :4].min() == 255
    assert image[0, 4:].max() == 0


def test_the_suffix_may_be_anothers(tmp_path):
    path = save(tmp_path / "a" / "x.png", COLOURS)
    path = path.rename(path.with_suffix(".JPEG"))  # as one in ImageNet is
    np.testing.assert_array_equal(read(path), COLOURS.transpose(2, 0, 1))


# Crops


@pytest.fixture
def root(tmp_path):
    for part in ("train", "val"):
        for name in ("ant", "bee"):
            save(tmp_path / part / name / "1.png", COLOURS)
    return tmp_path


class Draws:
    """A generator that draws what it is given, and keeps between which bounds."""

    def __init__(self, *numbers):
        self.numbers, self.bounds = list(numbers), []

    def uniform(self, low, high):
        self.bounds.append((low, high))
        return self.numbers.pop(0)


def random_box(monkeypatch, dataset, size, *numbers):
    draws = Draws(*numbers)
    monkeypatch.setattr(np.random, "default_rng", lambda entropy: draws)
    box = dataset._random_box(Image.new("RGB", size), 0)
    assert not draws.numbers
    return box, draws.bounds


def test_random_crops_by_hand(root, monkeypatch):
    """0.4 of 60 x 50 pixels at a ratio of 4:3 are 40 x 30."""
    dataset = ImageFolder(root / "train", 8, training=True)
    share, ratio = (0.08, 1.0), (math.log(3 / 4), math.log(4 / 3))
    box, bounds = random_box(monkeypatch, dataset, (60, 50), 0.4, math.log(4 / 3), 3.0, 5.0)
    assert box == pytest.approx((3, 5, 43, 35))
    assert bounds == [share, ratio, pytest.approx((0, 20)), pytest.approx((0, 20))]
    # 1600 of 40 x 50 pixels at 1:1 are as wide as the image; at 4:3, or 3:4 of 50 x 40, they do
    # not fit.
    box, _ = random_box(monkeypatch, dataset, (40, 50), 0.8, 0.0, 0.0, 10.0)
    assert box == pytest.approx((0, 10, 40, 50))
    for size, odd in (((40, 50), 4 / 3), ((50, 40), 3 / 4)):
        given = [0.8, math.log(odd)] * 9 + [0.2, 0.0, 1.0, 2.0]
        box, bounds = random_box(monkeypatch, dataset, size, *given)
        assert box == pytest.approx((1, 2, 21, 22))
        assert bounds[:20] == [share, ratio] * 10
        # After ten tries the square in the middle.
        box, _ = random_box(monkeypatch, dataset, size, *[0.8, math.log(odd)] * 10)
        assert box == ((0, 5, 40, 45) if size == (40, 50) else (5, 0, 45, 40))


def test_random_crops_follow_from_seed_epoch_and_index(root):
    image = Image.new("RGB", (60, 50))

    def box(seed=1, epoch=0, index=0):
        dataset = ImageFolder(root / "train", 8, training=True, seed=seed)
        dataset.epoch = epoch
        return dataset._random_box(image, index)

    assert box() == box()
    assert len({box(), box(seed=2), box(epoch=2), box(index=2), box(2, 1, 0)}) == 5


def test_the_crop_in_the_middle(root):
    """224 of 256 pixels of the shorter side."""
    dataset = ImageFolder(root / "train", 8, training=False)
    assert dataset._central_box(Image.new("RGB", (512, 256))) == (144, 16, 368, 240)
    assert dataset._central_box(Image.new("RGB", (256, 300))) == (16, 38, 240, 262)


def test_which_crop(root):
    for training in (False, True):
        dataset = ImageFolder(root / "train", 8, training)
        dataset._random_box = lambda image, index: (0, 0, index + 1, 8)
        dataset._central_box = lambda image: (0, 0, *image.size)
        image, label = dataset[1]
        assert label == 1
        assert np.array_equal(image, COLOURS.transpose(2, 0, 1)) != training


def refused(path):
    with pytest.raises(DataError) as raised:
        read(path)
    message = str(raised.value)
    assert str(path) in message
    assert "\n" not in message
    return message


@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_animations_are_refused(tmp_path, suffix):
    frames = [Image.fromarray(np.full((8, 8, 3), level, np.uint8)) for level in (10, 200, 90)]
    path = tmp_path / "a" / f"x.{suffix}"
    path.parent.mkdir()
    frames[0].save(path, save_all=True, append_images=frames[1:])
    assert "it has 3 frames" in refused(path)


@pytest.mark.parametrize("kind", ["TIFF", "GIF", "PPM", "ICO", "EPS"])
def test_other_formats_under_the_name_of_one_that_is_read(tmp_path, kind):
    path = tmp_path / "a" / "x.png"
    path.parent.mkdir()
    Image.fromarray(COLOURS).resize((16, 16)).save(path, format=kind)
    assert "JPEG, PNG, BMP, WEBP are read" in refused(path)


def test_postscript_starts_no_program(tmp_path, monkeypatch):
    from PIL import EpsImagePlugin

    started = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *given, **_: started.append(given))
    path = tmp_path / "a" / "x.png"
    path.parent.mkdir()
    Image.fromarray(COLOURS).save(path, format="EPS")
    with contextlib.suppress(Exception), Image.open(path) as opened:
        opened.load()
    assert started, "the attack itself must work, or this test shows nothing"
    started.clear()
    refused(path)
    assert not started


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n", b"not a picture"])
def test_what_is_no_picture_is_refused(tmp_path, content):
    path = tmp_path / "a" / "x.png"
    path.parent.mkdir()
    path.write_bytes(content)
    assert "no image, truncated or corrupt" in refused(path)


@pytest.mark.parametrize(("W", "H"), [(13_000, 13_000), (1, 70_000), (70_000, 1)])
def test_small_files_of_huge_pictures_are_refused(tmp_path, W, H):
    """Decoded and turned upright they take gigabytes, which Pillow's own limit lets pass."""
    path = tmp_path / "a" / "x.png"
    path.parent.mkdir()
    content = bytearray(png([b"\0" * 16] * 8, 16, 0))
    content[16:24] = struct.pack(">II", W, H)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    path.write_bytes(content)
    said = refused(path)
    assert f"it has {W} x {H} pixels: at most 100,000,000 and sides of 65,535 are accepted" in said


# Classes


def load(root, classes=2):
    return image_folder.load(root, 8, classes, 0)


def test_what_is_read(root):
    """Training images are cropped at random, from the seed of the run; the others are not."""
    splits = image_folder.load(root, 8, None, 5)
    assert (splits.train.training, splits.test.training) == (True, False)
    assert (splits.train.seed, splits.train.size, splits.test.size) == (5, 8, 8)
    assert (splits.train.folder, splits.test.folder) == (root / "train", root / "val")
    assert splits.classes == ["ant", "bee"]
    with pytest.raises(DataError, match=r"has 2 folders of classes; the configuration says 3"):
        load(root, 3)
    (root / "val").rename(root / "test")
    assert load(root).test.folder == root / "test"
    (root / "test" / "bee").rename(root / "test" / "cow")
    with pytest.raises(DataError, match="must have the same classes; not: bee"):
        load(root)


def test_what_is_left_out(root):
    for part in ("train", "val"):
        (root / part / "README.md").touch()
        (root / part / ".DS_Store").touch()
        (root / part / "ant" / "notes.txt").touch()
        (root / part / "ant" / "._1.png").touch()
        save(root / part / "ant" / ".ipynb_checkpoints" / "1-checkpoint.png", COLOURS)
    save(root / "train" / "bee" / "2.JPeG", COLOURS)
    splits = load(root)
    assert splits.train.classes == splits.test.classes == ["ant", "bee"]
    names = [(path.parent.name, path.name, label) for path, label in splits.train.files]
    assert names == [("ant", "1.png", 0), ("bee", "1.png", 1), ("bee", "2.JPeG", 1)]


def test_links_count_as_what_they_lead_to(root, tmp_path):
    (root / "elsewhere").mkdir()
    (root / "train" / "ant" / "1.png").rename(root / "elsewhere" / "1.png")
    (root / "train" / "ant" / "1.png").symlink_to(root / "elsewhere" / "1.png")
    os.replace(root / "val" / "bee", root / "bees")
    (root / "val" / "bee").symlink_to(root / "bees")
    assert len(load(root).train) == len(load(root).test) == 2
    assert load(root).train[0][0].shape == (3, 8, 8)


def prepare(root, kind):
    path = root / "train" / kind
    if kind == "cow":
        path.mkdir()
    elif kind == "dog":
        save(root / "a.png", COLOURS)
        path.mkdir()
        Image.fromarray(COLOURS).save(path / "1.tiff")
        Image.fromarray(COLOURS).save(path / "2.gif")
    elif kind in (".hidden", "Ant", "ant/deeper"):
        save(path / "1.png", COLOURS)
    elif kind == "loose.JPG":
        Image.fromarray(COLOURS).save(path, format="JPEG")
    elif kind in ("ant/broken.png", "broken", "bee/README"):
        path.symlink_to(root / "nowhere")
    elif kind == "ant/loop.png":
        path.symlink_to(path)
    elif kind == "bee/pipe.png":
        os.mkfifo(path)
    elif kind == "ant/folder.png":
        path.mkdir()
    return str(path)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("cow", "has no images"),
        ("dog", "has no images (.jpg, .jpeg, .png, .bmp, .webp)"),
        (".hidden", "is hidden, and no class"),
        ("Ant", "which many systems take for one"),
        ("ant/deeper", "is a folder in that of a class"),
        ("ant/folder.png", "is a folder in that of a class"),
        ("loose.JPG", "is in no folder of a class"),
        ("ant/broken.png", "is a broken link"),
        ("broken", "is a broken link"),
        ("bee/README", "is a broken link"),
        ("ant/loop.png", "loop.png"),
        ("bee/pipe.png", "no regular file"),
    ],
)
def test_what_might_be_meant_as_a_class_or_an_image_is_refused(root, kind, reason):
    assert len(load(root).train) == 2
    path = prepare(root, kind)
    with pytest.raises(DataError) as raised:
        load(root)
    assert reason in str(raised.value)
    assert path in str(raised.value) or kind == "Ant"


def test_accents_have_two_encodings(root):
    for name in ("caf\u00e9", "cafe\u0301"):
        save(root / "train" / name / "1.png", COLOURS)
    with pytest.raises(DataError, match="which many systems take for one"):
        load(root)


def test_an_empty_class_of_the_test_data_is_refused(root):
    (root / "val" / "bee" / "1.png").unlink()
    with pytest.raises(DataError, match="val/bee/ has no images"):
        load(root)
