"""The order of the stages, what each needs of those before it, and how far each is trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from tools.pocket.training import Plan


def lengthened(plan: Plan, steps: int | None) -> Plan:
    """The plan, with another last step where one is given."""
    return plan if steps is None else replace(plan, steps=steps)


def run_autoencoder(steps: int | None) -> None:
    from tools.pocket.autoencoder import PLAN, train_autoencoder

    train_autoencoder(lengthened(PLAN, steps))


def run_text(steps: int | None) -> None:
    from tools.pocket.text import PLAN, train_text_encoder

    train_text_encoder(lengthened(PLAN, steps))


def run_unet(steps: int | None) -> None:
    from tools.pocket.unet import PLAN, train_unet

    train_unet(lengthened(PLAN, steps))


def run_scorer(steps: int | None) -> None:
    from tools.pocket.scorer import PLAN, train_scorer

    train_scorer(lengthened(PLAN, steps))


def run_export(_: int | None) -> None:
    from tools.pocket.export import export_base

    export_base()


STAGES: dict[str, Callable[[int | None], None]] = {
    "vae": run_autoencoder,
    "text": run_text,
    "unet": run_unet,
    "export": run_export,
    "scorer": run_scorer,
}


def run_stages(names: Sequence[str], steps: int | None) -> None:
    """Run the named stages in their order; a finished one costs only its loading."""
    for name, run in STAGES.items():
        if name in names:
            run(steps)


def run_score(seeds: int, steps: int) -> None:
    """Measure the shipped model, print the table, and write it into the card."""
    from tools.pocket.card import write_cards
    from tools.pocket.score import score

    table = score(seeds, steps)
    print_table(table)
    write_cards(table, seeds, steps)


def run_score_tuned(run: Path) -> None:
    """Measure a fine-tune of the shipped model and print the table."""
    from tools.pocket.tuned import score_tuned

    print_table(score_tuned(run))


def print_table(table: dict[str, float]) -> None:
    for row, value in table.items():
        print(f"{row:40s} {value:8.2f}")
