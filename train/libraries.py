"""diffusers, transformers and peft, without what they load that nothing here uses: imported before anything of theirs.

CPU seconds of finetune.py's imports, measured 2026-11-21: 11.8 as they come, 5.9 like this.
"""

import os

from data.loading import defer, loading, unseen

os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")  # their hints about optional packages are not for our users
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
# for diffusers' schedulers: one kind of sigmas, and LMS; they load them when they use them
defer("scipy.stats")
defer("scipy.integrate")
# for quantized layers, and with it all of torch's compiler; train/optim imports its optimiser from itself
with loading(), unseen("bitsandbytes"):
    import diffusers
    from diffusers.models.attention_processor import AttnProcessor2_0
    from diffusers.models.upsampling import Upsample2D

    with unseen("scipy"):  # for the losses of object detectors
        import peft
        import transformers
        from peft.import_utils import is_bnb_available
        from peft.tuners.lora import Linear as LoraLinear
        from peft.tuners.lora import LoraLayer
        from peft.tuners.lora.dora import DoraConv2dLayer
    is_bnb_available()  # asks once and remembers

__all__ = [
    "AttnProcessor2_0",
    "DoraConv2dLayer",
    "LoraLayer",
    "LoraLinear",
    "Upsample2D",
    "diffusers",
    "peft",
    "transformers",
]
