"""What the pictures say: their scales, lines and rows."""

import csv
import html
import json

import numpy as np
import pytest
import torch

for package in ("sklearn", "safetensors", "rich", "matplotlib", "yaml"):
    pytest.importorskip(package)

from matplotlib.colors import to_rgb
from realspike import checkpoint, cli, records
from realspike.config.network_config import NetworkConfig
from realspike.config.run_config import RunConfig
from realspike.inspect import kernels
from realspike.inspect.activity import LayerActivity
from realspike.networks import build
from realspike.records import RecordError
from realspike.report import plots, run_plots, run_report
from realspike.report.plots import Curve, spike_maps, training_curves


def pictures_of(figure):
    """Return the images that are drawn, in order, without the colour bars."""
    return [image for axes in figure.axes for image in axes.get_images()]


def colors_of(picture):
    """Return the colour of every pixel, rounded to 8 bits."""
    return np.round(picture.to_rgba(picture.get_array()) * 255).astype(int)


def labels_of(figure):
    return [axes.get_ylabel() for axes in figure.axes if axes.get_ylabel()]


def written(figure, tmp_path):
    plots.write_png(figure, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 5000


# Amplitudes


def maps(amplitude, fired=None):
    """The maps of two channels of 3 x 3 neurons."""
    binary = np.ones((2, 3, 3), np.float32) if fired is None else fired
    real = None if amplitude is None else (binary * amplitude).astype(np.float32)
    return spike_maps(np.zeros((8, 8)), binary, real, [0, 1], "title")


@pytest.mark.parametrize("value", [1.0, 0.25, 1.7, 0.1 + 0.2])
def test_an_amplitude_that_is_equal_everywhere_has_one_color(value, tmp_path):
    noise = np.full((2, 3, 3), value) * (1 + np.linspace(-1, 1, 18).reshape(2, 3, 3) * 2**-23)
    figure = maps(noise)
    _, first, lower, second, other = pictures_of(figure)
    found = np.concatenate([colors_of(lower), colors_of(other)]).reshape(-1, 4)
    assert len(np.unique(found, axis=0)) == 1
    assert (colors_of(first) == colors_of(second)).all()
    if value == 1:
        np.testing.assert_allclose(found[0, :3] / 255, to_rgb(plots.INK), atol=0.01)
    written(figure, tmp_path)


def test_the_scale_is_symmetric_about_1_in_per_cent():
    amplitude = np.full((2, 3, 3), 1.0)
    amplitude[0, 0, 0], amplitude[1, 1, 1] = 0.8, 1.1
    figure = maps(amplitude)
    pictures = pictures_of(figure)
    for picture in (pictures[2], pictures[4]):
        assert picture.get_clim() == pytest.approx((-20, 20))
    assert pictures[2].get_array()[0, 0] == pytest.approx(-20)
    assert pictures[4].get_array()[1, 1] == pytest.approx(10)
    blue, orange = to_rgb(plots.BLUE), to_rgb(plots.ORANGE)
    np.testing.assert_allclose(colors_of(pictures[2])[0, 0, :3] / 255, blue, atol=0.01)
    half = (np.array(to_rgb(plots.INK)) + orange) / 2
    np.testing.assert_allclose(colors_of(pictures[4])[1, 1, :3] / 255, half, atol=0.02)
    assert "amplitude a, % from 1" in labels_of(figure)


def test_a_thousandth_is_not_made_a_contrast():
    amplitude = np.ones((2, 3, 3))
    amplitude[0] += 0.001
    amplitude[1] -= 0.001
    _, _, high, _, low = pictures_of(maps(amplitude))
    assert high.get_clim() == (-plots.SMALLEST_WIDTH, plots.SMALLEST_WIDTH)
    assert plots.SMALLEST_WIDTH >= 1
    assert np.abs(colors_of(high) - colors_of(low)).max() < 16


def test_silent_neurons_are_grey_and_decide_no_scale():
    fired = np.ones((2, 3, 3), np.float32)
    fired[:, 0] = 0
    lower = pictures_of(maps(np.full((2, 3, 3), 1.3), fired))[2]
    assert lower.get_clim() == pytest.approx((-30, 30))
    np.testing.assert_allclose(
        colors_of(lower)[0, :, :3] / 255, [to_rgb(plots.SILENT)] * 3, atol=0.01
    )
    none = maps(np.ones((2, 3, 3)), np.zeros((2, 3, 3), np.float32))
    assert pictures_of(none)[2].get_clim() == (-plots.SMALLEST_WIDTH, plots.SMALLEST_WIDTH)


def test_a_network_without_amplitudes_has_one_row(tmp_path):
    figure = maps(None)
    assert len(pictures_of(figure)) == 3
    assert labels_of(figure) == ["binary o"]


def test_a_ternary_spike_has_a_sign_and_its_amplitude_none(tmp_path):
    fired = np.array([1.0, -1.0, 0.0] * 6, np.float32).reshape(2, 3, 3)
    figure = maps(1.5, fired)
    assert labels_of(figure)[:2] == ["ternary o", "real-valued a·o"]
    _, top, bottom, *_ = pictures_of(figure)
    assert len({tuple(color) for color in colors_of(top)[0]}) == 3
    positive, negative, silent = bottom.get_array()[0]
    assert (positive, negative) == (pytest.approx(50), pytest.approx(50))
    assert silent is np.ma.masked
    written(figure, tmp_path)
    written(figure, tmp_path)
    assert "real-valued a·o" in labels_of(maps(np.ones((2, 3, 3))))


def test_histograms_have_the_same_scale(tmp_path):
    def layer(name, amplitude):
        return LayerActivity(name, torch.ones(2, 2, 2), 4, torch.full((2, 2, 2), amplitude), True)

    figure = run_plots.amplitude_histograms([layer("lif1", 1.0), layer("lif2", 0.9)])
    for axes, percent in zip(figure.axes, (0.0, -10.0), strict=True):
        edges = [patch.get_x() for patch in axes.patches]
        assert min(edges) == pytest.approx(-10.5)
        [full] = [patch for patch in axes.patches if patch.get_height()]
        assert full.get_x() - 1e-4 <= percent <= full.get_x() + full.get_width() + 1e-4
        assert [line.get_linestyle() for line in axes.lines] == ["-"], "dashed is binary"
    written(figure, tmp_path)


# Kernels


@pytest.mark.parametrize("padding", [1, "same"])
def test_kernels_are_shown_as_their_difference(tmp_path, padding):
    network = build(NetworkConfig("element", width=2), seed=0).eval()
    network.conv2 = torch.nn.Conv2d(2, 2, 3, padding=padding, bias=False)
    with torch.no_grad():
        network.lif1.amplitude.uniform_(0.9, 1.2)
    reading = kernels.find_readings(network, torch.zeros(1, 1, 8, 8))[0]
    kernel, amplitude, difference = kernels.kernel_differences(reading, 1, 0)
    assert torch.equal(kernel, network.conv2.weight[1, 0])
    for y, x in ((0, 0), (3, 4), (7, 7)):
        for i, j in ((0, 0), (1, 1), (2, 2), (0, 2)):
            row, column = y + i - 1, x + j - 1
            if 0 <= row < 8 and 0 <= column < 8:
                expected = (network.lif1.amplitude[0, row, column] - 1) * kernel[i, j]
                assert difference[y, x, i, j].item() == pytest.approx(expected.item())
            else:
                assert difference[y, x, i, j].isnan(), "nothing is read outside the map"
    parts = [part.detach().numpy() for part in (kernel, amplitude, difference)]
    figure = run_plots.kernels(*parts, "title")
    shared, shown_amplitude, *shown = pictures_of(figure)
    largest = np.abs(parts[0]).max()
    assert shared.get_clim() == pytest.approx((-largest, largest))
    low, high = shown_amplitude.get_clim()
    assert -low == high == pytest.approx(100 * np.abs(parts[1] - 1).max())
    assert len(shown) == 25
    corner = shown[0].get_array()
    assert corner.mask.tolist() == [[True, True, True], [True, False, False], [True, False, False]]
    expected = 100 * parts[2][0, 0, 1, 1] / largest
    assert corner[1, 1] == pytest.approx(expected)
    assert "% of the largest |K| (grey: outside)" in labels_of(figure)
    written(figure, tmp_path)


def test_kernels_without_a_difference_are_white(tmp_path):
    zero = np.zeros((4, 4, 3, 3))
    figure = run_plots.kernels(np.ones((3, 3)), np.ones((4, 4)), zero, "title")
    for picture in pictures_of(figure)[2:]:
        assert picture.get_clim() == (-plots.SMALLEST_WIDTH, plots.SMALLEST_WIDTH)
        assert colors_of(picture).min() > 240
    written(run_plots.kernels(zero[0, 0], np.ones((4, 4)), zero, "no weights"), tmp_path)


# Curves


def history(*accuracies):
    return [
        {"epoch": i + 1, "train_loss": 1.0 / (i + 1), "test_accuracy": a}
        for i, a in enumerate(accuracies)
    ]


def test_a_line_style_means_the_same_in_every_order(tmp_path):
    curves = [
        Curve(f"{name} {i}", name, history(0.1, 0.2 + i / 10))
        for i, name in enumerate(("element", "none", "layer", "channel", "none", "element", "none"))
    ]
    figure = training_curves(curves)
    for axes in figure.axes:
        lines = {line.get_label().split("  ")[0]: line for line in axes.lines}
        assert set(lines) == {curve.name for curve in curves}, "none is left out"
        for curve in curves:
            line = lines[curve.name]
            assert (line.get_linestyle() == "--") == (curve.method == "none")
            assert line.get_color() == plots.STYLES[curve.method]["color"]
        marked = [(line.get_color(), line.get_marker()) for line in axes.lines]
        assert len(set(marked)) == len(marked), "every run can be told from the others"
    assert len({style["color"] for style in plots.STYLES.values()}) == 5
    reordered = training_curves(curves[::-1])
    assert {line.get_color() for line in reordered.axes[0].lines[:1]} == {
        plots.STYLES["none"]["color"]
    }
    written(figure, tmp_path)


def test_names_of_folders_are_no_formulas(tmp_path):
    figure = training_curves([Curve("a$b_{$ \\frac", "none", history(0.5))])
    written(figure, tmp_path)
    [line] = figure.axes[0].lines
    assert line.get_marker() == "o", "one epoch is a point"


# Records


ROW = dict.fromkeys(records.FIELDS, 0.5) | {"epoch": 1}


def test_a_loss_of_nothing_is_drawn(recwarn):
    """As that of one class is; a logarithm has no place for it."""
    nothing = history(0.5)
    for record in nothing:
        record["train_loss"] = 0.0
    training_curves([Curve("a", "none", nothing)]).draw_without_rendering()
    assert not recwarn.list


def test_records_are_numbers():
    texts = {name: str(value) for name, value in ROW.items()}
    assert records.checked([texts, texts | {"epoch": "2"}], "f") == [ROW, ROW | {"epoch": 2}]
    assert type(records.checked([ROW], "f")[0]["epoch"]) is int


BAD_ROWS = [
    (ROW | {"epoch": 2}, "epoch 1 is called 2"),
    (ROW | {"epoch": 1.5}, "epoch 1 is called 1.5"),
    (ROW | {"epoch": "x"}, "must hold numbers"),
    (ROW | {"epoch": None}, "must hold numbers"),
    (ROW | {"test_loss": "high"}, "must hold numbers"),
    (ROW | {"test_loss": [1]}, "must hold numbers"),
    (ROW | {"train_accuracy": 1.5}, "train_accuracy must be from 0 to 1"),
    (ROW | {"test_accuracy": float("nan")}, "test_accuracy must be from 0 to 1"),
    (ROW | {"more": 1}, "must have epoch, train_loss"),
    ({"epoch": 1}, "must have epoch, train_loss"),
    ("<b>", "must have epoch, train_loss"),
]


@pytest.mark.parametrize(("row", "reason"), BAD_ROWS)
def test_what_is_no_record_is_refused(row, reason):
    with pytest.raises(RecordError) as raised:
        records.checked([row], "metrics.csv")
    assert reason in str(raised.value)
    assert "metrics.csv" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_records_are_a_list():
    for rows in ("x", {"a": 1}, 3, None):
        with pytest.raises(RecordError, match="no list of epochs"):
            records.checked(rows, "f")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"epoch\n",
        b",".join(name.encode() for name in records.FIELDS) + b"\n",
        b",".join(name.encode() for name in records.FIELDS) + b"\n1,2\n",
        b",".join(name.encode() for name in records.FIELDS) + b"\n1,.1,.1,.1,.1,.1,.1\n",
        b",".join(name.encode() for name in records.FIELDS) + b"\n1,a,.1,.1,.1,.1\n",
        b"\xff\xfe",
        b"a\0b\n1\n",
        b'"' + b"x" * 200_000 + b'"\n1\n',
    ],
)
def test_a_damaged_metrics_file_is_named(content, tmp_path, capsys):
    pytest.importorskip("lightning")
    arguments = ["table", "1", "--data", "digits", "--cells", "0", "--out", str(tmp_path)]
    folder = tmp_path / "digits_resnet20_t2_none_seed0"
    folder.mkdir()
    (folder / "metrics.csv").write_bytes(content)
    assert cli.main([*arguments, "--seeds", "1"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert str(folder / "metrics.csv") in line


def test_records_that_are_written_are_read(tmp_path):
    pytest.importorskip("lightning")
    from realspike.train.history import read_csv, write_csv

    rows = [ROW, ROW | {"epoch": 2, "train_loss": 1 / 3}]
    write_csv(tmp_path / "a.csv", rows)
    with open(tmp_path / "a.csv", newline="") as file:
        assert next(csv.reader(file)) == list(records.FIELDS)
    assert read_csv(tmp_path / "a.csv") == rows


# The page


HOSTILE = "<script>alert('a')</script>&\"x"


def run_of(folder, granularity="layer", **record):
    """Write the network of a run as training would, with a record of our choice."""
    config = RunConfig().replaced(
        **{"name": "digits", "architecture": "digits", "width": 2, "timesteps": 2},
        **{"granularity": granularity},
    )
    folder.mkdir()
    network = build(config.network_config(), seed=0).eval()
    record = {"config": config.to_dict(), "history": [ROW], "commit": "c"} | record
    checkpoint.save(folder / "model.safetensors", network, record)
    return folder


def test_texts_of_a_run_are_escaped_in_its_page(tmp_path):
    config = RunConfig().replaced(
        **{"name": "digits", "architecture": "digits", "width": 2, "timesteps": 2},
        **{"granularity": "layer", "root": HOSTILE},
    )
    run = run_of(tmp_path / "run", commit=HOSTILE, config=config.to_dict())
    page = run_report.write(run, [run_of(tmp_path / "<b>$")]).read_text()
    assert "<script" not in page
    assert page.count(html.escape("<script>")) == 2
    assert "<b>$" not in page
    assert sorted(path.name for path in (run / "plots").iterdir()) == [
        f"{name}.png" for name in ("accuracy", "amplitudes", "channels", "firing_rates", "kernels")
    ]


COURSE = """epoch,layer,firing_rate,amplitude_mean,amplitude_std,amplitude_min,amplitude_max
1,lif1,0.2,1.01,0.02,0.9,1.1
1,lif2,0.3,,,,
2,lif1,0.2,1.03,0.04,0.8,1.2
"""


def test_amplitudes_over_the_training(tmp_path):
    run = run_of(tmp_path / "run", "layer")
    (run / "layers.csv").write_text(COURSE)
    layers = records.amplitudes(csv.DictReader(COURSE.splitlines()), "layers.csv")
    assert layers == {"lif1": [(1, 1.01, 0.02), (2, 1.03, 0.04)]}
    deviation, mean = run_plots.amplitude_course(layers).axes
    for axes, percent in ((deviation, [2.0, 4.0]), (mean, [1.0, 3.0])):
        [line] = axes.lines
        assert line.get_xdata().tolist() == [1, 2]
        assert line.get_ydata().tolist() == pytest.approx(percent)
    assert "Amplitudes over the training" in run_report.write(run).read_text()
    assert (run / "plots" / "amplitude_course.png").exists()


def test_numbers_of_a_file_of_layers_may_be_of_any_size(tmp_path):
    run = run_of(tmp_path / "run", "layer")
    (run / "layers.csv").write_text(COURSE.replace("\n2,", f"\n{10**400},").replace("1.03", "nan"))
    run_report.write(run)
    assert (run / "plots" / "amplitude_course.png").exists()
    (run / "layers.csv").unlink()
    (run / "layers.csv").mkdir()
    run_report.write(run)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "epoch,layer\n1,lif1\n",
        COURSE.replace("1.03", "x"),
        COURSE.replace("1.03", "1" * 200_000),  # longer than a field may be
        COURSE.replace("\n2,", "\n,"),
    ],
    ids=["empty", "short", "no number", "long", "no epoch"],
)
def test_a_file_of_layers_that_is_none(text, tmp_path):
    run = run_of(tmp_path / "run", "layer")
    (run / "layers.csv").write_text(text)
    if not text:
        run_report.write(run)
        assert not (run / "plots" / "amplitude_course.png").exists()
        return
    with pytest.raises(RecordError, match=r"layers\.csv holds no amplitudes"):
        run_report.write(run)


@pytest.mark.parametrize("commit", [5, ["x"], None, {"a": HOSTILE}])
def test_a_commit_of_another_type_is_shown(commit, tmp_path):
    page = run_report.write(run_of(tmp_path / "run", "none", commit=commit)).read_text()
    assert f"<code>{html.escape(str(commit or 'unknown'))}</code>" in page
    assert "<script" not in page
    assert not (tmp_path / "run" / "plots" / "amplitudes.png").exists()


@pytest.mark.parametrize(
    "row", [row for row, _ in BAD_ROWS[:1]] + ["<b>", ROW | {"epoch": HOSTILE}]
)
def test_a_record_of_other_types_is_refused_in_one_line(row, tmp_path, capsys):
    run = run_of(tmp_path / "run", history=[row])
    assert cli.main(["plot", str(run)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert str(run / "model.safetensors") in line


@pytest.mark.parametrize(
    "config", ["x", 3, ["network"], {"network": "x"}, {"network": {"width": [1]}}]
)
def test_a_configuration_of_other_types_is_refused_in_one_line(config, tmp_path, capsys):
    run = run_of(tmp_path / "run", config=config)
    assert cli.main(["eval", str(run)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_run_without_a_record_has_a_page(tmp_path):
    run = run_of(tmp_path / "run", history=[])
    run_report.write(run)
    assert not (run / "plots" / "accuracy.png").exists()
    assert json.loads(json.dumps(ROW)) == ROW


def test_a_figure_shows_in_notebooks():
    assert plots.new_figure(2, 2)._repr_png_().startswith(b"\x89PNG")


def test_a_report_does_not_fold_what_is_too_large(tmp_path, monkeypatch):
    network = build(NetworkConfig("element", width=2), seed=0).eval()
    checkpoint.save(tmp_path / "a.safetensors", network, {})
    monkeypatch.setattr(run_report, "LARGEST", 1000)
    page = run_report.write(tmp_path / "a.safetensors").read_text()
    assert "not folded for this report" in page
    assert "max_bytes" in page
    assert "<h2>Energy</h2>" not in page
