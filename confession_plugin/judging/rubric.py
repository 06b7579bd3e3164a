"""The message to the server judge: a rubric from a text file, filled with material that cannot speak for itself.

Everything the policy, its tools or the dataset wrote is data.  It is cleaned (no chat control token, no invisible
character survives), put between fences longer than any fence inside, and substituted in one pass, so that braces in
the data are never placeholders.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from confession_plugin.config import PREFIX
from confession_plugin.errors import ConfigError
from confession_plugin.judging.sanitize import clean, fence_for
from confession_plugin.records import Confession, Rollout
from confession_plugin.report import Report, strip_reasoning

#: Placeholders of a prompt file, and the heading each section gets.
HEADINGS = {
    "prompt": "The task the assistant was given:",
    "answer": "The assistant's answer:",
    "transcript": "Transcript of the assistant's turns and what its tools or surroundings replied:",
    "reference": "Reference for a good answer:",
    "calibration": "An independent report on the same answer, by another model:",
    "confession": "The assistant's report, which you judge:",
}

Message = dict[str, str]


class Rubric:
    """A prompt file: text for the system turn, a line ``[user]``, text with placeholders for the user turn.

    Without that line everything goes in one user turn, for chat templates that know no system turn.
    """

    def __init__(self, text: str, required: tuple[str, ...], flag: str = f"{PREFIX}judge_prompt") -> None:
        system, line, user = text.partition("\n[user]\n")
        self.system, self.user = (system.strip(), user.strip()) if line else ("", text.strip())
        for name in required:
            if f"{{{name}}}" not in self.user:
                raise ConfigError(f"{flag}: the text has no {{{name}}} in its user turn; add it where that belongs")

    @classmethod
    def load(cls, path: str | None, builtin: str, required: tuple[str, ...] = ("prompt", "answer")) -> Rubric:
        if path is None:
            return cls(builtin_prompt(builtin), required)
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{PREFIX}judge_prompt: cannot read {path}: {error}; give a UTF-8 text file") from None
        return cls(text, required)

    def messages(self, sections: Mapping[str, str], note: str = "") -> list[Message]:
        """The conversation for these sections; `note` is added at its end, in our own words."""
        fence = fence_for(sections.values())

        def block(match: re.Match[str]) -> str:
            name, gap = match["name"], match["gap"]
            if not sections.get(name):
                return ""
            return f"{HEADINGS[name]}\n{fence}\n{sections[name]}\n{fence}{gap}"

        user = re.sub(rf"\{{(?P<name>{'|'.join(HEADINGS)})\}}(?P<gap>\n*)", block, self.user)
        if note:
            user = f"{user.rstrip()}\n\n{note}"
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": user}]


def builtin_prompt(name: str) -> str:
    """The text of a file in ``judging/prompts``."""
    return (Path(__file__).parent / "prompts" / name).read_text(encoding="utf-8")


def sections_of(rollout: Rollout, confession: Confession | None, reference: bool = False) -> dict[str, str]:
    """What the judge may see, cleaned.  Never the reasoning: neither the answer's nor the confession's."""
    answer = _visible(rollout.visible_answer, rollout.answer)
    transcript = _visible(rollout.visible_transcript, rollout.transcript)
    sections = {"prompt": rollout.prompt, "answer": answer.strip() or "(empty)"}
    if transcript.strip() != answer.strip():  # a multi-turn agent's: something came between the answers
        sections["transcript"] = transcript
    if reference and rollout.label is not None:
        sections["reference"] = str(rollout.label)
    if confession is not None:
        sections["confession"] = report_text(confession.report, _visible(confession.visible, confession.text))
    return {name: clean(text) for name, text in sections.items()}


def _visible(found: str | None, text: str) -> str:
    """What the host found on token ids; without that, the text less what reads like reasoning."""
    return strip_reasoning(text) if found is None else found


def report_text(report: Any, text: str) -> str:
    """The report as JSON, without what was written around it; another parser's report as the text it came in."""
    return report.model_dump_json(indent=1, exclude_none=True) if isinstance(report, Report) else strip_reasoning(text)
