"""What a network costs, layer by layer: the counts, and how they are shown."""

import json
from dataclasses import asdict, dataclass, field

from realspike_ops.reparam.check.html import table
from realspike_ops.reparam.units import bytes_text, count_text, joules_text

# Horowitz, "Computing's Energy Problem", ISSCC 2014: float32 in 45 nm.
ADDITION_PJ = 0.9
MULTIPLICATION_PJ = 3.7


@dataclass
class LayerProfile:
    """One layer; counts are per sample, over all timesteps."""

    name: str
    kind: str  # encoding, synapses, neurons or other
    firing_rate: float | None = None  # share of the inputs (of neurons: outputs) that are not 0
    synops: float = 0.0  # weights that a spike reached
    additions: float = 0.0
    multiplications: float = 0.0
    ann_macs: float = 0.0  # multiply-adds of the same layer on real values, once per sample
    weight_bytes: int = 0
    # As NeuroBench counts: inputs that are not 0 meet weights that are not 0, without biases.
    effective_acs: float = 0.0  # of inputs -1, 0 and 1
    effective_macs: float = 0.0  # of other inputs
    dense_operations: float = 0.0  # whatever the inputs and weights are
    connections: int = 0  # weights
    zero_connections: int = 0

    @property
    def energy_pj(self) -> float:
        return self.additions * ADDITION_PJ + self.multiplications * MULTIPLICATION_PJ

    @property
    def ann_energy_pj(self) -> float:
        return self.ann_macs * (ADDITION_PJ + MULTIPLICATION_PJ)


@dataclass
class ProfileReport:
    """The result of `profile`; print it, or store `to_json()`."""

    samples: int = 0  # as in `verify`: the rows that reach the neurons, over their timesteps
    layers: list[LayerProfile] = field(default_factory=list)
    footprint: int = 0  # bytes of all parameters and buffers
    parameters: int = 0
    activations: int = 0  # outputs of neurons, ReLU and sigmoid layers, over all samples
    active: int = 0  # those that are not 0

    def neurobench(self) -> dict:
        """Return the numbers that NeuroBench reports, under its names.

        ``Footprint`` (bytes), ``ParameterCount``, ``ConnectionSparsity`` (share of the weights that
        are 0), ``ActivationSparsity`` (share of the activations that are 0) and
        ``SynapticOperations`` per sample: ``Effective_MACs``, ``Effective_ACs`` and ``Dense``. Of a
        network that reads frames [T*B, ...], a sample is all T frames; NeuroBench counts rows.

        Reference:
            Yik et al., "NeuroBench: A Framework for Benchmarking Neuromorphic Computing Algorithms
            and Systems", Nature Communications, 2025.
        """
        connections, silent = self.total("connections"), self.activations - self.active
        samples = max(1, self.samples)

        def per_sample(name: str) -> float:
            return round(self.total(name) * samples) / samples  # the counts are integers

        return {
            "Footprint": self.footprint,
            "ParameterCount": self.parameters,
            "ConnectionSparsity": self.total("zero_connections") / max(1, connections),
            "ActivationSparsity": silent / max(1, self.activations),
            "SynapticOperations": {
                "Effective_MACs": per_sample("effective_macs"),
                "Effective_ACs": per_sample("effective_acs"),
                "Dense": per_sample("dense_operations"),
            },
        }

    def total(self, name: str) -> float:
        """Return the sum of a field over the layers."""
        return sum(getattr(layer, name) for layer in self.layers)

    def to_json(self) -> str:
        energies = ("energy_pj", "ann_energy_pj")
        layers = [asdict(row) | {key: getattr(row, key) for key in energies} for row in self.layers]
        counts = ("synops", "additions", "multiplications", "ann_macs", "weight_bytes", *energies)
        total = {name: self.total(name) for name in counts}
        content = {"samples": self.samples, "total": total, "neurobench": self.neurobench()}
        return json.dumps(content | {"layers": layers}, indent=2)

    def _heading(self) -> str:
        return (
            f"per sample, mean of {self.samples}; energy: {ADDITION_PJ} pJ per addition, "
            f"{ADDITION_PJ + MULTIPLICATION_PJ:g} pJ per multiply-add (45 nm)"
        )

    def _rows(self) -> list[tuple[str, ...]]:
        """Return the titles, the layers and their sum, as texts."""
        total = LayerProfile("total", "")
        for name in ("synops", "additions", "multiplications", "ann_macs", "weight_bytes"):
            setattr(total, name, self.total(name))
        return [
            _TITLES,
            *(
                (
                    layer.name, layer.kind,
                    "" if layer.firing_rate is None else f"{layer.firing_rate:.1%}",
                    count_text(layer.synops), count_text(layer.additions),
                    count_text(layer.multiplications), joules_text(layer.energy_pj),
                    joules_text(layer.ann_energy_pj), bytes_text(layer.weight_bytes),
                )
                for layer in [*self.layers, total]
            ),
        ]  # fmt: skip

    def summary(self) -> str:
        """Return one sentence: the additions, and the energy beside that of the equal ANN."""
        energy, ann = self.total("energy_pj"), self.total("ann_energy_pj")
        beside = f", {energy / ann:.3g} times the {joules_text(ann)} of the ANN" if ann else ""
        additions = count_text(self.total("additions"))
        return f"One sample takes {additions} additions and {joules_text(energy)}{beside}."

    def __str__(self) -> str:
        """The table, at most 100 columns wide; a longer name has a line of its own."""
        rows = self._rows()
        longest = max(len(row[0]) for row in rows)
        width = min(longest, _NAME_WIDTH)
        lines = [self._heading()]
        for name, *cells in rows:
            if len(name) > width:
                lines.append(name)
                name = ""
            widths = zip(cells, _WIDTHS, strict=True)
            lines.append(f"{name:<{width}}" + "".join(f"{cell:>{n}}" for cell, n in widths))
        return "\n".join([*lines, self.summary()])

    def _repr_html_(self) -> str:
        titles, *rows = self._rows()
        return table(self._heading(), titles, rows, self.summary())


_TITLES = ("layer", "kind", "rate", "SynOps", "additions", "multipl.", "energy", "ANN", "weights")
_WIDTHS = (10, 8, 9, 11, 10, 10, 10, 11)
_NAME_WIDTH = 100 - sum(_WIDTHS)
