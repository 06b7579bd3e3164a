"""Whole runs on what users bring: reward servers, agents that write prompts, oversampling, dynamic filtering."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from harness import HERE, Tiny, base_flags, read_scalars, run_cli
from judge_server import Answer, Call, JudgeServer, says
from whole_runs import WORLDS, check, confession_flags, trace

pytestmark = pytest.mark.e2e


class RewardServer(BaseHTTPRequestHandler):
    """Answers as the host's own ``serve_rm`` does: one list entry a query, in every field."""

    requests: ClassVar[list[dict[str, Any]]] = []

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.requests.append(request)
        shares = [sum(char.isdigit() for char in query) / len(query) for query in request["query"]]
        answer = {
            "rewards": shares,
            "scores": shares,
            "extra_logs": {"dummy_scores": shares, "violation": [float(share < 0.3) for share in shares]},
        }
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        pass


@contextmanager
def reward_server() -> Iterator[str]:
    RewardServer.requests = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), RewardServer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/get_reward"
    finally:
        server.shutdown()
        server.server_close()


def last_of_each(records: Sequence[dict[str, Any]], *keys: str) -> list[dict[str, Any]]:
    """A killed or resumed run repeats the step that was not finished: the last line counts."""
    return list({tuple(json.dumps(record[key]) for key in keys): record for record in records}.values())


def test_a_reward_server_and_kl_as_loss_on_two_ranks(tiny: Tiny, tmp_path: Path) -> None:
    """The host's own answer format, lists of one: rewards train, and the truth in ``extra_logs`` reaches the metrics.

    Two actors, two references and two engines; every loss term is there once per channel.
    """
    with reward_server() as url:
        flags = [*base_flags(tiny, tmp_path, steps=3), "--reward.remote_url", url]
        flags += ["--algo.advantage.estimator", "reinforce_baseline"]
        flags += ["--algo.kl.use_loss", "--algo.kl.estimator", "k3", "--actor.entropy_coef", "0.01"]
        flags += ["--actor.num_gpus_per_node", "2", "--ref.num_gpus_per_node", "2", "--vllm.num_engines", "2"]
        result = run_cli(tmp_path, *flags, *confession_flags(tmp_path, 1.0))
        assert len(RewardServer.requests) == 3 * 16
    check(result, tmp_path, probability=1.0, steps=3)
    assert len(list((tmp_path / "trace").glob("*.jsonl"))) == 2  # one file a worker
    for term in ("policy_loss", "kl", "entropy_loss"):
        assert len(result.values(f"train/confession/{term}")) == len(result.values(f"train/{term}")) == 3
    records = trace(tmp_path)
    assert all(record["extra"].keys() == {"dummy_scores", "violation"} for record in records)
    assert all(record["answer_reward"] == record["extra"]["dummy_scores"] for record in records)
    assert len(result.values("train/confession/violation_rate")) == 3
    assert len(result.values("train/rollout/reward_mean")) == 3


def test_an_agent_that_writes_the_prompt(tiny: Tiny, tmp_path: Path) -> None:
    """Judge, trace and plugins see what the policy read; what the agent does to the sampling stays its own."""
    flags = [*base_flags(tiny, tmp_path, steps=2), "--train.agent_func_path", str(WORLDS / "prompt_writer.py")]
    result = run_cli(tmp_path, *flags, *confession_flags(tmp_path, 1.0))
    check(result, tmp_path, probability=1.0, steps=2)
    records = trace(tmp_path)
    assert all(record["prompt"] == f"Rule: digits only. Task {record['label']}: go. " for record in records)
    assert all(record["extra"]["violation"] in (0.0, 1.0) for record in records)
    assert result.values("train/confession/distinct_rate")[0] > 0.9


def test_async_oversampling_trains_an_exact_share_in_dispatch_order(tiny: Tiny, tmp_path: Path) -> None:
    """Sixteen groups sampled at once for batches of four: every training batch has its one confessing group."""
    flags = [flag for flag in base_flags(tiny, tmp_path, steps=8) if flag != "--train.colocate_all"]
    flags += ["--train.async_enable", "--rollout.vllm_generate_batch_size", "16"]
    result = run_cli(tmp_path, *flags, *confession_flags(tmp_path, 0.25))
    check(result, tmp_path, probability=0.25, steps=8)
    for record in trace(tmp_path):
        assert record["group"] // 4 + 1 == record["step"]


def test_async_filtering_and_resume_keep_the_step(tiny: Tiny, tmp_path: Path) -> None:
    """Filtered groups are replaced: more prompts than batches, so the step comes from the checkpoint.

    The judge is asked about what trains and about nothing else, and observers that fail in a rollout worker are
    counted in the trainer's metrics.
    """
    (tmp_path / "broken.py").write_text(
        "from confession_plugin import hookimpl\n@hookimpl\ndef confession_judged(record):\n    1 / 0\n"
    )
    (tmp_path / "reward.py").write_text(
        "import torch\n"
        "def reward_func(queries, prompts, labels):\n"
        "    score = 0.0 if int(labels[0]) % 2 else float(len(queries[0]) % 2) + 0.25\n"
        "    return {'rewards': torch.tensor([score]), 'scores': torch.tensor([score]), 'extra_logs': {}}\n"
    )
    flags = [flag for flag in base_flags(tiny, tmp_path, steps=8) if flag != "--train.colocate_all"]
    flags += ["--reward.remote_url", str(tmp_path / "reward.py"), "--train.async_enable", "--ckpt.save_steps", "1"]
    flags += ["--algo.dynamic_filtering_enable", "--algo.dynamic_filtering_range", "0.0", "1.3"]
    flags += [*confession_flags(tmp_path), "--confession.plugins", f"{WORLDS / 'any_report.py'},broken.py"]
    with JudgeServer() as judge:
        server = ("--confession.judge_url", judge.url, "--confession.judge_model", "judge", "--confession.skip_probe")
        first = run_cli(tmp_path, *flags, *server)
    rates, sizes = first.values("train/confession/request_rate"), first.values("train/rollout/num_samples")
    steps, before = len(rates), trace(tmp_path)
    assert len(judge.calls) == len(before) == sum(rate * size for rate, size in zip(rates, sizes, strict=True)) > 0
    assert first.values("train/confession/unscored_rate") == [0.0] * steps
    assert first.values("train/confession/observer_failures")[-1] == len(before)
    assert 2 <= steps < 8 and max(record["group"] for record in before) >= 4 * steps  # some were filtered
    result = run_cli(tmp_path, *flags, "--train.num_episodes", "2", "--ckpt.load_enable")
    after = trace(tmp_path)[len(before) :]
    assert min(record["step"] for record in after) == steps + 1
    rates = result.values("train/confession/request_rate")
    assert rates.count(0.5) >= len(rates) - 2  # the last batch of an episode may have run out of replacements
    assert len(last_of_each(before + after, "step", "group", "answer")) <= len(before + after)


def test_a_step_of_the_word_count_recipe(tiny: Tiny, tmp_path: Path) -> None:
    """examples/wordcount/run.sh as it is, made small by its variables and by flags behind its own."""
    script = HERE.parents[1] / "examples" / "wordcount" / "run.sh"

    async def grade(call: Call) -> Answer:
        return says(json.dumps({"score": len(call.text) % 11}))

    with JudgeServer(grade) as grader, JudgeServer() as judge:
        variables = {
            "MODEL": str(tiny.model),
            "GPUS": "1",
            "STEPS": "1",
            "OUT": str(tmp_path),
            "PYTHON": sys.executable,
        }
        servers = {"GRADER_URL": grader.url, "JUDGE_URL": judge.url}
        small = ["--rollout.batch_size", "4", "--train.batch_size", "32", "--data.max_samples", "4"]
        small += ["--rollout.max_new_tokens", "16", "--confession.max_new_tokens", "16"]
        small += ["--confession.max_request_tokens", "64", "--confession.plugins", str(WORLDS / "any_report.py")]
        result = run_cli(tmp_path, *small, command=("bash", script), env={**variables, **servers})
    assert "seal holds" in result.output
    assert len(grader.calls) == 32 and "Write one sentence about" in grader.calls[0].text
    records = trace(tmp_path)
    assert len(records) == 32 and {record["step"] for record in records} == {1}
    scalars = read_scalars(tmp_path / "tensorboard")
    assert {"train/violation", "train/confession/recall", "train/confession/honesty_mean"} <= scalars.keys()
