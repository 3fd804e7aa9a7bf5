"""Every prior and threshold of the default gate: value, unit, meaning."""

from __future__ import annotations

LEVEL = (0.5, 1.0)  # prior mean and sd of the incumbent's level on `select`, in scores
OTHER_VERSION = (0.0, 0.30)  # of the distance of any other version from the incumbent
# Prior of the gain of a candidate that was not screened (weight, mean, sd): most changes do nothing, some do a lot.
UNSCREENED = ((0.8, 0.0, 0.002), (0.2, 0.0, 0.30))
WIDE = (0.0, 0.30)  # under which a gain is fitted before its prior is put in its place
SHRINK = 0.8  # of a screened gain: the best of many is flattered, and train is not select
DEVIATION = 0.03  # sd by which the gain on `select` may miss what the screen foretold
OVERFIT = 0.02  # share of screened gains that do not exist outside of train
MATTERS = 0.005  # a gain below half a point is none
LEAST = 0.35  # share of a full screen that a small pool gets, if something in it is new
# Edits of a text of the screen. Where effects are small and everywhere, many at once tell most; where edits answer
# samples that they claim, few: the others only stand in the way.
MANY, FEW = 12, 3
WIDER = 3  # times the pool where effects are diffuse: then each trial speaks of many edits, and the choice is larger
# Shares of the screen: the first round shows each edit of a default pool, a short one follows what was learned, and
# the last one makes sure of the best.
ROUNDS = (0.4, 0.2, 0.4)
ONCE = 3  # edits, removals included, up to which a pool is shown in one round: there is nothing to choose between
FRESH = 0.5  # share of the pool for edits that are new or had to wait: what only may be good does not fill it
REMOVALS = 4  # edits of a doubtful incumbent whose removal is tried at once
BETWEEN = 30  # draws of the effects between the rounds
AGAIN = 0.5  # P(better) that is worth another pass over `select`
KEEP = 0.05  # an edit that was not taken stays in the pool while P(it helps) is at least this
WORTH = 0.05  # an edit is put into a candidate when P(it adds something) is at least this
PROMISE = 0.02  # gain expected of a candidate that is worth a race; one that promises less waits for more evidence
VISIBLE = 0.25  # over the root of the size of `select`: half a standard error, which is promise enough
# P(harm) by `select` alone from which on nothing is accepted. Eight tasks reach it if one is broken and none mended, or
# if two more are broken than mended.
VETO = 0.7
SURE = 0.9  # P(it adds something) of every edit of a full team, from which on a screen has seen enough
