"""Metrics of feature matrices: distances, coverage, memorization, prompt adherence, and their statistics."""
