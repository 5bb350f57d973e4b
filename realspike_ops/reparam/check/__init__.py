"""Measurements and proofs of a folded network."""
