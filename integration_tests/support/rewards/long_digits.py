"""A reward whose learning changes what an answer says, how long it is and how sure the policy is of it.

Half for the share of digits, half for the length, up to 16 characters.
"""

import torch

END = "<|im_end|>"
LONG = 16


def reward_func(queries, prompts, labels):
    answers = [query[len(prompt) :].removesuffix(END) for query, prompt in zip(queries, prompts, strict=True)]
    digits = [sum(c.isdigit() for c in answer) / max(len(answer), 1) for answer in answers]
    lengths = [min(len(answer), LONG) / LONG for answer in answers]
    rewards = torch.tensor([(share + length) / 2 for share, length in zip(digits, lengths, strict=True)])
    return {"rewards": rewards, "scores": rewards, "extra_logs": {"digits": torch.tensor(digits)}}
