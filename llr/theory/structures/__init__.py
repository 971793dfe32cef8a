"""What a model is to the theory, in exact numbers.

``structure``: which of its structures a model has. ``groups``: neurons that share a hyperplane.
"""
