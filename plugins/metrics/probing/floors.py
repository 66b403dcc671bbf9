"""The interval of a mean over random floors: documents vary, and so do the floors."""

import numpy as np
from scipy.special import stdtrit

from saebench.stats import LEVEL


def over_draws(value: float, low: float, high: float, draws: np.ndarray, level: float = LEVEL) -> tuple[float, float]:
    """Widen the interval of a mean over draws by the variance of the draws.

    The halves of the two intervals add in square (MOVER: Zou & Donner 2008, Statistics in Medicine 27(10)); that of the draws is
    Student's with len(draws) − 1 degrees of freedom.

    Args:
        value: the mean over draws.
        low, high: its interval over documents.
        draws: [m] the score with each draw; a constant that they share changes nothing.
        level: the interval's coverage.
    """
    m = len(draws)
    half = float(stdtrit(m - 1, (1 + level) / 2)) * float(np.std(draws, ddof=1)) / np.sqrt(m)
    return value - float(np.hypot(value - low, half)), value + float(np.hypot(high - value, half))
