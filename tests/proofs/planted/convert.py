"""Networks of ReLU and of other libraries, converted."""

from planted.bug import Bug

_ANN, _PEERS = "tests/convert/test_convert.py", "tests/convert/test_convert_peers.py"


def _bug(name: str, file: str, right: str, wrong: str, tests: str, test: str) -> Bug:
    return Bug(f"convert-{name}", f"realspike_ops/convert/{file}", right, wrong, tests, test)


BUGS = [
    _bug(
        "encoding-ignores-the-shortcut",
        "conversion.py",
        "if is_open == {node} and",
        "if",
        _ANN,
        "written_by_hand",
    ),
    _bug(
        "one-layer-for-all-calls",
        "conversion.py",
        "if self.calls[target] == 1 and not",
        "if not",
        _ANN,
        "shapes_and_granularities",
    ),
    _bug(
        "sizes-of-one-timestep",
        "loops.py",
        "(x, numerator * timesteps, denominator, 0)",
        "(x, numerator, denominator, 0)",
        _ANN,
        "converted_trained_folded and functions",
    ),
    _bug(
        "derived-weights-are-constants",
        "record.py",
        "parameter.add_(1)",
        "parameter.add_(0)",
        _ANN,
        "refused_networks and computed",
    ),
    _bug(
        "threshold-of-the-decayed-input",
        "neurons.py",
        "v_threshold = (node.v_threshold - rest) * scale",
        "v_threshold = node.v_threshold - rest",
        _PEERS,
        "spikingjelly_neurons",
    ),
    _bug(
        "reset-is-not-delayed",
        "neurons.py",
        '"subtract": "soft_delayed"',
        '"subtract": "soft"',
        _PEERS,
        "snntorch_neurons",
    ),
    _bug(
        "timesteps-in-any-order",
        "loops.py",
        "!= [*range(1, self.timesteps + 1)]",
        "== []",
        _PEERS,
        "refused_of_spikingjelly",
    ),
    _bug(
        "proof-that-proves-nothing",
        "proof.py",
        "if reason is not None:",
        "if False:",
        _ANN,
        "refused_networks",
    ),
    _bug(
        "many-timesteps-prove-nothing",
        "conversion.py",
        "            self._prove_with_fewer(unchanged, example, neurons, time)",
        "            pass",
        _ANN,
        "many_timesteps",
    ),
    _bug(
        "buffers-are-read-back-as-they-were",
        "read_back.py",
        "proxy_buffer_attributes = True",
        "proxy_buffer_attributes = False",
        _ANN,
        "read_back",
    ),
]
