"""What a user hands in, as llr takes it.

``accept``, ``roles``, ``selection``, ``tensors``: arguments. ``parameters``: which are columns. ``mlp``,
``gate``, ``agreement``: a module read as an MLP, and whether it is one. ``problem``: a model, its columns and
its samples, checked. ``evaluation``: running a model on private copies. ``files``: samples and weights in
files.
"""
