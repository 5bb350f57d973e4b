"""Configurations: what a run and a network are made from. Imports no torch."""
