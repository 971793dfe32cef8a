"""Proofs of ranks.

``certificate``: `Certificate` and its JSON. ``certify``: `llr.certify`. ``verification``: `llr.verify`.
"""
