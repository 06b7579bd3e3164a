"""The server judge and the server most teams run: vLLM, with a tiny model on the CPU."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
from harness import build_model

from confession_plugin import Confession, ConfigError, Verdict
from confession_plugin.config import Config
from confession_plugin.judging import probe
from confession_plugin.judging.preflight import CASE, REPORT
from confession_plugin.judging.rubric import builtin_prompt
from confession_plugin.judging.server import ServerJudge
from confession_plugin.judging.verdict import LABELS, RATINGS

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]
CONFESSION = Confession("", "", report=REPORT)


@dataclass
class Served:
    url: str
    quote: int
    """The token of a double quote: favouring it makes a model that babbles come to the end of its reasons."""

    def config(self, **settings: Any) -> Config:
        # No seed: a seeded request whose prompt is computed in chunks ends the CPU build's engine.
        body = json.dumps({"logit_bias": {str(self.quote): 30}})
        settings = {"judge_body": body, "judge_max_tokens": 256, "judge_retries": 0, **settings}
        return Config(judge_url=self.url, **{"judge_model": "judge", **settings})


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("judge")
    tokenizer = build_model(folder / "model", [builtin_prompt("judge.txt")], vocab_size=1500, max_tokens=8192)
    quote = int(tokenizer.convert_tokens_to_ids('"'))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # The module and not the `vllm` command, which asks for the version of a package that the CPU build isn't called.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder / "model")]
    command += ["--served-model-name", "judge", "--max-model-len", "4096", "--enforce-eager"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--api-key", "the-right-key"]
    env = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    log = folder / "log"
    with log.open("w") as out:
        server = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=env)
    try:
        deadline = time.monotonic() + 600  # on a busy machine; half a minute on a quiet one
        while not healthy(port):
            assert server.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.3)
        yield Served(f"http://127.0.0.1:{port}/v1", quote)
    finally:
        server.terminate()
        server.wait(60)


def healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


@pytest.fixture(autouse=True)
def the_right_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONFESSION_JUDGE_KEY", "the-right-key")


def judged(config: Config, *transcripts: str) -> list[Verdict]:
    async def main() -> list[Verdict]:
        judge = ServerJudge(config)
        rollouts = [replace(CASE, transcript=transcript) for transcript in transcripts]
        return list(await asyncio.gather(*(judge(rollout, CONFESSION) for rollout in rollouts)))

    return asyncio.run(main())


def test_vllm_judges_by_the_schema(served: Served) -> None:
    found = judged(served.config(), *[CASE.transcript] * 16)
    for verdict in found:
        assert verdict.scored, verdict
        assert set(verdict.ratings) == set(RATINGS) and set(verdict.ratings.values()) <= set(LABELS.values())
    probe(served.config())


def test_vllm_is_told_apart_from_a_wrong_name_key_or_path(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="has no model 'other'; it has judge"):
        probe(served.config(judge_model="other"))
    with pytest.raises(ConfigError, match="usually ending in /v1"):
        probe(replace(served, url=served.url.removesuffix("/v1")).config())
    with pytest.raises(ConfigError, match=r"lower --confession\.judge_max_tokens"):
        probe(served.config(judge_max_tokens=5000))
    monkeypatch.setenv("CONFESSION_JUDGE_KEY", "the-wrong-key")
    with pytest.raises(ConfigError, match="valid key in the environment variable CONFESSION_JUDGE_KEY") as caught:
        probe(served.config())
    assert "the-wrong-key" not in str(caught.value)


def test_what_is_too_long_for_vllm_is_cut_until_it_fits(served: Served) -> None:
    found = judged(served.config(), "word ünd " * 20_000, "<|im_end|>" * 2_000, "x" * 50_000)
    assert [verdict.unscored for verdict in found] == [None] * 3, found


def test_without_a_schema_a_babbling_model_is_unscored_and_never_zero(served: Served) -> None:
    (found,) = judged(served.config(judge_schema="off", judge_max_tokens=32), CASE.transcript)
    assert found.unscored == "unparsable" and not found.ratings
