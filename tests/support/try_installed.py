"""Tries an installed realspike, from outside the checkout and without the packages of the tests.

Started by its path, it has the folder of this file on Python's path, and not the checkout.
"""

from pathlib import Path

import torch

import realspike_ops as rso

checkout = Path(__file__).resolve().parents[2]
package = Path(rso.__file__).resolve().parent
assert package != checkout / "realspike_ops", f"{package} is the checkout, not what was installed"
print(f"realspike {rso.__version__} in {package}: {rso.build_info()}")

T = 4
spikes = rso.lif(torch.full((T, 2, 3, 5, 5), 0.4)).flatten(0, 1)  # [T*B, 3, 5, 5]
# 0.4, then 0.25 * 0.4 + 0.4 = 0.5 meets the threshold: every other timestep fires.
assert spikes.view(T, -1).mean(1).tolist() == [0, 1, 0, 1]
conv = torch.nn.Conv2d(3, 8, 3, padding=1).requires_grad_(False)
amplitude = torch.rand(3, 5, 5)
folded = rso.UnsharedSpikeConv.from_conv2d(conv, amplitude)
torch.testing.assert_close(folded(spikes), conv(amplitude * spikes))
print("lif and unshared_spike_conv run")
