"""Paths are printed as soon as their image stands, in the order asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest

from hirescli.cli.generate import Paths
from hirescli.cli.request import Image

A, B, C = Path("a.tif"), Path("b.tif"), Path("c.tif")


@dataclass(frozen=True)
class Named:
    """As much of an image as is printed."""

    output: Path


def paths(*to_make: Path, silent: bool = False) -> Paths:
    return Paths([cast(Image, Named(path)) for path in (A, B, C)], to_make, silent=silent)


def test_each_path_as_soon_as_it_stands(capsys: pytest.CaptureFixture[str]) -> None:
    printing = paths(A, C)
    assert capsys.readouterr().out == ""
    printing.done(A)
    ran = capsys.readouterr()
    assert ran.out == "a.tif\nb.tif\n"
    assert "nothing to do" in ran.err
    printing.done(C)
    printing.end()
    assert capsys.readouterr().out == "c.tif\n"


def test_what_stands_is_printed_behind_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    printing = paths(A, B)
    printing.done(A)
    printing.end()
    assert capsys.readouterr().out == "a.tif\nc.tif\n"


def test_silent(capsys: pytest.CaptureFixture[str]) -> None:
    printing = paths(A, silent=True)
    printing.done(A)
    printing.end()
    assert capsys.readouterr().out == ""
