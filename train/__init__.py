"""Tensors to weights: the from-scratch DDPM, and the fine-tuner built on it."""
