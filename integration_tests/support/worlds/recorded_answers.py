"""The host's single-turn executor, which also writes every answer to a file and can give each request its own seed.

It works alike with and without confessions, so that both kinds of run are measured by the same few lines.

    ANSWERS_REWARD   the reward function's file (an agent takes the place of --reward.remote_url)
    ANSWERS_LOG      the file: one JSON line an answer, in the order in which they were begun
    ANSWERS_SEEDED   how many answers, from the run's first, get a seed of their own
    ANSWERS_SEED     ... made of this, the prompt, and the sample's place in its group: the same at every step
    ANSWERS_SAMPLES  the group's size
"""

import json
import os
import zlib
from collections import Counter

from openrlhf.utils.agent import SingleTurnAgentExecutor


class AgentExecutor(SingleTurnAgentExecutor):
    def __init__(self):
        super().__init__(os.environ["ANSWERS_REWARD"])
        self._file = open(os.environ["ANSWERS_LOG"], "w")  # noqa: SIM115
        self._seeded = int(os.environ.get("ANSWERS_SEEDED", "0"))
        self._asked = Counter()
        self._begun = 0

    async def execute(self, prompt, label, sampling_params, **kwargs):
        number, repetition = self._begun, self._asked[prompt]
        self._begun += 1
        self._asked[prompt] += 1
        params = sampling_params.clone()
        params.logprobs = 1
        if number < self._seeded:
            sample = repetition % int(os.environ["ANSWERS_SAMPLES"])
            params.seed = zlib.crc32(f"{os.environ['ANSWERS_SEED']}:{prompt}:{sample}".encode())
        response = await super().execute(prompt, label, params, **kwargs)
        start, end = response["action_ranges"][0]
        record = {
            "number": number,
            "prompt": prompt,
            "repetition": repetition,
            "tokens": response["observation_tokens"][start:end],
            "log_probs": response["rollout_log_probs"][start:end],
            "reward": float(response["reward"]),
        }
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        response["rollout_log_probs"] = None  # the stock flags do not ask for them
        return response
