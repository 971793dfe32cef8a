"""
A certificate, made and checked
===============================

A random tanh network on one input has independent neurons, so the rank of its Jacobian is the
number of its parameters (:doc:`Theorem 2.2 of the theory </theory>`). But singular values of smooth
functions fall so fast that floating point cannot see it. Ball arithmetic proves the rank, and the
proof is a file that anybody can check.
"""

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import torch

import llr
from llr.models import TwoLayer


def network(width):
    """Standard normal parameters: w, b and outgoing weights."""
    generator = torch.Generator().manual_seed(width)
    return TwoLayer(1, width, generator=generator, dtype=torch.float64)


x = torch.randn(90, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

# %%
# Make a certificate: rows and columns of the Jacobian whose determinant is proved not to be zero.

certificate = llr.certify(network(15), x)
print(certificate)

# %%
# Keep it, and check it. ``verify`` believes nothing of the file: it computes the Jacobian again,
# with another method and at twice the precision. With other samples, or other parameters, the
# certificate does not hold.

with tempfile.TemporaryDirectory() as folder:
    path = Path(folder, "proof.json")
    certificate.save(path)
    kept = llr.Certificate.load(path)
print(llr.verify(kept, network(15), x))
print(llr.verify(kept, network(15), x + 1e-12))

# %%
# What would counting have said? Singular values above their error are counted, in float32 and in
# float64.

widths = list(range(2, 16))
ranks = {"float32": [], "float64": [], "proved": []}
for width in widths:
    model = network(width)
    for name, dtype in (("float32", torch.float32), ("float64", torch.float64)):
        counted = llr.rank(model.to(dtype), x.to(dtype), method="svd", dtype=dtype)
        ranks[name].append(counted.rank)
    ranks["proved"].append(llr.certify(network(width), x).rank)

fig, (left, right) = plt.subplots(1, 2, figsize=(8, 3.6), layout="constrained")
colours = {"float32": "#E69F00", "float64": "#0072B2", "proved": "#009E73"}
spectrum = llr.rank(network(15), x, method="svd")
left.semilogy(
    range(1, 46), spectrum.spectrum / spectrum.spectrum[0], "o", ms=3.5, color=colours["float64"]
)
left.axhline(float(spectrum.tol) / float(spectrum.spectrum[0]), color="0.4", ls="--", lw=1)
left.annotate(
    "bound of the error",
    (1, float(spectrum.tol / spectrum.spectrum[0])),
    xytext=(0, 4),
    textcoords="offset points",
    color="0.3",
)
left.set(xlabel="index $i$", ylabel=r"$\sigma_i\,/\,\sigma_1$", title="15 neurons, 45 parameters")
for name, values in ranks.items():
    right.plot([3 * w for w in widths], values, "o-", ms=4, color=colours[name], label=name)
right.set(xlabel="parameters", ylabel="rank", title="counted, and proved")
right.legend(frameon=False)
for ax in (left, right):
    ax.spines[["top", "right"]].set_visible(False)
plt.show()

# %%
# The count stops growing where singular values reach rounding; the proof does not. ``llr.rank``
# never calls such a count exact: it is ambiguous, and small cases are settled by a certificate at
# once.

print(llr.rank(network(15), x, resolve=False))
print(llr.rank(network(15), x))
