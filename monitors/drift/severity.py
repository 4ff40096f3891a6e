"""How sure a window has to be, so that few of all drifts that are ever told are false.

LOND (Javanmard and Montanari, "On online control of false discovery rate", 2015) gives each window
its level by how many came before it and how many drifts began in those. It holds the false
discovery rate of one version's windows where they depend on each other positively too (Zrnic,
Ramdas and Jordan, "Asynchronous online testing of multiple hypotheses", 2021): that those do which
are compared with one reference is assumed here, and false alarms are measured besides. A drift that
goes on counts once, which only lowers levels.
"""

import math

# Makes the sequence sum to one.
_SCALE = 0.07720838


def level(window: int, told: int, rate: float) -> float:
    """Return the largest p-value that tells drift in the window, counted from 1.

    ``told`` drifts began in the windows before it; ``rate`` is the false discovery rate.
    """
    share = _SCALE * math.log(max(window, 2)) / (window * math.exp(math.sqrt(math.log(window))))
    return rate * share * (told + 1)
