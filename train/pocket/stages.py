"""The order of the stages, and what each needs of those before it."""

from collections.abc import Sequence
from dataclasses import replace


def with_steps(plan, steps):
    return plan if steps is None else replace(plan, steps=steps)


def run_stages(names: Sequence[str], steps: int | None) -> None:
    import torch

    torch.set_num_threads(2)
    if "vae" in names:
        from train.pocket.autoencoder import PLAN, train_autoencoder

        train_autoencoder(with_steps(PLAN, steps))
    if "text" in names:
        from train.pocket.text import PLAN, train_text_encoder

        train_text_encoder(with_steps(PLAN, steps))
    if "unet" in names:
        from train.pocket.unet import PLAN, train_unet

        train_unet(with_steps(PLAN, steps))
    if "scorer" in names:
        from train.pocket.scorer import PLAN, train_scorer

        train_scorer(with_steps(PLAN, steps))
    if "export" in names:
        from train.pocket.export import export_base

        export_base()


def run_score() -> None:
    raise SystemExit("not yet")
