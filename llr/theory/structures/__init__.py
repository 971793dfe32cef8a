"""The structure that a model has in the theory, in exact numbers.

``structure``: reads the structure of a model. ``groups``: neurons that share a hyperplane.
"""
