"""Looking at trained and folded networks: their files, and their activity on data."""
