"""Write the prompts of the word-count task: python3 examples/wordcount/build.py FOLDER [--count 8192] [--seed 0]"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from task import make_prompts

HELD_OUT = 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=8192)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    rows = make_prompts(args.count + HELD_OUT, args.seed)
    for name, part in (("prompts", rows[: args.count]), ("heldout", rows[args.count :])):
        lines = [json.dumps({"input": prompt, "label": str(words)}) + "\n" for prompt, words in part]
        (args.folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
