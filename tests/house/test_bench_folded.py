"""What bench_folded times of our network is its call, and nothing that its peers leave to do."""

import sys
from pathlib import Path

import torch
from realspike.networks import NetworkConfig, build

import realspike_ops as rso

ROOT = str(Path(__file__).parents[2])
sys.path.insert(0, ROOT)  # bench is no installed package
from bench import bench_folded

sys.path.remove(ROOT)


@torch.no_grad()
def test_the_peer_with_dense_maps_does_not_have_our_network_planned_anew():
    torch.manual_seed(0)
    config = NetworkConfig("element", 2, 2, architecture="resnet8", in_channels=3, image_size=8)
    x = torch.randn(2, 3, 8, 8)
    folded = rso.reparameterize(build(config, seed=0).eval(), x)
    dense = bench_folded.with_dense_maps(folded)
    expected = folded(x)
    plan = folded._plans.plan
    assert torch.equal(dense(x), expected)
    assert folded.steps_in_bits()
    assert not dense.steps_in_bits()
    folded(x)
    assert folded._plans.plan is plan
