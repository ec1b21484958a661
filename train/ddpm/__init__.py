"""Denoising diffusion probabilistic models from scratch (Ho et al. 2020, arXiv 2006.11239)."""
