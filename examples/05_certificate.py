"""
A certificate, made and checked
===============================

A random tanh network on one input has independent neurons, so the rank of its Jacobian is the
number of its parameters (:doc:`Theorem 2.2 of the theory </theory>`). But the singular values of
smooth functions decrease so fast that floating point finds a lower rank. Ball arithmetic proves the
rank, and the proof is a file that others can check.
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
# Save the certificate, and check it. ``verify`` does not believe the file: it computes the Jacobian
# again, and proves the rank by another method and at twice the precision. For other samples, or
# other parameters, the certificate is not valid.

with tempfile.TemporaryDirectory() as folder:
    path = Path(folder, "proof.json")
    certificate.save(path)
    kept = llr.Certificate.load(path)
print(llr.verify(kept, network(15), x))
print(llr.verify(kept, network(15), x + 1e-12))

# %%
# For comparison, count the singular values above their error, in float32 and in float64.

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
# The count stops growing when singular values reach rounding; the proved rank keeps growing.
# ``llr.rank`` never calls such a count exact. It is ambiguous, and in small cases ``llr.rank`` makes a
# certificate, which proves the rank.

print(llr.rank(network(15), x, resolve=False))
print(llr.rank(network(15), x))
