"""The embedded default: a sample set drawn by code, a small base model and a scorer."""
