"""A judge a random model can learn to please: the share of digits in the confession."""


def judge(rollout, confession):
    return sum(character.isdigit() for character in confession.text) / max(len(confession.text), 1)
