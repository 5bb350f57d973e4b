"""Networks as NIR graphs, and back."""

from planted.bug import Bug

_TESTS = "tests/export/test_nir.py"


def _bug(name: str, file: str, right: str, wrong: str, test: str) -> Bug:
    return Bug(f"nir-{name}", f"realspike_ops/export/{file}", right, wrong, _TESTS, test)


BUGS = [
    _bug(
        "threshold-fires-at-it",
        "neurons.py",
        "below = np.nextafter(v_threshold, np.float32(0))",
        "below = v_threshold",
        "nodes_by_hand",
    ),
    _bug(
        "import-threshold-fires-at-it",
        "neurons.py",
        "return float(np.nextafter(np.float32(v_threshold), np.float32(np.inf)))",
        "return float(v_threshold)",
        "thresholds_of_nir",
    ),
    _bug(
        "kernel-in-the-corner-of-its-square",
        "synapse_map.py",
        "top : top + KH, left : left + KW",
        ":KH, :KW",
        "nodes_by_hand",
    ),
    _bug(
        "matrix-of-taps-without-padding",
        "synapse_map.py",
        "at = outputs * stride - padding + k * dilation",
        "at = outputs * stride + k * dilation",
        "round_trip_of_a_grid",
    ),
    _bug(
        "bias-of-a-sum-dropped",
        "walk.py",
        "bias = branches[n].bias + bias",
        "bias = branches[n].bias + 0 * bias",
        "meet_in_one_node",
    ),
    _bug(
        "guard-counts-nothing",
        "walk.py",
        "if total <= max_bytes:",
        "if total >= 0:",
        "dense_matrices_are_guarded",
    ),
    _bug(
        "import-without-gain",
        "from_nir.py",
        "if not np.allclose(gain, 1, rtol=1e-6, atol=0):",
        "if False:",
        "step_of_nir_by_hand",
    ),
    _bug(
        "import-averages-for-sums",
        "from_nir.py",
        "divisor = 1 if type(node) is self.nir.SumPool2d else None",
        "divisor = None",
        "pools_scale_flatten",
    ),
]
