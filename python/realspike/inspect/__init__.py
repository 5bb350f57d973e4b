"""What a trained or folded network is and does: read from its files, run on data."""
