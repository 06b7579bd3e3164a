"""The stock command line without a GPU: ``python -m confession_plugin.cpu <flags of train_ppo_ray>``."""

from __future__ import annotations

import functools
import inspect
import runpy
import sys

from confession_plugin import cpu


def main() -> None:
    sys.argv[1:] = cpu.prepare_driver(sys.argv[1:])
    import ray

    stock_init = ray.init

    @functools.wraps(stock_init)
    def init(runtime_env: dict) -> object:
        caller = inspect.stack()[1].frame
        options = cpu.ray_init_options(cpu.gpus_wanted(caller.f_locals["args"]))
        hook = {"worker_process_setup_hook": "confession_plugin.cpu.prepare_worker"}
        return stock_init(runtime_env=runtime_env | hook, **options)

    ray.init = init
    runpy.run_module("openrlhf.cli.train_ppo_ray", run_name="__main__", alter_sys=True)
    ray.shutdown()


if __name__ == "__main__":
    main()
