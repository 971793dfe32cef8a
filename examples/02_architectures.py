"""
The sample sizes of three architectures
=======================================

A convolution kernel of size 3 on five inputs is a function that three architectures can represent:
a convolutional network, the same network without weight sharing, and a fully connected network.
How many samples does each of them need to recover the function? The theory gives the numbers
without any training: 6, 12 and 18 (Zhang et al., "Optimistic Estimate Uncovers the Potential of Nonlinear
Models", 2023; :doc:`Theorem 3.2 </theory>`).
"""

import matplotlib.pyplot as plt
import torch

from llr.models import Conv1dTwoLayer, TwoLayer
from llr.recovery import RECOVERED, Target, initial, levenberg_marquardt
from llr.theory import optimistic_sample_size

architectures = {
    "shared weights": Conv1dTwoLayer(5, 3, 1),
    "without sharing": Conv1dTwoLayer(5, 3, 1, shared=False),
    "fully connected": TwoLayer(5, 3, bias=False),
}

# %%
# The optimistic sample size O of a function in an architecture is the smallest rank of the Jacobian
# among all parameters that represent the function.

kernel = Conv1dTwoLayer(5, 3, 1)
sizes = {name: int(optimistic_sample_size(net, kernel)) for name, net in architectures.items()}
print(sizes)

# %%
# The experiment draws random kernels, samples each kernel at n random inputs, and fits every
# architecture from 60 random starts. Of the fits that agree with the samples to rounding, it counts
# those that are the right function everywhere.


def share_of_right_fits(net, n, kernels=8, starts=60):
    """The share of right functions among the starts that fit n samples."""
    right = fitted = 0
    for seed in range(kernels):
        target = Target.separated(kernel, seed=seed)
        x, y = target.sample(n, seed=seed)
        at = initial(net, starts, scale=0.3, generator=torch.Generator().manual_seed(seed))
        fits = levenberg_marquardt(net, at, x, y, damping="slow")
        ends = fits.converged.nonzero().flatten().tolist()[:15]
        fitted += len(ends)
        right += sum(target.error(fits.model(i)) < RECOVERED for i in ends)
    return right / fitted if fitted else float("nan")


ns = range(3, 23)
shares = {name: [share_of_right_fits(net, n) for n in ns] for name, net in architectures.items()}

fig, ax = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
for (name, share), colour in zip(shares.items(), ("#0072B2", "#009E73", "#D55E00"), strict=True):
    ax.plot(ns, share, "o-", ms=4, color=colour, label=f"{name}, O = {sizes[name]}")
    ax.axvline(sizes[name], color=colour, ls=":", lw=1.2)
ax.set(xlabel="samples $n$", ylabel="share of fits that are the function", xticks=range(3, 23, 3))
ax.spines[["top", "right"]].set_visible(False)
fig.legend(loc="outside upper center", ncols=3, frameon=False, fontsize="small")
plt.show()

# %%
# With fewer than O samples every fit is another function. With exactly O samples some fits are,
# because these narrow networks have as many parameters as samples, and several solutions. From O + 1
# samples on all fits are the right function: an analytic network that agrees with more random
# samples than it has parameters is the function (:doc:`Theorem 1.1 of recovery </recovery>`). In the
# fully connected network the same function needs three times as many samples as with weight sharing.
