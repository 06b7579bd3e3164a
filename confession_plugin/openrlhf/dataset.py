"""Seam: OpenRLHF ``PromptDataset``: which row of the dataset a prompt comes from.

The host hands on a prompt's text and label and forgets the rest of its row.  Here its text remembers the row's number;
the other columns and the chat messages are looked up when the prompt is dispatched.
"""

from __future__ import annotations

from typing import Any

#: On the host's dataset: the rows that it was made of.
_ROWS = "_confession_rows"


class NumberedPrompt(str):
    """A prompt's text that knows the number of its row.  It never leaves the trainer process."""

    row: int


def numbered_prompts(host: Any, self: Any, dataset: Any, *args: Any, **kwargs: Any) -> None:
    """Read the dataset as the host does and number its prompts."""
    host(self, dataset, *args, **kwargs)
    numbered = list(map(NumberedPrompt, self.prompts))
    for number, prompt in enumerate(numbered):
        prompt.row = number
    self.prompts = numbered
    setattr(self, _ROWS, dataset)


def row_of(generator: Any, prompt: str) -> dict[str, Any]:
    """The columns of a prompt's row but its images; empty where the host does not tell which row it is."""
    rows = getattr(getattr(generator.prompts_dataloader, "dataset", None), _ROWS, None)
    if rows is None or not isinstance(prompt, NumberedPrompt):
        return {}
    row = dict(rows[prompt.row])
    row.pop(getattr(generator.args.data, "image_key", "images"), None)
    return row


def messages_in(generator: Any, row: dict[str, Any]) -> list[dict[str, Any]] | None:
    """The prompt as chat messages, as the host reads them; None in runs without a chat template."""
    data = generator.args.data
    prompt = row.get(data.input_key)
    if prompt is None or not data.apply_chat_template:
        return None
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(one) for one in prompt]
