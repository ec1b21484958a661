"""Fine-tuning Stable Diffusion, and the DDPM beside it."""

import logging
import os

os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")  # their hints about optional packages are not for our users
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # peft imports it; on a CPU it asks for another package
