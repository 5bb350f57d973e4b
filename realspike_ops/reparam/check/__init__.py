"""What is measured and proved of a folded network."""
