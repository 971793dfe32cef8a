"""
Recovery at O + 1 samples
=========================

Three tanh neurons on five inputs have an optimistic sample size of O = 18. With one sample more,
``recover`` recovers the function without knowing how many neurons it has, and says what is proved
and what is assumed.
"""

import matplotlib.pyplot as plt

from llr.models import TwoLayer
from llr.recovery import Target, recover

target = Target.separated(TwoLayer(5, 3, bias=False), seed=0)
size = int(target.size)
x, y = target.sample(size + 1, seed=1)
found = recover(x, y, max_width=8, bias=False)
print(found)
print(f"relative squared error on fresh points: {target.error(found.model):.1e}")

# %%
# ``proved`` holds for any targets, by ball arithmetic: near these parameters no other network of
# this width fits. ``assumed`` lists the assumptions. ``evidence`` says how large a coincidence the
# fit would be if they did not hold.

print(found.proved)
print(*found.assumed, sep="\n")
print(f"a coincidence of about 10^-{found.evidence.decades:.0f} otherwise")

# %%
# Fewer samples do not determine the function, and then the status is not "recovered". The figure has
# six targets with sample sizes around O. Errors are measured on fresh points, which ``recover`` does
# not get.

ns = range(size - 4, size + 5)
points = []
for seed in range(6):
    target = Target.separated(TwoLayer(5, 3, bias=False), seed=seed)
    for n in ns:
        x, y = target.sample(n, seed=seed)
        result = recover(x, y, max_width=8, bias=False, budget=3000)
        points.append((n + 0.08 * (seed - 2.5), target.error(result.model), bool(result)))

fig, ax = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
for claimed, colour, marker, label in (
    (True, "#009E73", "o", "recovered"),
    (False, "#D55E00", "x", "not claimed"),
):
    chosen = [(n, max(error, 1e-33)) for n, error, status in points if status == claimed]
    ax.plot(*zip(*chosen, strict=True), marker, ms=6, color=colour, label=label)
ax.axvline(size + 0.5, color="0.4", ls="--", lw=1)
ax.annotate(
    f"O = {size}", (size + 0.4, 0.5), xycoords=("data", "axes fraction"), ha="right", color="0.3"
)
ax.set_yscale("log")
ax.set(xlabel="samples $n$", ylabel="relative squared error", xticks=ns)
ax.spines[["top", "right"]].set_visible(False)
ax.legend(frameon=False, loc="center right")
plt.show()

# %%
# Two of the fits at n = O are right, too, but ``recover`` does not claim them: with 18 samples it
# cannot distinguish them from the wrong fits. Every network that is claimed to be the function is
# the function, to rounding. Theorem 1.1 of :doc:`recovery </recovery>` has the reason: for almost all
# samples, a network with fewer parameters than samples that agrees with an analytic function at all
# samples is that function. The tables there say how often ``recover`` was wrong: never in 3,600
# planted targets.
