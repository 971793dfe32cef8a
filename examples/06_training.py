"""
Ranks along training
====================

A wide network that starts from small parameters does not use all of its neurons at once. First they
condense on one direction (Zhou et al., "Towards Understanding the Condensation of Neural Networks
at Initial Training", 2022), and the loss stays near a critical point of a narrower network (Zhang
et al., "Embedding Principle of Loss Landscape of Deep Neural Networks", 2021). The singular values
of the Jacobian show in how many directions the function can move at each time.
"""

import matplotlib.pyplot as plt
import torch

from llr.models import TwoLayer
from llr.recovery import initial
from llr.recovery.train import Adam, condensation, tangent_rank, train
from llr.theory import optimistic_sample_size

# %%
# The target has a large and a small tanh neuron on two inputs. The network has 20 neurons and 60
# parameters, and learns from 40 samples.

target = TwoLayer.of(
    w=torch.tensor([[2.0, 0.0], [0.0, 1.5]]), b=None, a=torch.tensor([[2.0], [0.6]])
).double()
generator = torch.Generator().manual_seed(0)
x = torch.randn(40, 2, generator=generator, dtype=torch.float64)
model = TwoLayer(2, 20, bias=False)
start = initial(model, 1, scale=1e-5, generator=torch.Generator().manual_seed(0))
run = train(
    model,
    start,
    x,
    target(x).detach(),
    method=Adam(1e-3, weight_decay=1e-3),
    steps=12_000,
    record=150,
)
print(run)

# %%
# At every recorded step, count the singular values above 1e-2 of the largest, the singular values
# above their error, and the effective neurons: the number of directions that carry the function.

seen = torch.randn(200, 2, generator=generator, dtype=torch.float64)
theta, steps = run.history.theta[:, 0], run.history.at
large = tangent_rank(model, theta, seen, rtol=1e-2).rank
counted = tangent_rank(model, theta, seen).rank
effective = condensation(model, theta).effective
one, two = (int(optimistic_sample_size(model, TwoLayer(2, k, bias=False))) for k in (1, 2))

fig, (top, bottom) = plt.subplots(2, 1, figsize=(6.4, 5.4), sharex=True, layout="constrained")
top.loglog(steps[1:], run.history.relative[1:, 0], color="0.2", lw=1.8)
top.set(ylabel="relative squared error")
lines = {
    "rank above rounding": (counted, "#56B4E9"),
    "rank above $10^{-2}$": (large, "#D55E00"),
    "effective neurons": (effective, "#009E73"),
}
for name, (values, colour) in lines.items():
    bottom.loglog(steps[1:], values[1:], color=colour, lw=1.8, label=name)
for size, name in ((one, "O of one neuron"), (two, "O of the target")):
    bottom.axhline(size, color="0.5", ls=":", lw=1)
    bottom.annotate(
        f"{name}: {size}",
        (1, size),
        xytext=(0, -10),
        textcoords="offset points",
        color="0.4",
        fontsize=8,
    )
bottom.set(
    xlabel="steps", ylabel="number", yticks=(1, 3, 6, 10, 20, 60), yticklabels=(1, 3, 6, 10, 20, 60)
)
bottom.minorticks_off()
bottom.legend(frameon=False, loc="upper left")
for ax in (top, bottom):
    ax.spines[["top", "right"]].set_visible(False)
plt.show()

# %%
# On the plateau all neurons point in one direction, and the rank above 1e-2 is 3: the sample size
# of a single neuron. Then some neurons turn to the second direction. The rank becomes larger than
# the 6 of the target, because the neurons do not end on exactly two directions. It stays far below
# the 60 parameters. The rank above rounding counts all directions that floating point can
# distinguish, and grows to nearly 60.
