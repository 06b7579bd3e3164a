"""Judging after dynamic filtering: no judge call is paid for a group that the host drops.

The host's filter reads answer rewards alone, so a verdict can wait for it.  The rollout worker keeps a group's
confessions; here, in the trainer, each accepted group is sent back to its worker to be judged while the other groups
are still generated, and all verdicts are in their samples before the batch leaves.

    worker: answers, confessions -> host: filter -> `Unjudged` -> worker: judge, reward, observers -> the samples' info

The host does not say that it accepts a group: it takes the next prompt where it drops one, and goes on to the next
group's responses where it does not.  That is when judging begins; which groups are judged in the end follows from the
samples it returns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from confession_plugin.openrlhf import experiences, recording
from confession_plugin.openrlhf.executor import ConfessionTokens
from confession_plugin.openrlhf.experiences import write_info
from confession_plugin.openrlhf.extra_confessions import EXTRA


class Unjudged:
    """The confessing groups of one round of sampling whose confessions are not judged yet.

    Attributes:
        workers: group -> the engine handle that samples it.
    """

    def __init__(self) -> None:
        self.workers: dict[int, Any] = {}
        self._waiting: dict[int, Any] = {}  # group that came back with confessions -> its worker
        self._pending: dict[int, Any] = {}  # group -> its verdicts, under way
        self._latest: int | None = None  # the group whose fate the host decides now

    def watched(self, prompts: Iterator[Any]) -> Iterator[Any]:
        """The host's iterator of prompts: taking one says that the group looked at last was dropped."""
        return _Watched(prompts, self)

    def look_at(self, group: int | None, *, confessed: bool) -> None:
        """The host looks at a response of this group: it has decided about the one before."""
        if group != self._latest and self._latest in self._waiting:
            self._judge(self._latest)
        self._latest = group
        if confessed and group is not None:
            self._waiting[group] = self.workers[group]

    def dropped(self) -> None:
        """The host takes a prompt."""
        self._latest = None

    def judge_rest(self, samples: Sequence[Any]) -> None:
        """Judge what the host returns and is not judged yet, forget the others, and write the verdicts down.

        Raises:
            PluginError, JudgeError: as from any rollout.
        """
        if not self._waiting and not self._pending:
            return  # no group confessed: what the host returns may be anything
        import ray

        members: dict[int, list[Any]] = {}
        for sample in samples:
            members.setdefault(int(sample.info.get(experiences.PREFIX + "group", -1)), []).append(sample)
        for group in list(self._waiting):
            if group in members:
                self._judge(group)
            else:
                self._waiting.pop(group).drop_confessions.remote(group)
        verdicts = ray.get(list(self._pending.values()))
        for group, of_group in zip(self._pending, verdicts, strict=True):
            for sample, tokens in zip(members.get(group, ()), of_group, strict=group in members):
                _write(sample, group, tokens)

    def _judge(self, group: int) -> None:
        self._pending[group] = self._waiting.pop(group).judge_confessions.remote(group)


class _Watched(Iterator[Any]):
    def __init__(self, prompts: Iterator[Any], unjudged: Unjudged) -> None:
        self._prompts = prompts
        self._unjudged = unjudged

    def __next__(self) -> Any:
        self._unjudged.dropped()
        return next(self._prompts)


def _write(sample: Any, group: int, tokens: ConfessionTokens) -> None:
    """The numbers of judged confessions, in place of those that stood for them."""
    write_info(sample.info, {**tokens.numbers, "group": group})
    for row, other in zip((row for of_one in sample.info.get(EXTRA, ()) for row in of_one), tokens.extra, strict=True):
        write_info(row.info, other.numbers)
    recording.judged(sample, tokens)
