"""
The spectrum of a trained network
=================================

The Jacobian of a network's outputs with respect to its parameters has a row for each sample and a
column for each parameter. Its rank is the number of directions in which the function can move on
these samples, to first order. This example trains an ordinary PyTorch network and compares the
singular values before and after training.
"""

import matplotlib.pyplot as plt
import torch

import llr

torch.manual_seed(0)

# %%
# A network of 40 tanh neurons on two inputs, 161 parameters, and 300 samples of a smooth function.

model = torch.nn.Sequential(torch.nn.Linear(2, 40), torch.nn.Tanh(), torch.nn.Linear(40, 1))
x = torch.rand(300, 2) * 4 - 2
y = torch.tanh(2 * x[:, :1] - x[:, 1:]) + 0.5 * torch.sin(x[:, 1:])

# %%
# ``llr.rank`` computes in float64, whatever the dtype of the model.

before = llr.rank(model, x)
print(before)

optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
for _ in range(1500):
    optimizer.zero_grad()
    loss = torch.nn.functional.mse_loss(model(x), y)
    loss.backward()
    optimizer.step()

after = llr.rank(model, x)
print(f"mean squared error {loss.item():.1e}")
print(after)

# %%
# Both ranks are 161, the number of parameters. Both are exact: every singular value is above a bound
# of its error, and there are no more than 161. Neurons with different parameters are independent
# functions (:doc:`Theorem 2.2 of the theory </theory>`; Fefferman, 1994), before and after training.

fig, ax = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
for result, name, colour in ((before, "at the start", "#56B4E9"), (after, "trained", "#D55E00")):
    values = result.spectrum / result.spectrum[0]
    ax.semilogy(range(1, len(values) + 1), values, color=colour, lw=2, label=name)
ax.axhline(
    float(after.tol) / float(after.spectrum[0]),
    color="0.4",
    ls="--",
    lw=1,
    label="bound of the error",
)
ax.set(xlabel="index $i$", ylabel=r"$\sigma_i\,/\,\sigma_1$")
ax.spines[["top", "right"]].set_visible(False)
ax.legend(frameon=False)
plt.show()

# %%
# The values decrease smoothly over many powers of ten, and there is no gap. The number of singular
# values above a tolerance depends on the tolerance. This number is not the rank; ``rtol=`` asks for
# it.

for rtol in (1e-2, 1e-4, 1e-6):
    print(f"above {rtol:g} of the largest: {llr.rank(model, x, rtol=rtol).rank}")
