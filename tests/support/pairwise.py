"""Cases that meet every pair of values of every two axes."""

import itertools
import random


def pairwise(axes: dict[str, list], cost, seed: int = 0, candidates: int = 30) -> list[dict]:
    """Return cases {axis: value} in which every two values of two axes occur together.

    Greedy: of some random cases, each made to meet a pair that is missing, the one that meets the
    most missing pairs for its ``cost(case)``. Axis values are told apart by their place.
    """
    rng = random.Random(seed)
    names = list(axes)
    missing = {
        ((a, i), (b, j))
        for a, b in itertools.combinations(names, 2)
        for i, j in itertools.product(range(len(axes[a])), range(len(axes[b])))
    }

    def pairs(places):
        return {
            ((a, places[a]), (b, places[b])) for a, b in itertools.combinations(names, 2)
        } & missing

    cases = []
    while missing:
        wanted = rng.sample(sorted(missing), min(candidates, len(missing)))
        drawn = [
            {name: rng.randrange(len(axes[name])) for name in names} | dict(pair) for pair in wanted
        ]
        best = max(
            drawn,
            key=lambda places: (
                len(pairs(places)) / cost({name: axes[name][i] for name, i in places.items()})
            ),
        )
        missing -= pairs(best)
        cases.append({name: axes[name][i] for name, i in best.items()})
    return cases
