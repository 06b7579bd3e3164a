"""The seal on whichever tested OpenRLHF is installed: `make seal-hosts` runs this file on each of them.

Only flags that all tested versions have; 0.11.2 renamed those of importance correction.
"""

from __future__ import annotations

import itertools
from importlib.metadata import version as installed

import pytest
from in_process import host_args

from confession_plugin.config import Config
from confession_plugin.openrlhf import seams, version
from confession_plugin.openrlhf.check import seal
from confession_plugin.plugins import configured

CONFIG = Config(enable=True)
ESTIMATORS = ("gae", "reinforce", "rloo", "reinforce_baseline", "group_norm", "dr_grpo")
KL = {
    "in reward": ["--algo.kl.init_coef", "0.1"],
    "as loss": ["--algo.kl.init_coef", "0.1", "--algo.kl.use_loss", "--algo.kl.estimator", "k3"],
}
CORRECTION = (
    ["--algo.advantage.is_correction_enable"]
    if installed("openrlhf") < "0.11.2"
    else ["--algo.advantage.is_correction_level", "token", "--algo.advantage.is_correction_mode", "clip"]
)


def test_every_seam_is_there() -> None:
    assert version.check_version(CONFIG) in version.TESTED_VERSIONS
    seams.check_host()


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_seal_holds(estimator: str) -> None:
    plugins = configured(CONFIG)
    for policy_loss, kl, correction in itertools.product(("ppo", "gspo"), KL, ([], CORRECTION)):
        flags = ["--algo.advantage.estimator", estimator, "--actor.policy_loss_type", policy_loss]
        report = seal.check_seal(host_args(*flags, *KL[kl], *correction), CONFIG, plugins)
        assert report.holds, f"OpenRLHF {version('openrlhf')}: {report}"
