"""Fine-tuning Stable Diffusion, and the DDPM beside it."""

import os

os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")  # their hints about optional packages are not for our users
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
