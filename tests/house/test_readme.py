"""What the README and docs say runs."""

import re
from pathlib import Path

import pytest
import torch

import realspike_ops as rso

ROOT = Path(__file__).parents[2]


def python_blocks(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)


README = (ROOT / "README.md").read_text()
DECIMAL = r"\d+\.\d+(?:e[-+]\d+)?"  # rounding differs between machines; counts and shares must not


def test_readme_example_prints_what_it_says(capsys):
    (block,) = python_blocks(ROOT / "README.md")
    (said,) = re.findall(r"```text\n(.*?)```", README, flags=re.DOTALL)
    exec(compile(block, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "same prediction for 100.00%" in printed
    assert re.sub(DECIMAL, "#", printed) == re.sub(DECIMAL, "#", said)
    for number, written in zip(
        re.findall(DECIMAL, printed), re.findall(DECIMAL, said), strict=True
    ):
        assert float(number) == pytest.approx(float(written), rel=0.05, abs=1e-5)


def test_readme_is_short_and_begins_with_two_commands():
    assert len(README.splitlines()) <= 120
    commands = re.findall(r"```\n(.*?)```", README, flags=re.DOTALL)[0].splitlines()
    assert [line.split("#")[0].strip() for line in commands] == ["make quickstart", "make test"]


def test_readme_types_no_ratio():
    """They are in charts, which a command draws, and in docs/performance.md, which one writes."""
    prose = re.sub(r"```.*?```|<picture>.*?</picture>", "", README, flags=re.DOTALL)
    ratios = re.findall(r"\d[\d.]*\s?(?:x|\u00d7|times|%)(?!\w)", prose.replace("32 x 32", ""))
    assert not ratios


def test_readme_s_badge_of_python_is_the_package_s():
    (oldest,) = re.findall(r'requires-python = ">=([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    assert f"python-{oldest}%2B" in README


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_relative_links_resolve(page):
    text = (ROOT / page).read_text()
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)
    links += re.findall(r'(?:srcset|src)="([^"]+)"', text)
    links = [link for link in links if not link.startswith("../../actions/")]  # the host's
    assert links or page != "README.md"
    for link in links:
        assert (ROOT / link).exists(), link


def test_paths_named_in_the_docs_exist():
    named = set()
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        named |= set(
            re.findall(
                r"`((?:csrc|realspike_ops|tests|bench|docs|python)/[\w./]+)`", page.read_text()
            )
        )
    assert len(named) > 10
    missing = [path for path in named if not (ROOT / path).exists()]
    # The page on adding an op names files by pattern; `bench/results` is written by make gpu.
    assert not [path for path in missing if path != "bench/results/"]


def test_weight_layout_formulas_of_the_conventions_page():
    conventional = torch.randn(6, 4, 3, 5)  # [Cout, Cin/groups, KH, KW]
    kernel = conventional.unflatten(0, (2, -1)).permute(0, 3, 4, 2, 1)
    assert kernel.shape == (2, 3, 5, 4, 3)
    assert torch.equal(kernel.permute(0, 4, 3, 1, 2).flatten(0, 1), conventional)
    conv = torch.nn.Conv2d(8, 6, (3, 5), groups=2, bias=False)
    conv.weight = torch.nn.Parameter(conventional)
    folded = rso.SpikeConv2d.from_conv2d(conv)
    assert torch.equal(folded.weight[0, 0], kernel)


def test_long_sequences_in_pieces_as_documented():
    x = torch.randn(10, 2, 5)
    y1, v = rso.lif(x[:4], return_state=True)
    y2, v = rso.lif(x[4:], v_init=v, return_state=True)
    whole, v_whole = rso.lif(x, return_state=True)
    assert torch.equal(torch.cat([y1, y2]), whole)
    assert torch.equal(v, v_whole)


def test_the_application_s_page_says_what_the_table_on_cifar10_says():
    docs = ROOT / "docs"
    table = (docs / "results/table2_cifar10.md").read_text()

    def before_binary(method):
        row = rf"{method} - binary \(vanilla\) \| (\S+) \| (.*?) \| (\d) \|"
        return re.search(row, table).groups()

    points, interval, seeds = before_binary("Real Spike, element")
    text = " ".join((docs / "application.md").read_text().split())
    assert seeds == "6"
    assert f"over six seeds {points} points, with an interval from {interval}." in text
    points, interval, seeds = before_binary("ternary, no amplitudes")
    assert seeds == "3"
    assert f"over three seeds {points} points before binary ones" in text
    assert f"with an interval from {interval}." in text
    page = (docs / "results/table2_cifar100.md").read_text()
    assert "over 3 seeds of weights" in page
    assert "with three seeds of four networks" in text
    contents = (docs / "results.md").read_text()
    assert "four networks, three seeds <results/table2_cifar100>" in contents
    names = ("layer", "channel", "element")
    rows = (r"binary \(vanilla\)", *(f"Real Spike, {name}" for name in names))
    binary, *others = (re.search(rf"\| {row} \| ([\d.]+ ± [\d.]+) \|", page)[1] for row in rows)
    means = (f"{name}-wise {mean}" for name, mean in zip(names, others, strict=True))
    assert f"binary {binary}, {', '.join(means)}. Paired" in text
    found = [
        re.search(rf"{row} - binary \(vanilla\) \| (\S+) \| (\S+) to (\S+) \| 3 \|", page).groups()
        for row in rows[1:]
    ]
    one, two, three = (points for points, _, _ in found)
    assert f"these are {one}, {two} and {three} points before binary ones" in text
    one, two, three = (f"{low} to {high}" for _, low, high in found)
    assert f"with intervals from {one}, {two} and {three}: undecided" in text
    assert all(float(low) < 0 < float(high) for _, low, high in found)
    page = (docs / "results/cifar10_energy_ternary.md").read_text()
    rows = (re.search(rf"\| {row} \| (.*) \|", page)[1].split(" | ") for row in ("none", "ternary"))
    binary, ternary = ([float(cell.removesuffix(" M")) for cell in row] for row in rows)
    rate, energy = 2, 8
    assert round(ternary[rate] / binary[rate]) == 2
    assert "fire twice as often" in text
    assert f"{ternary[energy] / binary[energy]:.1f} times a binary one's [energy]" in text
    words = " ".join(README.split())
    assert "nor, in six seeds, [on CIFAR-10]" in words
    assert "ternary spikes are ahead there" in words
