"""The digits judge, which leaves a file ``group-sample-number`` for each of its calls in the folder ``$JUDGED``.

Where there is a file ``broken`` in it, the judge fails.
"""

import os
import tempfile


def judge(rollout, confession):
    if os.path.exists(os.path.join(os.environ["JUDGED"], "broken")):
        raise RuntimeError("out of order")
    name = f"{rollout.group}-{rollout.sample}-{confession.number}."
    os.close(tempfile.mkstemp(prefix=name, dir=os.environ["JUDGED"])[0])
    return sum(character.isdigit() for character in confession.text) / max(len(confession.text), 1)
