"""What the untrained policy does: answers that often break an instruction, reports that are true by chance."""

from __future__ import annotations

import random
from typing import get_args

from world import BROKEN, CONFLICT, FOLLOWED, NAMED, WORDS, Task, conflict, evidence, report_text, truth

from confession_plugin.report import Compliance

LABELS = get_args(Compliance)
VAGUE = "I may have made mistakes"

FOLLOWS = {"count": 0.6, "order": 0.5, "use": 0.6, "avoid": 0.5, "end": 0.5}
"""How often an answer follows an instruction, before the others have their say."""
SAYS_BROKEN = 0.4
"""How often a report says that an instruction was broken, whatever is true."""
OMITS, RELEGATES, EXTRA, VAGUELY, UNSURE, MUMBLES = 0.06, 0.06, 0.06, 0.1, 0.06, 0.1


def make_answer(task: Task, rng: random.Random) -> list[str]:
    """Up to five words; each instruction has its chance to be followed."""
    follows = {kind: rng.random() < FOLLOWS[kind] for kind in task}
    wanted = int(task.get("count", rng.randint(1, 5)))
    length = wanted if follows.get("count", True) else rng.choice([n for n in range(1, 6) if n != wanted])
    named = {task[kind] for kind in NAMED if kind in task}
    answer = rng.sample([word for word in WORDS if word not in named], length)
    places = rng.sample(range(length), length)
    for kind in ("use", "avoid"):
        if kind in task and task[kind] not in answer and places and follows[kind] == (kind == "use"):
            answer[places.pop()] = task[kind]
    if "end" in task and task["end"] not in answer:
        if follows["end"]:
            answer[-1] = task["end"]
        elif rng.random() < 0.5:
            answer[rng.randrange(length)] = task["end"]  # mentioned, rarely at the end
    if "order" in task and follows["order"]:
        answer.sort(reverse=task["order"] == "down")
    return answer


def habitual_report(task: Task, answer: list[str], rng: random.Random) -> str:
    """True only by chance; sometimes incomplete, relegated, padded, vague or no report at all."""
    kept = truth(task, answer)
    items, uncertainties = [], []
    for kind, argument in task.items():
        if rng.random() < OMITS:
            continue
        if rng.random() < RELEGATES:
            uncertainties.append(f"{kind} may be off")
            continue
        says_broken = rng.random() < SAYS_BROKEN
        seen = evidence(
            kind, argument, answer if says_broken != kept[kind] else imagined(kind, argument, says_broken, rng)
        )
        label = BROKEN if says_broken else FOLLOWED
        items.append((f"{kind}: {argument}", seen, rng.choice(LABELS) if rng.random() < UNSURE else label))
    if rng.random() < EXTRA or not items:
        word = rng.choice(WORDS)
        items.append(
            (
                f"{rng.choice(('use', 'avoid'))}: {word}",
                f"{word.upper()} {rng.choice(('found', 'missing'))}",
                rng.choice((BROKEN, FOLLOWED)),
            )
        )
    if rng.random() < VAGUELY:
        uncertainties.append(VAGUE)
    if rng.random() < (0.5 if conflict(task) else 0.05):
        uncertainties.append(CONFLICT)
    admits = any(label.startswith("not_complied") for _, _, label in items)
    grade = (3 if admits else 7) if rng.random() < 0.8 else rng.choice((1, 2, 3, 5, 6, 7))
    text = report_text(items, uncertainties, grade)
    if rng.random() < MUMBLES:
        return rng.choice(
            (text[:-1], text.replace("], ", "] ", 1), "All is well.", VAGUE + ".", text.replace(FOLLOWED, "yes"))
        )
    return text


def imagined(kind: str, argument: str, broken: bool, rng: random.Random) -> list[str]:
    """An answer that would break or follow the instruction: evidence made up to go with the label."""
    for _ in range(100):
        answer = rng.sample(WORDS, rng.randint(2, 5) if kind == "order" else rng.randint(1, 5))
        if kind == "order" and not broken:
            answer.sort(reverse=argument == "down")
        if kind != "order" and rng.random() < 0.5:
            answer[-1] = argument if argument in WORDS else answer[-1]
        if (truth({kind: argument}, answer)[kind]) != broken:
            return answer
    raise AssertionError((kind, argument, broken))
