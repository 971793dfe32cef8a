"""
A critical embedding and its Hessian
====================================

Split a neuron into two that share its outgoing weight: the neuron keeps the share 1 - t, its copy
gets t. The function stays the same, and a critical point of the loss stays critical, for every t
(Zhang et al., "Embedding Principle of Loss Landscape of Deep Neural Networks", 2021). But a minimum
may become a saddle, depending on t (Fukumizu and Amari, "Local minima and plateaus in hierarchical
structures of multilayer perceptrons", 2000). The Hessian shows which of the two it is.
"""

import matplotlib.pyplot as plt
import torch

from llr import embedding, landscape
from llr.models import TwoLayer

# %%
# A narrow network of two tanh neurons without biases, and noisy targets that it cannot fit.
# ``critical_targets`` changes the targets as little as possible such that the gradient is zero. All
# eigenvalues of the Hessian are positive: this is a local minimum.

x = torch.linspace(-3, 3, 40, dtype=torch.float64)[:, None]
narrow = TwoLayer.of(
    w=torch.tensor([[0.4], [3.0]]), b=None, a=torch.tensor([[1.0], [1.0]])
).double()
noise = torch.randn(40, 1, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
y = landscape.critical_targets(narrow, x, narrow(x).detach() + 0.1 * noise)
print(landscape.criticality(narrow, x, y))

# %%
# Split the first neuron, once with t = 1/2 and once with t = 2. ``check`` confirms that the
# function, its tangent space and the critical point are kept. ``embedded_spectrum`` compares the
# Hessians.

spectra = {}
for t in (0.5, 2.0):
    wide, record = embedding.split(narrow, layer=0, neuron=0, share=t)
    assert embedding.check(narrow, wide, x)
    assert landscape.criticality(wide, x, y)
    spectra[t] = landscape.embedded_spectrum(narrow, wide, record, x, y)
    print(f"t = {t:g}", spectra[t], sep="\n")

# %%
# For t = 1/2 the wide network is at a minimum, too, with one flat direction: t itself. For t = 2 it
# is at a strict saddle, from which gradient descent escapes. The right figure has the smallest
# eigenvalue, without that of the flat direction, for other t.

shares = torch.linspace(-0.5, 1.5, 81).tolist()
smallest = []
for t in shares:
    wide, _ = embedding.split(narrow, layer=0, neuron=0, share=t)
    values = landscape.hessian_spectrum(wide, x, y).eigenvalues
    smallest.append(values[values.abs().argsort()[1]])  # the first is that of the flat direction

fig, (left, right) = plt.subplots(1, 2, figsize=(8, 3.6), layout="constrained")
curves = {
    "narrow": (spectra[0.5].narrow, "s", "0.3"),
    "wide, t = 1/2": (spectra[0.5].wide, "o", "#0072B2"),
    "wide, t = 2": (spectra[2.0].wide, "^", "#D55E00"),
}
for name, (spectrum, marker, colour) in curves.items():
    values = spectrum.eigenvalues.flip(0)
    left.plot(
        range(1, len(values) + 1),
        values,
        marker,
        ms=7,
        mfc="none",
        mew=1.5,
        color=colour,
        label=name,
    )
left.axhline(0, color="0.6", lw=0.8, zorder=0)
left.set_yscale("symlog", linthresh=1e-4)
left.set(xlabel="index $i$", ylabel="eigenvalues of the Hessian", xticks=range(1, 7))
left.set_ylim(-3e-3, 20)
left.legend(frameon=False)
right.axvspan(0, 1, color="#0072B2", alpha=0.08, lw=0)
right.axhline(0, color="0.6", lw=0.8)
right.plot(shares, smallest, color="#009E73", lw=2)
right.set(xlabel="share $t$ of the copy", ylabel="smallest eigenvalue that is not flat")
right.ticklabel_format(axis="y", scilimits=(0, 0))
for label, at, height in (("saddle", -0.25, 0.85), ("minimum", 0.5, 0.1), ("saddle", 1.25, 0.85)):
    right.text(at, height, label, ha="center", transform=right.get_xaxis_transform())
for ax in (left, right):
    ax.spines[["top", "right"]].set_visible(False)
plt.show()

# %%
# The eigenvalue has the sign of t(1 - t) times one number: the second derivative of the loss that
# the residuals give to the split neuron. Here the number is positive. If it were negative, all t
# between 0 and 1 would give a saddle, and all other t a minimum. With more inputs, or with biases,
# the number is a matrix. If this matrix has eigenvalues of both signs, every split is a saddle.
