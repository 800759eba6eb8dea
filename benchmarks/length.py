"""A reward that costs nothing, so that the systems and not the rewards are measured."""


def length_reward(query: str, answer: str, reference: str | None) -> float:
    """Return a number that differs among the answers of any model."""
    del query, reference
    return float(len(answer) % 7)
