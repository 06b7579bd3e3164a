"""The host's trainer side in one process, on a tiny model: rollout samples -> advantages -> training steps.

Everything that computes is the host's own (`SamplesGenerator`, `RemoteExperienceMaker`, `Actor`, the critic and reward
models, `ActorPPOTrainer`, `CriticPPOTrainer`, `DeepspeedStrategy`).  Only what moves data between processes is local:
Ray's ``get``/``put``, the actor groups, and the DeepSpeed engine, of which a training step needs ``backward`` (scaled
as DeepSpeed scales it) and ``step``.

The seal check runs on it before every run, with the run's own flags; so do the seal's tests.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from confession_plugin.openrlhf.host_flags import instead

VOCABULARY = 32


class LocalEngine(nn.Module):
    """The part of a DeepSpeed engine that a training step uses, around any model.

    Attributes:
        steps: gradients at each optimizer step, by parameter name.
    """

    def __init__(self, model: nn.Module, accumulation: int, lr: float = 0.0) -> None:
        super().__init__()
        self.module = model
        self._accumulation = accumulation
        self._lr = lr
        self._micro_steps = 0
        self.steps: list[dict[str, Tensor]] = []

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)

    def backward(self, loss: Tensor) -> None:
        (loss / self._accumulation).backward()

    def step(self) -> None:
        self._micro_steps += 1
        if self._micro_steps % self._accumulation:
            return
        gradients = {
            name: value.grad.clone() for name, value in self.module.named_parameters() if value.grad is not None
        }
        if dist.is_initialized() and dist.get_world_size() > 1:
            for gradient in gradients.values():  # DeepSpeed averages over data-parallel ranks
                dist.all_reduce(gradient)
                gradient /= dist.get_world_size()
        self.steps.append(gradients)
        if self._lr:
            with torch.no_grad():
                for name, value in self.module.named_parameters():
                    if name in gradients:
                        value.sub_(gradients[name], alpha=self._lr)
        self.module.zero_grad()

    def get_global_grad_norm(self) -> float:
        if not self.steps:
            return 0.0
        return float(torch.stack([gradient.norm() for gradient in self.steps[-1].values()]).norm())


class LocalGroup:
    """A host actor group in this process: runs ``forward`` on each micro-batch."""

    def __init__(self, forward: Callable[..., Tensor]) -> None:
        self._forward = forward

    def async_run_method_batch(self, method_name: str, **kwargs: Any) -> list[list[Tensor]]:
        size = len(next(iter(kwargs.values())))
        return [[self._forward(**{name: value[i] for name, value in kwargs.items()}) for i in range(size)]]

    def async_run_method(self, method_name: str) -> list[Any]:
        return []


@dataclass
class Trained:
    """What one training pass did."""

    actor: list[dict[str, Tensor]]
    """Gradients of each optimizer step."""
    critic: list[dict[str, Tensor]]
    status: dict[str, float] = field(default_factory=dict)
    kl_coefficient: float = 0.0
    """What the KL controller makes of the pass: the next one's coefficient."""


Scores = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(sequences, attention_mask, the reward model's scores) -> scores in their place."""


class Simulator:
    """One set of host objects under one set of flags.  Two simulators of equal `args` and `seed` hold equal models."""

    def __init__(
        self, args: Any, *, seed: int = 0, lr: float = 0.0, world_size: int = 1, scores: Scores | None = None
    ) -> None:
        from openrlhf.trainer.ppo_utils.experience_maker import RemoteExperienceMaker
        from openrlhf.trainer.ppo_utils.samples_generator import SamplesGenerator
        from openrlhf.utils import get_strategy

        self.args = args
        self.strategy = get_strategy(args)
        self.strategy.world_size = world_size
        accumulation = (
            1
            if args.train.dynamic_batch_enable
            else (args.train.batch_size // args.train.micro_batch_size // world_size)
        )
        self.strategy.accumulated_gradient = accumulation
        if args.train.dynamic_batch_enable:
            self.strategy.ds_device_mesh = _WholeWorld()
        torch.manual_seed(seed)
        self.actor = self._policy(accumulation, lr)
        reference = self._policy(1, 0.0) if args.algo.kl.init_coef > 0 else None
        critic_wanted = args.critic.model_name_or_path is not None
        self.critic = LocalEngine(self._scorer("critic"), accumulation, lr) if critic_wanted else None
        reward = self._scorer("reward").eval() if not args.reward.remote_url else None
        self._scores = scores
        tokenizer = SimpleNamespace(pad_token_id=0)
        self.generator = SamplesGenerator(self.strategy, None, None, tokenizer, [])
        self.maker = RemoteExperienceMaker(
            LocalGroup(self._forward(self.actor)),
            LocalGroup(self._forward(self.critic)) if self.critic is not None else None,
            LocalGroup(self._scored_by(reward)) if reward is not None else None,
            LocalGroup(self._forward(reference)) if reference is not None else None,
            _kl_controller(args.algo.kl),
            self.strategy,
            tokenizer,
        )

    def samples(self, responses: Sequence[dict[str, Any]]) -> list[Any]:
        """Executor responses into the host's samples."""
        return [
            self.generator._process_response_into_experience(response, max_len=self.args.data.max_len)
            for response in responses
        ]

    def experiences(self, samples: list[Any]) -> list[Any]:
        """Samples into experiences with log-probs, values, KL, advantages and returns."""
        from openrlhf.trainer.ppo_trainer import BasePPOTrainer

        made: list[Any] = self.maker.make_experience_batch(samples)
        self.rollout_stats: dict[str, float] = BasePPOTrainer._compute_rollout_stats(self, made)
        return made

    def train(self, experiences: Sequence[Any], *, order_seed: int = 0) -> Trained:
        """One ``ppo_train`` of actor and critic; micro-batches come in an order fixed by `order_seed`."""
        from openrlhf.trainer.ray.ppo_actor import ActorPPOTrainer
        from openrlhf.trainer.ray.ppo_critic import CriticPPOTrainer

        args = self.args
        common = {"micro_train_batch_size": args.train.micro_batch_size, "dataloader_pin_memory": False}
        scheduler = SimpleNamespace(get_last_lr=lambda: [0.0])
        actor = ActorPPOTrainer(self.strategy, self.actor, None, None, scheduler, vllm_engines=None, **common)
        status = self._pass(actor, experiences, order_seed, self.maker.kl_ctl.value)
        if self.critic is not None:
            critic = CriticPPOTrainer(
                self.strategy, self.critic, None, scheduler, value_clip=args.critic.value_clip, **common
            )
            status |= self._pass(critic, experiences, order_seed)
        if "kl" in status:
            # As the host's trainer does, with a step as long as the controller's horizon: the change is then visible.
            self.maker.kl_ctl.update(status["kl"], args.algo.kl.horizon)
        critics = self.critic.steps if self.critic is not None else []
        return Trained(self.actor.model.steps, critics, status, float(self.maker.kl_ctl.value))

    def _pass(self, trainer: Any, experiences: Sequence[Any], order_seed: int, *args: Any) -> dict[str, float]:
        for experience in experiences:
            trainer.replay_buffer.append(_copy_of(experience))
        torch.manual_seed(order_seed)
        status: dict[str, float] = trainer.ppo_train(*args)
        return status

    def _policy(self, accumulation: int, lr: float) -> Any:
        from openrlhf.models import Actor
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_config(_tiny_config(), dtype=torch.float32)
        actor = Actor(LocalEngine(model, accumulation, lr), temperature=self.args.rollout.temperature)
        actor.packing_samples = False  # the host sets it only on models it loads itself; packing needs flash-attn
        return actor

    def _scorer(self, kind: str) -> nn.Module:
        from openrlhf.models import model as host_models
        from transformers import AutoModel

        config = _tiny_config()
        config.normalize_reward = False
        base = AutoModel._model_mapping[type(config)]
        make = host_models._get_critic_model if kind == "critic" else host_models._get_reward_model
        model: nn.Module = make(base.__base__, base, "score", False)(config)
        return model

    def _scored_by(self, model: nn.Module) -> Callable[..., Tensor]:
        def scored(sequences: Tensor, attention_mask: Tensor, **_: Any) -> Tensor:
            own: Tensor = model(sequences, attention_mask).detach()
            return own if self._scores is None else self._scores(sequences, attention_mask, own)

        return scored

    @staticmethod
    def _forward(model: Any) -> Callable[..., Tensor]:
        def forward(sequences: Tensor, action_mask: Tensor, attention_mask: Tensor, **_: Any) -> Tensor:
            with torch.no_grad():
                result: Tensor = model(sequences, action_mask, attention_mask)
            return result

        return forward


@contextlib.contextmanager
def one_process() -> Iterator[None]:
    """What the host's objects need to run here: a process group of one, a CPU device, and a local ``ray.get``."""
    from openrlhf.trainer.ppo_utils import experience_maker
    from openrlhf.trainer.ray import ppo_actor

    local_ray = SimpleNamespace(get=lambda refs: refs, put=lambda value: value)
    started = not dist.is_initialized()
    if started:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        with (
            instead(experience_maker, "ray", local_ray),
            instead(ppo_actor, "torch_dist_barrier_and_cuda_sync", lambda: None),
            instead(torch.cuda, "current_device", lambda: _Cpu("cpu")),
            instead(torch.cuda, "is_available", lambda: False),
        ):
            yield
    finally:
        if started:
            dist.destroy_process_group()


class _Cpu(str):
    """Reads "cpu" where a device is wanted and keeps ``torch.device(f"cuda:{...}")`` well-formed."""

    def __format__(self, spec: str) -> str:
        return "0"


class _WholeWorld:
    """A device mesh whose data-parallel group is everybody."""

    def __getitem__(self, name: str) -> _WholeWorld:
        return self

    def get_group(self) -> Any:
        return dist.group.WORLD


def _kl_controller(kl: Any) -> Any:
    """As the host's trainer chooses it."""
    from openrlhf.trainer.ppo_utils.kl_controller import AdaptiveKLController, FixedKLController

    if kl.target:
        return AdaptiveKLController(kl.init_coef, kl.target, kl.horizon)
    return FixedKLController(kl.init_coef)


def _tiny_config() -> Any:
    from transformers import Qwen2Config

    return Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        initializer_range=0.1,  # policy and reference differ enough for their KL to matter
        max_position_embeddings=4096,
        pad_token_id=0,
        use_cache=False,
        attn_implementation="eager",
    )


def _copy_of(experience: Any) -> Any:
    """The replay buffer takes experiences apart in place: it gets its own containers."""
    import copy

    twin = copy.copy(experience)
    twin.info = dict(experience.info)
    return twin
