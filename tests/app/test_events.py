"""Recordings of event cameras: what is read, and what is refused by its name."""

import numpy as np
import pytest
import torch
from realspike.data import DataError, cifar10_dvs
from realspike.data.events import STEPS, _positions, frames_of_events, saccades

HEADER = b"#!AER-DAT2.0\r\n# This is a raw AE data file - do not edit\r\n"
CHIP = b"# AEChip: eu.seebetter.ini.chips.davis.Davis346red\r\n"


def events_of(*pairs, order=">"):
    """Addresses and times as they lie in a file."""
    return np.array(pairs, f"{order}u4").reshape(-1, 2).tobytes()


@pytest.fixture
def written(tmp_path):
    def write(content):
        path = tmp_path / "a.aedat"
        path.write_bytes(content)
        return path

    return write


EVENT = events_of((0x1234, 5))  # x 127 - 0x12, y 127 - (0x34 >> 1), bit 0 is 0: brighter


@pytest.mark.parametrize(
    "header",
    [
        HEADER,
        b"#!AER-DAT2.0\n",
        HEADER + b"# AEChip: ch.unizh.ini.jaer.chip.retina.DVS128\r\n#End Of ASCII Header\r\n",
        HEADER + b"#\xff\xfe not ASCII\r\n#\r\n",
    ],
)
def test_an_event_by_hand(written, header):
    read = cifar10_dvs.read_events(written(header + EVENT))
    assert {name: values.tolist() for name, values in read.items()} == {
        **{"t": [5], "x": [127 - 0x12], "y": [127 - 0x1A], "p": [1]}
    }


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no AEDAT file"),
        (b"#!AER-DAT", "no AEDAT file"),
        (b"\x07\x0f\x80\x02\x8e" * 8, "no AEDAT file"),
        (b"% Data file containing Event2d events.\n" + EVENT, "no AEDAT file"),
        (b"#!AER-DAT1.0\r\n" + EVENT, "is AEDAT 1.0"),
        (b"#!AER-DAT3.1\r\n" + EVENT, "is AEDAT 3.1"),
        (b"#!AER-DAT4.0\r\n" + EVENT, "is AEDAT 4.0"),
        (b"#!AER-DAT2.0", "ends inside its header"),
        (HEADER + b"# cut he", "ends inside its header"),
        (HEADER, "holds no events"),
        (HEADER + EVENT + b"abc", "ends inside an event"),
        (HEADER + EVENT[:4], "ends inside an event"),
        (HEADER + CHIP, "recorded by a eu.seebetter.ini.chips.davis.Davis346red"),
        (HEADER + CHIP + EVENT, "and those of CIFAR10-DVS by a DVS128"),
        (HEADER + EVENT + events_of((0x8000, 6)), "the address 0x8000"),
        (HEADER + events_of((100 << 22 | 20 << 12 | 1 << 11, 6)), "another camera"),
        (HEADER + events_of((0x1234, 5), (0x0100, 6), order="<"), "another order of bytes"),
    ],
)
def test_what_is_no_recording_of_the_camera_is_refused(written, content, reason):
    path = written(content)
    with pytest.raises(DataError) as raised:
        cifar10_dvs.read_events(path)
    assert reason in str(raised.value)
    assert str(path) in str(raised.value)


def test_the_last_address_of_the_camera_is_read(written):
    read = cifar10_dvs.read_events(written(HEADER + events_of((0x7FFF, 1), (0, 2))))
    assert read["x"].tolist() == read["y"].tolist() == [0, 127]
    assert read["p"].tolist() == [0, 1]


def test_a_file_beyond_any_recording_is_not_read(written, monkeypatch):
    monkeypatch.setattr(cifar10_dvs, "LARGEST_FILE", len(HEADER) + 8)
    path = written(HEADER + EVENT)
    assert len(cifar10_dvs.read_events(path)["t"]) == 1
    written(HEADER + EVENT * 2)
    with pytest.raises(DataError, match="a recording has at most"):
        cifar10_dvs.read_events(path)


def test_time_goes_on_where_the_counter_begins_anew(written):
    times = [2**32 - 30, 2**32 - 10, 10, 5, 30]
    content = HEADER + events_of(*((0, time) for time in times))
    read = cifar10_dvs.read_events(written(content))
    assert (read["t"] - read["t"][0]).tolist() == [0, 20, 40, 35, 60]
    frames = frames_of_events(*(read[name] for name in "txyp"), 2, 128, 128)
    assert frames.sum((1, 2, 3)).tolist() == [2, 3]


def test_events_out_of_order_are_counted_by_their_time():
    t = np.array([90, 10, 50, 0, 99])
    ones = np.ones(5, int)
    frames = frames_of_events(t, ones, ones, ones, 2, 4, 4)
    assert frames[:, 1, 1, 1].tolist() == [2, 3]


def test_events_in_seconds_by_hand():
    """As `np.loadtxt` reads them: every column a float."""
    t, x, y, p = np.array(
        [(5.0, 3, 0, 1), (5.24, 3, 0, 1), (5.4, 0, 2, 0), (5.6, 2, 2, 0), (6.0, 1, 1, 1)]
    ).T
    frames = frames_of_events(t, x, y, p, 2, 4, 4)
    expected = np.zeros((2, 2, 4, 4))
    expected[0, 1, 0, 3], expected[0, 0, 2, 0] = 2, 1
    expected[1, 0, 2, 2], expected[1, 1, 1, 1] = 1, 1
    assert (frames == expected).all()
    alone = frames_of_events(t[:1], x[:1], y[:1], p[:1], 2, 4, 4)
    assert alone[0, 1, 0, 3] == alone.sum() == 1
    with pytest.raises(ValueError, match="timestamps must be finite"):
        frames_of_events(t * np.nan, x, y, p, 2, 4, 4)
    with pytest.raises(ValueError, match="y must have one value per event; got 1 of 5"):
        frames_of_events(t, x, y[:1], p, 2, 4, 4)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("x", 4, "x must be from 0 to 3; it reaches from 1 to 4"),
        ("y", -1, "y must be from 0 to 3; it reaches from -1 to 1"),
        ("polarity", 2, "polarity must be from 0 to 1"),
        ("polarity", -1, "polarity must be from 0 to 1"),
    ],
)
def test_events_beside_the_sensor_are_refused(name, value, reason):
    events = {key: np.array([1, 1]) for key in ("x", "y", "polarity")}
    events[name] = np.array([1, value])
    with pytest.raises(ValueError, match=reason):
        frames_of_events(np.array([0, 1]), **events, timesteps=2, sensor_size=4, image_size=4)


def test_recordings_are_found_whatever_the_case_of_their_suffix(tmp_path):
    for name in cifar10_dvs.CLASSES:
        (tmp_path / name).mkdir()
        for file in ("a_1.AEDAT", "a_0.aedat", "._a_0.aedat", "notes.txt"):
            (tmp_path / name / file).write_bytes(HEADER + EVENT)
    splits = cifar10_dvs.load(tmp_path, 2, 48)
    assert {path.name for path, _ in splits.train.files} == {"a_0.aedat"}
    assert {path.name for path, _ in splits.test.files} == {"a_1.AEDAT"}


# What an event camera sees of an image


def test_the_camera_moves_along_a_triangle():
    """Of 2.5 pixels, (down, right): to the second corner, the third, and back to the first."""
    corners = [(0, 0), (0.5, 0.25), (1, 0.5), (0.4, 0.75), (-0.2, 1), (-0.1, 0.5), (0, 0)]
    torch.testing.assert_close(_positions(7), 2.5 * torch.tensor(corners))


def test_nothing_is_seen_of_an_even_darkness():
    assert not saccades(torch.zeros(2, 1, 8, 8), 3).any()
    with pytest.raises(ValueError, match=f"at most {STEPS}; got {STEPS + 1}"):
        saccades(torch.zeros(1, 1, 8, 8), STEPS + 1)
