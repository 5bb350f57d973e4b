"""Print, as JSON, which compiled kernels the launches of many sizes would look up.

A process of its own (triton_launches.py). {name of a form: [[size, [key, ...]], ...]}; the size is
that of a form with few or many neurons and few or many timesteps.
"""

import itertools
import json

from compile_lif_triton import ATTACHED, CHANNEL, ELEMENT, PAPERS
from triton_launches import launches_of

FORMS = {
    "plain": (PAPERS, {}),
    "attached": (ATTACHED, {}),
    "element": (PAPERS, {"amplitude": ELEMENT}),
    "learnable": (ATTACHED, {"decay": CHANNEL, "v_threshold": CHANNEL, "learn": True}),
    "packed": (PAPERS, {"packed": True}),
}
TIMESTEPS = (1, 2, 3, 4, 5, 7, 8, 16, 17, 64)
FEW, MANY = (1, 2, 3, 16, 31), (64, 65, 100)


def keys(neuron, T, shape, **how):
    return [launch.key(90) for launch in launches_of(T, shape, neuron, **how)]


def main():
    found = {}
    for form, (neuron, how) in FORMS.items():
        found[form] = [
            [[T > 4, B in MANY], keys(neuron, T, (B, 16, 16, 16), **how)]
            for T, B in itertools.product(TIMESTEPS, FEW + MANY)
        ]
    found["other numbers"] = [
        [f"{number}", keys(PAPERS._replace(decay=number, v_threshold=number), 4, (2, 16, 4, 4))]
        for number in (0.0, 0.25, 1.0)
    ]
    found["other maps"] = [
        [f"H={H}", keys(PAPERS, 4, (2, 16, H, W))] for H, W in ((4, 4), (8, 2), (12, 20))
    ]
    found["odd maps"] = [
        [f"H={H}", keys(PAPERS, 4, (3, 5, H, W))] for H, W in ((3, 5), (7, 9), (11, 13))
    ]
    print(json.dumps(found))


main()
