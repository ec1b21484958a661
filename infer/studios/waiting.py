"""Waiting for an order without holding a thread: fifty people who wait cost nothing."""

from __future__ import annotations

import asyncio

from infer.studios.desk import Order

PAUSE = 0.05  # seconds; a step of the smallest model takes about as long


async def finished(order: Order) -> None:
    """Until it is drawn, stopped or failed. Whoever waits may leave; the order stays."""
    while not order.over.is_set():
        await asyncio.sleep(PAUSE)
