"""Sets of small pictures, whole in memory: what a diffusion model in pixels is trained on."""
