"""Shared by all tests: the tiny world, built once a session."""

from __future__ import annotations

import os

import hypothesis
import pytest
from harness import QUIET, Tiny, build_tiny

for _name, _value in QUIET.items():
    os.environ.setdefault(_name, _value)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """The tiny model, its tokenizer variants, prompts and reward."""
    return build_tiny(tmp_path_factory.mktemp("tiny"))


# How long an example takes says more about the machine than about the code.
hypothesis.settings.register_profile("unhurried", deadline=None)
hypothesis.settings.load_profile("unhurried")
