"""Captioning images in Label Studio."""
