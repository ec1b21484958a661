"""The kinds of adapter there are. To add one: a file beside this one, and its name here."""

from typing import Annotated

from pydantic import Field

from train.adapters.full import Full
from train.adapters.lora import Lora

AnyAdapter = Annotated[Full | Lora, Field(discriminator="kind")]
