"""A plugin that writes down the advantages a run trains on: a line a step, beside the trace.

Of each confession that trains: (its tokens, their advantage).
"""

import json
from pathlib import Path

import ray

from confession_plugin import hookimpl

_config = {}


@hookimpl
def confession_configure(config):
    _config["config"] = config


@hookimpl(wrapper=True)
def confession_advantages(honesty):
    result = yield
    if ray.is_initialized():  # not yet when the seal is checked
        rows = []
        for values, confessions in zip(result.advantages, honesty.masks, strict=True):
            for row, mask in zip(values, confessions, strict=True):
                if mask.any():
                    assert row[mask].std(correction=0) < 1e-5, "without KL in it, a confession has one advantage"
                    rows.append((int(mask.sum()), row[mask].mean().item()))
        with (Path(_config["config"].trace_dir).parent / "advantages.txt").open("a") as file:
            file.write(json.dumps(rows) + "\n")
    return result
