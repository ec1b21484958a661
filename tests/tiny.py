"""A random-weight Stable Diffusion v1-shaped model in diffusers layout: the whole code path in 3 MB."""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig, get_peft_model_state_dict
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

MERGES = ["t h", "w a", "t e", "wa te", "f i", "r e</w>", "wate r</w>", "fi re</w>", "t y", "p e</w>", "ty pe</w>"]
TEXT_WIDTH = 32
START, END = "<|startoftext|>", "<|endoftext|>"


def tiny_pipeline(folder: Path, seed: int = 0, factor: int = 4) -> Path:
    """Save a tiny model and return its folder: 64 x 64 pixels at `factor` 4 (a VAE of x4) or 8, text of 77 tokens."""
    tokenizer = tiny_tokenizer(folder / "tokenizer")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts: dict[str, Any] = {
            "vae": tiny_vae(factor),
            "text_encoder": tiny_text_encoder(tokenizer),
            "tokenizer": tokenizer,
            "unet": tiny_unet(64 // factor),
            "scheduler": sd_scheduler(),
        }
    nothing: dict[str, Any] = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    pipeline = StableDiffusionPipeline(**parts, **nothing)
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


def tiny_unet(sample_size: int) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=sample_size,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=8,
    )


def tiny_vae(factor: int) -> AutoencoderKL:
    """An autoencoder that halves the sides once a level: three levels are x4, four are x8."""
    channels = {4: (16, 16, 32), 8: (16, 16, 16, 32)}[factor]
    blocks: dict[str, Any] = {  # diffusers annotates these as tuples of one
        "down_block_types": ("DownEncoderBlock2D",) * len(channels),
        "up_block_types": ("UpDecoderBlock2D",) * len(channels),
        "block_out_channels": channels,
    }
    return AutoencoderKL(**blocks, layers_per_block=1, latent_channels=4, norm_num_groups=8, sample_size=64)


def tiny_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    start, end = tokenizer.convert_tokens_to_ids(START), tokenizer.convert_tokens_to_ids(END)
    assert isinstance(start, int)
    assert isinstance(end, int)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=77,
        projection_dim=TEXT_WIDTH,
        bos_token_id=start,
        eos_token_id=end,
        pad_token_id=end,
    )
    return CLIPTextModel(config)


def sd_scheduler() -> PNDMScheduler:
    """Stable Diffusion v1's own scheduler, number for number."""
    return PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        skip_prk_steps=True,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def tiny_tokenizer(folder: Path, fillers: int = 0) -> CLIPTokenizer:
    """A byte-level CLIP tokenizer with a few merges; `fillers` entries that no text reaches pad its vocabulary."""
    folder.mkdir(parents=True, exist_ok=True)
    alphabet = byte_alphabet()
    words = [*alphabet, *(f"{char}</w>" for char in alphabet), *(merge.replace(" ", "") for merge in MERGES)]
    words += [f"<filler{number}>" for number in range(fillers)]
    vocabulary = {word: number for number, word in enumerate([*words, START, END])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), "utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(MERGES) + "\n", "utf-8")
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "pad_token": END, "unk_token": END}
    settings |= {"bos_token": START, "eos_token": END, "do_lower_case": True, "errors": "replace"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    return CLIPTokenizer.from_pretrained(folder)


def byte_alphabet() -> list[str]:
    """The 256 printable stand-ins for bytes that GPT-2's and CLIP's byte-pair encodings use."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + number) for number in range(len(others))]


def tiny_lora(model: Path, file: Path, *, strength: float = 0.1, seed: int = 0, rank: int = 4) -> Path:
    """Save a LoRA for the U-Net's attention, in diffusers' layout as the trainer does; strength 0 is untrained."""
    unet = UNet2DConditionModel.from_pretrained(model, subfolder="unet", use_safetensors=True)
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    unet.add_adapter(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets), "default")
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in unet.named_parameters():
            if ".lora_B." in name:
                weight.copy_(torch.randn(weight.shape, generator=draw) * strength)
    metadata = {key: plain(value) for key, value in unet.peft_config["default"].to_dict().items()}
    layers: dict[str, Any] = {**get_peft_model_state_dict(unet, adapter_name="default")}
    StableDiffusionPipeline.save_lora_weights(
        file.parent, unet_lora_layers=layers, unet_lora_adapter_metadata=metadata, weight_name=file.name
    )
    return file


def plain(value: Any) -> Any:
    """A setting of peft's as JSON can hold it."""
    if isinstance(value, set):
        return sorted(value)
    return value if isinstance(value, str | int | float | bool | list | dict | None) else str(value)
