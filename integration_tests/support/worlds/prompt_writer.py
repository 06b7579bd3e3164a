"""An agent for OpenRLHF whose environment writes the prompt: the dataset's text is only a seed."""

import torch
from openrlhf.utils.agent import AgentInstanceBase, MultiTurnAgentExecutor


class Writer(AgentInstanceBase):
    def __init__(self, *args, **kwargs):
        pass

    async def reset(self, states, **kwargs):
        return {"observation": f"Rule: digits only. Task {states['label']}: go. "}

    async def step(self, states, **kwargs):
        assert states["observation_text"].startswith("Rule: digits only.")
        share = sum(char.isdigit() for char in states["action_text"]) / max(len(states["action_text"]), 1)
        # An agent may change what it is handed: the next turn would be greedy, and so would a confession.
        states["sampling_params"].temperature = 0.0
        states["sampling_params"].seed = 7
        return {
            "rewards": torch.tensor(share),
            "scores": torch.tensor(share),
            "environment_feedback": "",
            "done": True,
            "extra_logs": {"violation": torch.tensor([[float(share < 0.5)]])},
        }


class AgentExecutor(MultiTurnAgentExecutor):
    def __init__(self):
        super().__init__(Writer)
