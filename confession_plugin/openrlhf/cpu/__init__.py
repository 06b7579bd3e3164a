"""OpenRLHF on a machine without a GPU: for trying a run, for tests, for writing plugins on a laptop.

The stock command line runs end to end with the real Ray, vLLM and DeepSpeed.  What they take for granted about CUDA is
replaced by the stand-ins listed in `stand_ins.STAND_INS`, flags that need a GPU are changed by `adapt_argv`, and one
line says so.  With a GPU, or with a Ray cluster to join, nothing here does anything; ``CONFESSION_PLUGIN_CPU=1`` in
the environment asks for it all the same, with a Ray of its own, and ``CONFESSION_PLUGIN_CPU=0`` forbids it.

The order of calls, in the driver::

    if cpu.engaged():
        argv = cpu.prepare_driver(argv)          # before anything of the host is imported
        ray.init(**cpu.ray_init_options(cpu.gpus_wanted(args)))

and `prepare_worker` from Ray's ``worker_process_setup_hook``.
"""

from confession_plugin.openrlhf.cpu.flags import adapt_argv, gpus_wanted
from confession_plugin.openrlhf.cpu.prepare import (
    ENGAGED_ENV_VAR,
    check_cluster,
    cluster_to_join,
    engaged,
    no_gpu_here,
    prepare_driver,
    prepare_process,
    prepare_worker,
    ray_init_options,
)

__all__ = [
    "ENGAGED_ENV_VAR",
    "adapt_argv",
    "check_cluster",
    "cluster_to_join",
    "engaged",
    "gpus_wanted",
    "no_gpu_here",
    "prepare_driver",
    "prepare_process",
    "prepare_worker",
    "ray_init_options",
]
