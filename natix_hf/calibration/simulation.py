"""How often calibrations succeed, and the smallest number of groups at which they do often enough."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from natix_hf.calibration.binomial import needed_without_error
from natix_hf.errors import UsageError

# A plan must succeed with at least this probability: a certificate that covers this part of the planned share.
SUCCESS, NEAR = 0.9, 0.95
# Larger plans are refused: nobody can collect so many groups.
MOST_GROUPS = 100_000
# The table beside the answer, in parts of its groups.
AROUND = (0.25, 0.5, 0.75, 1.5, 2.0)

# At most this many calibrations are drawn for a probability, and the answer's has all of them. Others end earlier
# where the standard error is at most `PRECISION`.
DRAWS, PRECISION, BATCH = 4000, 0.0075, 250
# While it searches it draws until the probability is this many standard errors from `SUCCESS`, at most `GUESS` times.
CLEAR, GUESS = 3.0, 800
# More groups than this take longer to certify, so there are half as many draws.
MANY = 3000
FINE = 1.03
_SEED = 20_261_128

# Draws a calibration with a number of groups. The result is its coverage and the least coverage of its parts (the same
# if there is one threshold for all answers), both 0 if nothing is certified.
Calibrate = Callable[[int, np.random.Generator], tuple[float, float]]


@dataclass(frozen=True)
class PlanRow:
    """What to expect of one number of calibration groups.

    Args:
        groups (`int`): Calibration groups, one row of each; as many other rows choose the thresholds and the start.
        certified (`float`): Probability of a certificate.
        reached (`float`): Probability of a certificate whose coverage is at least 0.95 of the planned one.
        coverage (`float`): Mean coverage. A calibration without a certificate counts as 0.
    """

    groups: int
    certified: float
    reached: float
    coverage: float


@dataclass(frozen=True)
class Plan:
    """The number of calibration groups that a guarantee needs. Returned by [`groups_needed`].

    Args:
        groups (`int`, *optional*): Calibration groups to collect: the smallest number, to about 3%, with which the
            planned coverage is reached with probability 0.9 or more. `None` if there is none up to 100,000.
        probability (`float`, *optional*): Probability of a certificate whose coverage is at least 0.95 of the planned
            one, with this many groups. Simulated; its standard error is below 0.01.
        coverage (`float`): The planned coverage.
        alpha, delta (`float`): The requested values.
        reason (`str`): Why `groups` is `None`; else "".
        table (`tuple` of [`PlanRow`]): What to expect of other numbers of groups, rising.
    """

    groups: int | None
    probability: float | None
    coverage: float
    alpha: float
    delta: float
    reason: str
    table: tuple[PlanRow, ...]


def _draws(groups: int) -> int:
    return DRAWS if groups <= MANY else DRAWS // 2


@dataclass
class _Simulation:
    """Calibrations, drawn when they are asked for. Draw i has the same seed with any number of groups."""

    calibrate: Calibrate
    enough: float
    drawn: dict[int, list[tuple[float, float]]] = field(default_factory=dict)

    def row(self, groups: int, draws: int) -> PlanRow:
        """What the first draws with this many groups say."""
        found = self.drawn.setdefault(groups, [])
        found += [self.calibrate(groups, np.random.default_rng([_SEED, draw])) for draw in range(len(found), draws)]
        coverage, least = np.array(found[:draws]).T
        return PlanRow(
            groups, float((coverage > 0).mean()), float((least >= self.enough).mean()), float(coverage.mean())
        )

    def precise_row(self, groups: int) -> PlanRow:
        draws, most = BATCH, _draws(groups)
        while True:
            row = self.row(groups, draws)
            # One more success and failure, so that a share of 0 or 1 is not taken for certain.
            shares = [(share * draws + 1) / (draws + 2) for share in (row.certified, row.reached)]
            if draws >= most or max(share * (1 - share) for share in shares) <= PRECISION**2 * draws * DRAWS / most:
                return row
            draws += BATCH

    def succeeds(self, groups: int) -> bool:
        draws = 50
        while True:
            reached = self.row(groups, draws).reached
            if draws >= GUESS or abs(reached - SUCCESS) > CLEAR * math.sqrt(SUCCESS * (1 - SUCCESS) / draws):
                return reached >= SUCCESS
            draws *= 2

    def smallest(self, least: int) -> int | None:
        """The smallest number of groups, to about 3%, that succeeds often enough; `None` if `MOST_GROUPS` do not."""
        low, high = least - 1, least
        while not self.succeeds(high):
            if high == MOST_GROUPS:
                return None
            low, high = high, min(2 * high, MOST_GROUPS)
        while high - low > max(1, (FINE - 1) * low):
            middle = max(round(math.sqrt(low * high)), low + 1)
            low, high = (low, middle) if self.succeeds(middle) else (middle, high)
        while self.row(high, _draws(high)).reached < SUCCESS:
            if high == MOST_GROUPS:
                return None
            high = min(math.ceil(high * FINE), MOST_GROUPS)
        return high


def simulate(
    calibrate: Calibrate,
    planned: float,
    alpha: float,
    delta: float,
    groups: Sequence[int] = (),
    hopeless: str = "",
    exact: bool = False,
) -> Plan:
    """Find the number of groups by simulation.

    Args:
        calibrate: Draws a calibration.
        planned: The planned coverage.
        groups: Numbers of groups for the table, besides some around the answer.
        hopeless: Why no number of groups would do, or "".
        exact: There is no error, and every answer is planned for, so that the number is known.

    Raises:
        UsageError: if a number of groups is out of range.
    """
    for asked in groups:
        if not 1 <= asked <= MOST_GROUPS:
            raise UsageError(f"groups must be from 1 to {MOST_GROUPS:,}, found {asked}")
    simulation = _Simulation(calibrate, NEAR * planned)
    # Fewer accepted groups than this cannot certify anything, whatever the answers are.
    least = math.log(delta) / math.log1p(-alpha)
    found, reason = None, ""
    if least > MOST_GROUPS:
        reason = f"more than {MOST_GROUPS:,} groups would be needed, even without an error: raise alpha or delta"
    elif hopeless:
        reason = f"no number of groups would do: {hopeless}"
    elif exact:
        found = needed_without_error(alpha, delta)
    else:
        found = simulation.smallest(needed_without_error(alpha, delta))
        if found is None:
            reason = f"more than {MOST_GROUPS:,} groups would be needed: raise alpha, or plan a smaller coverage"
    sizes = {*groups, *(math.ceil(found * part) for part in AROUND if found is not None)}
    rows = {size: simulation.precise_row(size) for size in sizes if size <= MOST_GROUPS}
    if found is not None:
        rows[found] = simulation.row(found, BATCH if exact else _draws(found))
    probability = rows[found].reached if found is not None else None
    table = tuple(rows[size] for size in sorted(rows))
    return Plan(found, probability, planned, alpha, delta, reason, table)
