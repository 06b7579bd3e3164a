"""A reward that a random model learns in a few steps: the share of digits in the answer."""

import torch


def reward_func(queries, prompts, labels):
    answers = [query[len(prompt) :] for query, prompt in zip(queries, prompts, strict=True)]
    digits = [sum(c.isdigit() for c in answer) / max(len(answer), 1) for answer in answers]
    rewards = torch.tensor(digits, dtype=torch.float)
    return {"rewards": rewards, "scores": rewards, "extra_logs": {"digits": rewards}}
