"""What a call is refused with."""

from collections.abc import Callable
from typing import Any

import pytest

from data.errors import InputError


def error_of(call: Callable[..., object], *args: Any, **more: Any) -> InputError:
    with pytest.raises(InputError) as caught:
        call(*args, **more)
    return caught.value
