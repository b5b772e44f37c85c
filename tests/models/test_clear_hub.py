"""CLEAR's weights on a hub that has others."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub.constants
import pytest
from hub_server import Hub, serving
from torch import nn

from hirescli.attention.clear_weights import find_weights
from hirescli.errors import RequestError


def test_repositories_without_the_file_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    hub = Hub()
    hub.add("me/mine", {"clear_local_8.safetensors": b""})
    hub.add("me/others", {"config.json": b""})
    with serving(hub):
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)
        with pytest.raises(RequestError, match=r"has no clear_local_16\.saf.*clear_local_8\.saf"):
            find_weights(nn.Identity(), "me/mine", None, None)
        with pytest.raises(RequestError, match=r"me/others has no .* no weights of CLEAR"):
            find_weights(nn.Identity(), "me/others", None, None)
    assert not hub.files_asked()
