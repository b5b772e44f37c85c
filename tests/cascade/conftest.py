"""The built-in model, loaded once for the tests of the cascade."""

from __future__ import annotations

import pytest

from hirescli.models.load import Model, load
from hirescli.models.registry import find_card


@pytest.fixture(scope="session")
def model() -> Model:
    return load(find_card("builtin"), dtype="float32")
