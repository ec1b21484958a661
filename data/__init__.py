"""Datasets: captioned folders, images, captions, caches, metrics and reports; what all packages share."""
