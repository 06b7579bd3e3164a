"""An agent that answers twice; the environment speaks in between."""

import torch
from openrlhf.utils.agent import AgentInstanceBase, MultiTurnAgentExecutor


class Instance(AgentInstanceBase):
    def __init__(self, *args, **kwargs):
        self.turn = 0

    async def step(self, states, **kwargs):
        self.turn += 1
        text = states["action_text"]
        states["sampling_params"].stop_token_ids = None
        return {
            "rewards": torch.tensor([sum(c.isdigit() for c in text) / max(len(text), 1)]),
            "environment_feedback": " More. " if self.turn == 1 else "",
            "done": self.turn == 2,
            "extra_logs": {"violation": torch.tensor([float("7" in text)])},
        }


class AgentExecutor(MultiTurnAgentExecutor):
    def __init__(self):
        super().__init__(Instance)
