"""Token ids of an answer or a confession as the texts that plugins read, for any host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from confession_plugin.reasoning import visible_span, visible_transcript


def texts_of_answer(
    tokenizer: Any, answered: Sequence[int], spans: Sequence[tuple[int, int]], *, reasoning_end: str | None = None
) -> dict[str, Any]:
    """The fields of a `records.Rollout` that follow from its tokens.

    Args:
        answered: token ids of prompt and transcript.
        spans: (start, end) of the policy's own words in them, one a turn.
        reasoning_end: ``--confession.reasoning_end``.
    """
    first = spans[0][0] if spans else len(answered)
    return {
        "answer": "\n".join(tokenizer.decode(answered[start:end], skip_special_tokens=True) for start, end in spans),
        "visible_answer": "\n".join(
            visible_span(tokenizer, answered, start, end, end=reasoning_end) for start, end in spans
        ),
        "visible_transcript": visible_transcript(tokenizer, answered, spans, end=reasoning_end),
        "transcript": tokenizer.decode(answered[first:], skip_special_tokens=True),
        "num_tokens": len(answered),
        "token_ids": tuple(answered),
        "answer_spans": tuple(spans),
    }


def texts_of_confession(
    tokenizer: Any, before: Sequence[int], ids: Sequence[int], *, reasoning_end: str | None = None
) -> dict[str, Any]:
    """`confess.Sampled`'s texts: `ids` decoded, whole and without reasoning, in the light of what stands before."""
    whole = [*before, *ids]
    return {
        "text": tokenizer.decode(list(ids), skip_special_tokens=True),
        "visible": visible_span(tokenizer, whole, len(before), end=reasoning_end),
    }
