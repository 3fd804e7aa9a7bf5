"""Every prior and threshold of the gate and of the end of a run: value, unit, meaning.

A "share" is a number in [0, 1]; "score" means the unit of the scores, in which 0.01 is one point. A prior is
(mean, sd), or a mixture of (weight, mean, sd).
"""

from __future__ import annotations

# -- the race on `select`, and every other fit of scores

LEVEL = (0.5, 1.0)  # score; prior of the level of the incumbent
OTHER_VERSION = (0.0, 0.30)  # score; prior of the distance of any other version from the incumbent
WIDE = (0.0, 0.30)  # score; prior under which a gain is fitted, and that the gain's own prior then replaces
# Score; prior of the gain of a candidate that was not screened: most changes do nothing, a few do a lot.
UNSCREENED = ((0.8, 0.0, 0.002), (0.2, 0.0, 0.30))
SHRINK = 0.8  # factor of a screened gain: the best of many is flattered, and train is not select
DEVIATION = 0.03  # score; sd of the difference between the gain on `select` and the screened gain
OVERFIT = 0.02  # share of screened gains that do not exist outside train
MATTERS = 0.005  # score; a smaller gain counts as none
AGAIN = 0.5  # P(better) that is worth another pass over `select`
# P(harm) by `select` alone from which on nothing is accepted. Eight tasks reach it if one is broken and none mended, or
# if two more are broken than mended.
VETO = 0.7
# P(loss > margin) on a further target up to which a candidate is harmless there. Of 60 tasks one may be broken and none
# mended, at a margin of 0.05; 15 tasks that stay the same are enough.
ELSEWHERE = 0.3
PROMISE = 0.02  # score; expected gain of a candidate that is worth a race. One that promises less waits for evidence
VISIBLE = 0.25  # score; a smaller gain is worth a race too, from this over √(size of `select`): half a standard error

# -- the screen on train

LEAST = 0.35  # share of a full screen for a small pool with something new in it
# Edits per screened text: many if effects are diffuse; few if each edit targets its own samples, because the others
# only add noise.
MANY, FEW = 12, 3
WIDER = 3  # factor of the pool if effects are diffuse: each trial then informs about many edits
# Shares of the screen. The first round shows each edit of a default pool, the second follows what was learned, the last
# one confirms the best.
ROUNDS = (0.4, 0.2, 0.4)
ONCE = 3  # edits, removals included; a pool up to this size is shown in one round, because there is nothing to choose
PASSING_SHARE = 0.25  # share of a text's rollouts on samples that the incumbent solves: there harm shows
FRESH = 0.5  # share of the pool that is kept for edits that are new or had to wait
REMOVALS = 4  # edits of a doubtful incumbent whose removal is tried at once
BETWEEN = 30  # draws of the posterior between the rounds
KEEP = 0.05  # P(it helps) at which an edit that was not taken stays in the pool
# P(it adds more than the price of its length) at which an edit is put into a candidate. A claimed effect cannot be
# negative, so an edit of which little is known helps in the mean. If effects are diffuse, harm shows as early as
# good, and the mean decides.
WORTH, WORTH_DIFFUSE = 0.5, 0.05
SURE = 0.9  # P(it adds something) of every edit of a full team at which the screen ends
ROUNDING = 1e-9  # score; a gain up to this size is a rounding error

# -- the trials of the run

CLAIMS = 0.1  # share of edits with an effect on the samples that they claim; below it, claims are ignored
SOME = 0.2  # score of the incumbent from which on claims can be ignored: if next to nothing is solved, no effect shows
KNOWN = 0.9  # P(it helps) of an edit of the incumbent at which the incumbent is no longer in doubt

FAILS = 0.5  # mean score of a sample below which the removal of an edit may mend it

# -- the betting race

STAKES = tuple((j + 0.5) / 16 for j in range(16))  # shares of the wealth that the gamblers bet, in equal numbers
PATHS = 200  # continuations that are drawn to estimate if going on can still pay
HOPE = 0.05  # share of them that must reach the bar, or the race ends

# -- the choice at the end

IDLE = 0.2  # share of screened and raced changes that do nothing on `select`
NOTHING = (0.5, 0.0, 0.002)  # score; prior component of a rule that carries nothing
PREDICTED_SD = 0.15  # score; sd of the difference between a gain and its screen, wide so that `select` decides
GAIN_DRAWS = 4000  # draws of the gains of versions, to compare them
TIE = 0.005  # score; versions that differ by less are equally good

# -- the ledger, and the last ablation

MOVED = 0.5  # score; a sample is fixed or broken if its mean score changes by this much
MISSES = 4  # rules that missed their screen by `DEVIATION`, as if seen before: the weight of the first estimate
EM_ROUNDS = 8  # rounds of estimating that deviation again
MARGIN = 0.01  # score; the loss that all removals together may cause
DOUBTS = 12  # edits in doubt that an ablation measures, at most
EACH = 4  # train rollouts of a round of the ablation, for each edit in doubt
ROUNDS_AT_END, ROUNDS_ON_DEMAND = 2, 8  # rounds at the end of a training, and at most those of `skilltune compact`
PER_TEXT = 4  # rollouts on each text of the ablation
ENDING = 400  # draws of the posterior of the ablation
HARMED = 0.1  # share of failing train tasks below which no line does harm that is worth an ablation
DOUBTED = 0.9  # P(an edit carries more than the margin) at which the ablation does not try to leave it out
HOPELESS = 0.5  # P(the loss is smaller than the margin) below which a race without some edits ends
