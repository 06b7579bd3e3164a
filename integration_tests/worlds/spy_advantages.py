"""A plugin that writes down the advantages a run trains on: a line a step, beside the trace.

Of each sample only what lies outside its answer: (how many tokens have an advantage, which).
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
def confession_advantages(batch):
    result = yield
    if ray.is_initialized():  # not yet when the seal is checked
        rows = []
        for advantages, answer in zip(result.merged.advantages, batch.answer.masks, strict=True):
            for row, mask in zip(advantages, answer, strict=True):
                outside = row[~mask & (row != 0)]
                if len(outside):
                    assert outside.max() - outside.min() < 1e-5, "without KL in it, a confession has one advantage"
                    rows.append((len(outside), outside[0].item()))
        with (Path(_config["config"].trace_dir).parent / "advantages.txt").open("a") as file:
            file.write(json.dumps(rows) + "\n")
    return result
