"""The host without a GPU: the stock command line, end to end, with the real Ray, vLLM and DeepSpeed."""

from __future__ import annotations

from pathlib import Path

import pytest
from harness import Tiny, base_flags, run_cli


@pytest.mark.e2e
def test_stock_run(tiny: Tiny, tmp_path: Path) -> None:
    result = run_cli(tmp_path, *base_flags(tiny, tmp_path), module="confession_plugin.cpu")
    print(result.seconds, sorted(result.scalars), result.scalars)
