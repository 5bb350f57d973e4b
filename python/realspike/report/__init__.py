"""The pictures and pages about a run."""
