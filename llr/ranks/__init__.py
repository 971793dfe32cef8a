"""Ranks of Jacobians, matrices and models, with their evidence.

``matrices``: `llr.svdvals`, `llr.tolerance`, `llr.numerical_rank`. ``rank``: `llr.rank`, by ``methods`` and
``counting``; ``result``: `RankResult`. ``model_rank``, ``saturation``, ``guarantee``: models rather than
samples. ``certificates``: proofs. ``info``: `llr.info`, `llr.selftest`. ``figure``: figures.
"""
