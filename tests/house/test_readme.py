"""What the README and docs say runs."""

import re
from pathlib import Path

import pytest
import torch

import realspike_ops as rso

ROOT = Path(__file__).parents[2]


def python_blocks(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)


def test_readme_example_runs(capsys):
    (block,) = python_blocks(ROOT / "README.md")
    exec(compile(block, "README.md", "exec"), {})
    assert "same prediction for 100.00%" in capsys.readouterr().out


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_relative_links_resolve(page):
    text = (ROOT / page).read_text()
    links = re.findall(r"\]\(([^)#:]+)\)", text)
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
