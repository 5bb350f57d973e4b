"""docs/performance.md and README's figures hold what bench/results and docs/results hold."""

import math
import re
import sys
from pathlib import Path

import pytest
import realspike  # noqa: F401 - the installed one, before the checkout is on the path
from matplotlib.colors import to_rgba

import realspike_ops  # noqa: F401

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # bench and docs are no installed packages
from bench import performance
from docs import draw

sys.path.remove(str(ROOT))


def ratios(stem: str, pattern: str, peer: str) -> dict[str, float]:
    """The ratios beside a peer of the rows whose names match."""
    rows = performance.ratios_of(stem).items()
    found = {name: row[peer] for name, row in rows if re.search(pattern, name) and peer in row}
    assert found, (stem, pattern, peer)
    return found


def texts(path: Path) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", path.read_text())


def test_the_page_is_what_the_command_writes():
    assert performance.PAGE.read_text() == performance.page(), "run python -m bench.performance"


def test_every_file_of_results_is_linked():
    pages = performance.page() + (ROOT / "docs" / "results.md").read_text()
    for path in performance.RESULTS.rglob("*.md"):
        assert f"/{path.relative_to(ROOT / 'bench').with_suffix('')}>" in pages, path


def test_a_ratio_is_the_peer_s_time_over_ours():
    """Where the times are the fastest rounds too: not in the runs on AMD, which have medians."""
    stems = {*performance.WHOLE.values(), *performance.CONVOLUTION.values()}
    for stem in stems - {"amd-epyc", "unshared_conv/amd-epyc"}:
        for row in performance.read(stem)["rows"]:
            for peer, seconds in row["peer_seconds"].items():
                assert row["ratios"][peer] == pytest.approx(seconds / row["seconds"])


def test_a_cell_is_bold_where_the_peer_is_faster(monkeypatch):
    rows = {"row": {"a": 0.994, "b": 1.006, "c": 25.4, "d": 0.999}}
    monkeypatch.setattr(performance, "ratios_of", lambda stem: rows if stem == "one" else {})
    peers = {"A": "a", "B": "b", "C": "c", "D": "d", "E": "e"}
    table = performance.Table("", "", {"X": "one", "Y": "two"}, {"case": "row"}, peers)
    assert list(performance.lines_of_ratios(table)) == [
        "| case | beside | X | Y |",
        "| --- | --- | --- | --- |",
        "| case | A | **0.99** |  |",
        "| case | B | 1.01 |  |",
        "| case | C | 25 |  |",
        "| case | D | **1.00** |  |",
    ]


# What README says in words, and docs/results/*.json in numbers.


def test_the_compiled_ann_is_faster_in_every_row_of_inference_but_those_of_sew_resnet10():
    for stem in ("amd-epyc", "intel-r-xeon-r-processor"):
        assert max(ratios(stem, "bench_folded", "ANN").values()) < 1
    (xeon,) = performance.NEWER_XEON.values()
    of_ann = ratios(xeon, "bench_folded", "ANN, compiled")
    ahead = {row for row, ratio in of_ann.items() if ratio >= 1}
    assert ahead == set(ratios(xeon, r"bench_folded\[sew-resnet10-", "ANN, compiled"))
    assert len(ahead) == 2 < len(of_ann)
    text = " ".join((ROOT / "README.md").read_text().split())
    assert "Compiled, it is faster in all inference that was measured but SEW-ResNet10's." in text


def test_a_training_step_takes_as_long_as_the_ann_s_on_as_many_images_or_about_a_fifth_more():
    newest, *others = (
        ratios(stem, "bench_training_step", "ANN").values()
        for stem in ("amd-epyc-family-26", "amd-epyc-family-25", *performance.NEWER_XEON.values())
    )
    less, more = (round(100 * abs(1 / ratio - 1)) for ratio in (max(newest), min(newest)))
    text = " ".join((ROOT / "docs/application.md").read_text().split())
    assert f"between {less} % less and {more} % more than the ANN's on the newest" in text
    assert min(min(other) for other in others) >= 0.8


def test_the_shared_convolution_is_faster_on_a_gpu():
    wide = r"bench_unshared_conv\[(128|256|512)ch.*-r0\.[123]-(float32|bfloat16)\]"
    assert max(ratios("unshared_conv/nvidia-h200", wide, "shared conv2d").values()) < 1
    int8 = r"bench_unshared_conv\[(128|256|512)ch-\d+x\d+-S4-r0\.1-int8\]"
    assert min(ratios("unshared_conv/nvidia-h200", int8, "shared conv2d").values()) > 0.8


def test_the_shared_convolution_is_faster_on_a_cpu_at_high_rates_and_narrow_layers():
    often = r"128ch-32x32-S4-r0\.[23]-(float32|bfloat16)"
    assert max(ratios("unshared_conv/rates/amd-epyc", often, "shared conv2d").values()) < 1
    xeon = "unshared_conv/intel-r-xeon-r-processor"
    assert max(ratios(xeon, "16ch-32x32-S4-.*float32", "shared conv2d").values()) < 1
    assert max(ratios(xeon, "128ch-32x32-S4-r0.1", "shared conv2d bf16").values()) < 1


# The figures.


def test_the_chart_of_speed_has_losing_rows_on_every_kind_of_machine():
    for kind in ("CPU", "GPU"):
        of_kind = [b.ratio for b in performance.CHART if ("cuda" in b.machine) == (kind == "GPU")]
        assert min(of_kind) < 1 < max(of_kind)
    assert all(bar.ratio > 1 for bar in performance.CHART if "SpikingJelly" in bar.peer)


@pytest.mark.parametrize("name", ["speed", "accuracy"])
def test_committed_charts_are_drawn_from_the_results(name, tmp_path):
    for path in draw.main([name], tmp_path):
        drawn = texts(path)
        assert len(drawn) > 20
        assert texts(draw.FIGURES / path.name) == drawn, f"run python -m docs.draw {name}"


def test_bars_go_from_1_to_their_ratio_in_the_colour_of_who_is_faster():
    theme = draw.THEMES["light"]
    bars = draw.draw_speed(performance.CHART, theme).axes[0].patches
    places = {text.get_text(): text.get_position()[0] for text in bars[0].axes.texts}
    one, octave = places["1"], places["2"] - places["1"]
    for bar, drawn in zip(performance.CHART, bars, strict=True):
        assert drawn.get_x() == one
        assert drawn.get_width() / octave == pytest.approx(math.log2(bar.ratio))
        wins, loses = (to_rgba(color) for color in (theme.good, theme.bad))
        assert drawn.get_facecolor() == (wins if bar.ratio > 1 else loses)


def test_chart_of_speed_says_every_ratio():
    drawn = texts(draw.FIGURES / "speed-light.svg")
    for bar in performance.CHART:
        assert performance.ratio_text(bar.ratio) in drawn


def test_accuracies_are_those_of_the_tables():
    first, *_ = draw.read_table("table1_digits.md")
    assert first == draw.Trained(2, "none", (86.67, 80.00, 85.33))
    assert [t.granularity for t in draw.read_table("table2_digits.md")] == [
        "none",
        "layer",
        "channel",
        "element",
    ]


def test_both_rows_of_the_figure_of_folding_are_the_same_current():
    """The figure takes what it shows from the folded network's own weights."""
    shown = draw.fold(*draw.trained_network(epochs=1))
    assert shown.current_trained.abs().max() > 0.1
    assert (shown.current_trained - shown.current_folded).abs().max() < 1e-5
    ratio = (shown.unshared[3, 4] / shown.shared).flatten()  # the amplitudes of a window
    assert ratio.tolist() == pytest.approx(shown.amplitude[2:5, 3:6].flatten().tolist(), rel=1e-4)
    draw.draw_folding(shown, draw.THEMES["dark"])
