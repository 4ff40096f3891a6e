"""How sure a window has to be, so that few of all drifts that are ever told are false.

LOND (Javanmard and Montanari, "On online control of false discovery rate", 2015) gives each window
its level by how many came before it and how many of those were told to drift. It holds the false
discovery rate for windows that depend on each other positively too (Zrnic, Ramdas and Jordan,
"Asynchronous online testing of multiple hypotheses", 2021), as those do that are compared with one
reference.
"""

import math

# Makes the sequence sum to one.
_SCALE = 0.07720838


def level(window: int, told: int, rate: float) -> float:
    """Return the largest p-value that tells drift in the window, counted from 1.

    ``told`` of the windows before it were told to drift; ``rate`` is the false discovery rate.
    """
    share = _SCALE * math.log(max(window, 2)) / (window * math.exp(math.sqrt(math.log(window))))
    return rate * share * (told + 1)
