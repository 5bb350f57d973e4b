"""Triton source; realspike_ops/ops launches it."""
