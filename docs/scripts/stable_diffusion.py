"""The figures and the table of docs/stable-diffusion.md: tensor shapes from configs, images of the embedded base."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel

from data import images, sample_set
from data.atomic_io import write_atomic
from docs.scripts import plots
from infer import pipeline, schedulers
from infer.comparison import trajectory
from infer.comparison.grid import CellRequest
from infer.comparison.image_cache import ImageCache, Machine
from infer.comparison.weights import Weights
from infer.contact_sheet import Sheet, render_sheet
from infer.resolve_model import POCKET
from train.model import POCKET_FOLDER, SD_V1_CONFIGS, load_model

PAGE = "stable-diffusion.md"
MODELS = {"the embedded base": POCKET_FOLDER, "SD v1.4": SD_V1_CONFIGS}
BEGIN, END = "<!-- {name} -->", "<!-- /{name} -->"  # around the part of a page that a command writes
PROMPT, SEED = "a red car", 42
GUIDANCE = (1.0, 2.0, 4.0, 7.5, 15.0)
MOMENTS = 7
CREATURES = (1, 52, 112)
PHRASES = (
    "a red car", "a blue car", "a red automobile", "a red apple", "a green apple", "a cat", "a dog", "a cat and a dog",
)  # fmt: skip


def make(name: str, docs: Path, steps: int) -> Path:
    """Make one figure or the page's table; returns the file written. Raises InputError."""
    if name == "shapes":
        page = docs / PAGE
        write_atomic(page, put(page.read_text(encoding="utf-8"), "shapes", shapes_table()))
        return page
    path = docs / "figures" / f"sd-{name}.png"
    if name in PLOTS:
        plots.save(PLOTS[name](), path)
    else:
        plots.save_image(SHEETS[name](steps), path, 1000)
    return path


# ---- shapes and counts


@dataclass(frozen=True)
class Level:
    """One resolution level of the U-Net: feature map size, and whether it has cross-attention."""

    channels: int
    side: int
    attends: bool

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.channels, self.side, self.side


@dataclass(frozen=True)
class Anatomy:
    """A model's tensor shapes, without the batch dimension. folder: its configs in diffusers layout."""

    folder: Path

    def config(self, part: str) -> dict[str, Any]:
        name = "scheduler_config.json" if part == "scheduler" else "config.json"
        return json.loads((self.folder / part / name).read_text(encoding="utf-8"))

    @property
    def factor(self) -> int:
        """Pixels per latent position."""
        return 2 ** (len(self.config("vae")["block_out_channels"]) - 1)

    @property
    def latents(self) -> tuple[int, int, int]:
        side = self.config("unet")["sample_size"]
        return self.config("vae")["latent_channels"], side, side

    @property
    def image(self) -> tuple[int, int, int]:
        side = self.latents[1] * self.factor
        return 3, side, side

    @property
    def ratio(self) -> float:
        """Number of image values for each latent value."""
        return math.prod(self.image) / math.prod(self.latents)

    @property
    def text_states(self) -> tuple[int, int]:
        config = self.config("text_encoder")
        return config["max_position_embeddings"], config["hidden_size"]

    @property
    def levels(self) -> list[Level]:
        """From the highest resolution to the lowest; each level halves the side of the previous one."""
        config = self.config("unet")
        named = zip(config["block_out_channels"], config["down_block_types"], strict=True)
        side = config["sample_size"]
        return [Level(channels, side >> depth, "CrossAttn" in kind) for depth, (channels, kind) in enumerate(named)]

    @property
    def calls(self) -> int:
        """U-Net calls for 50 steps of the model's own scheduler, without guidance. PNDM makes one extra call."""
        return 51 if self.config("scheduler")["_class_name"] == "PNDMScheduler" else 50

    @cached_property
    def parameters(self) -> dict[str, int]:
        """Parameter count of each part; the networks are built on the meta device."""
        with torch.device("meta"):
            parts: dict[str, Any] = {
                "vae": AutoencoderKL.from_config(self.config("vae")),
                "text_encoder": CLIPTextModel(CLIPTextConfig(**self.config("text_encoder"))),
                "unet": UNet2DConditionModel.from_config(self.config("unet")),
            }
        return {name: sum(weight.numel() for weight in part.parameters()) for name, part in parts.items()}

    def facts(self) -> dict[str, str]:
        """The rows of the table."""
        text, levels = self.config("text_encoder"), self.levels
        return {
            "image": shape(self.image),
            "latents": shape(self.latents),
            "image values per latent value": f"{self.ratio:g}",
            "pixels per latent position": f"{self.factor} x {self.factor}",
            "tokens per prompt, including start and end": str(self.text_states[0]),
            "text embeddings": shape(self.text_states),
            "vocabulary size": f"{text['vocab_size']:,}",
            "text encoder layers": str(text["num_hidden_layers"]),
            "U-Net levels": "<br>".join(shape(level.shape) + " + text" * level.attends for level in levels),
            "timestep embedding": str(4 * levels[0].channels),
            "parameters, VAE": f"{self.parameters['vae']:,}",
            "parameters, text encoder": f"{self.parameters['text_encoder']:,}",
            "parameters, U-Net": f"{self.parameters['unet']:,}",
            "U-Net calls for 50 steps with guidance": f"2 x {self.calls}",
        }


def shapes_table() -> str:
    """Markdown table that compares the models."""
    columns = [Anatomy(folder).facts() for folder in MODELS.values()]
    rows = [
        ["", *MODELS],
        ["---"] * (1 + len(MODELS)),
        *([name, *(each[name] for each in columns)] for name in columns[0]),
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def shape(sizes: Sequence[int]) -> str:
    return f"({', '.join(map(str, sizes))})"


def between(text: str, name: str) -> str:
    """The content between the markers of a section."""
    begin, end = BEGIN.format(name=name), END.format(name=name)
    return text.partition(begin)[2].partition(end)[0].strip()


def put(text: str, name: str, content: str) -> str:
    """The page with the content between the markers replaced."""
    begin, end = BEGIN.format(name=name), END.format(name=name)
    head, found, rest = text.partition(begin)
    assert found, f"the page has no {begin}"
    return f"{head}{begin}\n{content}\n{end}{rest.partition(end)[2]}"


# ---- plots


@plots.styled
def parts() -> Figure:
    """Diagram of the parts and their tensor shapes in both models."""
    small, large = (Anatomy(folder) for folder in MODELS.values())
    figure, (axes,) = plots.canvas(9.2, 3.7)
    axes.set(xlim=(-2, 100), ylim=(0, 40))
    axes.axis("off")

    def both(one: Sequence[int], two: Sequence[int]) -> str:
        return f"{shape(one)}\n{shape(two)}"

    box(axes, 8, 31, "prompt", f"{small.text_states[0]} tokens", plots.FAINT)
    box(axes, 32, 31, "text encoder (CLIP)", both(small.text_states, large.text_states), plots.ORANGE)
    box(axes, 8, 9, "noise", both(small.latents, large.latents), plots.FAINT)
    box(axes, 37, 9, "U-Net", "predicts the noise,\ntwice per step with guidance", plots.BLUE)
    box(axes, 62, 9, "scheduler", "removes some noise,\n50 times", plots.GREEN)
    box(axes, 88, 9, "VAE decoder", both(small.image, large.image), plots.PURPLE)
    for start, end, bend in (
        ((17, 31), (21, 31), 0), ((35, 25.5), (37, 15), 0), ((17, 9), (27, 9), 0), ((47, 9), (52, 9), 0),
        ((72, 9), (78, 9), 0), ((60, 14.5), (41, 14.5), 0.45),
    ):  # fmt: skip
        axes.add_patch(
            FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=12, color=plots.INK, linewidth=1.1,
                            connectionstyle=f"arc3,rad={bend}")
        )  # fmt: skip
    axes.text(51, 21.5, "less noisy latents", ha="center", fontsize=8)
    axes.text(50, 37, "upper shapes: the embedded base; lower: SD v1.4", fontsize=8, color="#666666")
    return figure


def box(axes: Axes, x: float, y: float, title: str, text: str, colour: str) -> None:
    """A rounded box centred at (x, y)."""
    width, height = 20 if len(title) > 12 else 18, 11
    corner = (x - width / 2, y - height / 2)
    style = "round,pad=0,rounding_size=1.2"
    axes.add_patch(
        FancyBboxPatch(corner, width, height, boxstyle=style, facecolor="white", edgecolor=colour, linewidth=2)
    )
    axes.text(x, y + 3.2, title, ha="center", va="center", fontweight="bold", fontsize=9)
    axes.text(x, y - 1.8, text, ha="center", va="center", fontsize=8)


@plots.styled
def text() -> Figure:
    """Cosine similarities of phrases in the embedded base's text encoder."""
    cosines = phrase_cosines()
    figure, (axes,) = plots.canvas(6.4, 4.6)
    shown = axes.imshow(cosines, cmap="YlGnBu", vmin=min(0.0, float(cosines.min())), vmax=1)
    for (row, column), value in np.ndenumerate(cosines):
        ink = "white" if value > 0.62 else plots.INK
        axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8, color=ink)
    axes.set_xticks(range(len(PHRASES)), PHRASES, rotation=35, ha="right")
    axes.set_yticks(range(len(PHRASES)), PHRASES)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    figure.colorbar(shown, ax=axes, label="cosine", shrink=0.85)
    return figure


@torch.no_grad()
def phrase_cosines() -> np.ndarray:
    """(n, n) cosine similarities of the phrases' pooled embeddings, with their mean subtracted."""
    model = load_model(POCKET)
    tokens = model.tokenizer(list(PHRASES), padding="max_length", truncation=True, return_tensors="pt")
    pooled = model.text_encoder(tokens.input_ids).pooler_output.double()  # (n, D)
    rows = torch.nn.functional.normalize(pooled - pooled.mean(dim=0), dim=1)
    return (rows @ rows.T).numpy()


PLOTS = {"parts": parts, "text": text}


# ---- image sheets


def vae(steps: int) -> Image.Image:
    """Images, the four channels of their latents, and the decoded images."""
    model = load_model(POCKET)
    side = model.sample_size
    rows = [sample_set.sample_image(index, side) for index in CREATURES]
    cells: dict[tuple[int, int], Image.Image] = {}
    notes: dict[tuple[int, int], str] = {}
    for row, image in enumerate(rows):
        latents, decoded = encode_and_decode(model, image)
        planes = [channel_image(plane, side) for plane in latents]
        cells |= {(column, row): each for column, each in enumerate([image, *planes, decoded])}
        notes[len(planes) + 1, row] = f"{psnr(image, decoded):.1f} dB"
    heads = ["image", *(f"channel {index + 1}" for index in range(model.latent_channels)), "decoded"]
    shapes = Anatomy(model.layout)
    foot = f"{shape(shapes.image)} to {shape(shapes.latents)}: {shapes.ratio:g} times fewer values"
    return render_sheet(Sheet(heads, [""] * len(rows), cells, footer=foot, notes=notes))


@torch.no_grad()
def encode_and_decode(model: Any, image: Image.Image) -> tuple[torch.Tensor, Image.Image]:
    """(C, h, w) mean latents of an image, and the image decoded from them."""
    pixels = torch.from_numpy(np.asarray(image.convert("RGB"), np.float32)).permute(2, 0, 1) / 127.5 - 1
    mean = model.vae.encode(pixels[None]).latent_dist.mean
    return mean[0], images.tensor_to_image(model.vae.decode(mean, return_dict=False)[0][0].float())


def channel_image(plane: torch.Tensor, side: int) -> Image.Image:
    """One channel as a grey image without interpolation; black to white is -3 to 3 standard deviations."""
    scaled = ((plane - plane.mean()) / plane.std() / 6 + 0.5).clamp(0, 1)
    grey = Image.fromarray((scaled * 255).round().byte().numpy()).convert("RGB")
    return grey.resize((side * 4, side * 4), Image.Resampling.NEAREST)


def psnr(one: Image.Image, two: Image.Image) -> float:
    """PSNR in decibels: 10 log10(255^2 / mean squared error)."""
    gap = np.asarray(one.convert("RGB"), np.float64) - np.asarray(two.convert("RGB"), np.float64)
    return float(10 * np.log10(255**2 / np.mean(gap**2)))


def image_cache() -> ImageCache:
    device = torch.device("cpu")
    return ImageCache(Machine(device, pipeline.DTYPES["fp32"]))


def scheduler(steps: int) -> Image.Image:
    """One image at several timesteps: the latents, and the estimate of the final image."""
    cache, request = image_cache(), CellRequest(Weights(POCKET), PROMPT, SEED, steps, 4.0)
    with cache.pipe(request.weights) as (pipe, _):
        pipe.scheduler = schedulers.build_scheduler(None, cache.model(request.weights).scheduler_config)
        frames = trajectory.record_frames(pipe, request.prompt, request.seed, cache.settings(request), MOMENTS)
    heads = [f"t = {frame.t}" for frame in frames[:-1]] + ["finished"]
    cells = {(column, 0): frame.noisy for column, frame in enumerate(frames)}
    cells |= {(column, 1): frame.denoised for column, frame in enumerate(frames)}
    sampler = schedulers.a1111_name(pipe.scheduler, None)
    foot = f"{PROMPT}, seed {SEED}, {steps} steps, guidance 4, {sampler}, the embedded base"
    return render_sheet(Sheet(heads, ["current", "estimate"], cells, footer=foot))


def guidance(steps: int) -> Image.Image:
    """One prompt and seed at increasing guidance."""
    cache = image_cache()
    requests = {scale: CellRequest(Weights(POCKET), PROMPT, SEED, steps, scale) for scale in GUIDANCE}
    found = cache.get(list(requests.values()))
    cells = {(column, 0): found[request].image for column, request in enumerate(requests.values())}
    recipe = next(iter(found.values())).recipe
    foot = f"{PROMPT}, seed {SEED}, {steps} steps, {recipe.sampler}, the embedded base"
    return render_sheet(Sheet([f"s = {scale:g}" for scale in GUIDANCE], [""], cells, footer=foot))


SHEETS = {"vae": vae, "scheduler": scheduler, "guidance": guidance}
