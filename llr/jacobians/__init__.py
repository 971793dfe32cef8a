"""Jacobians and Gram matrices of models.

``jacobian``: `llr.jacobian`, `llr.plan`. ``paths``: the native operator, torch.func, one gradient at a time.
``signals``, ``layers``: J in parts. ``gram``: `llr.gram`. ``reference``: a slow Jacobian for comparison.
"""
