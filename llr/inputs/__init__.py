"""Reads and checks the arguments of public functions: models, parameters, samples, files.

``accept``, ``roles``, ``selection``, ``tensors``: arguments. ``parameters``: which parameters are columns.
``mlp``, ``gate``, ``agreement``: reading a module as an MLP, and checking that it is one. ``problem``: a
model, its columns and its samples, checked. ``evaluation``: running a model on private copies. ``files``:
samples and weights in files.
"""
