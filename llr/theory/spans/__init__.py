"""Functions of networks as polynomials in symbols, and their spans.

``symbols``, ``span``: symbols, and combinations as text. ``formal``, ``formal_span``: upper bounds of tangent
spaces for any depth. ``neurons``: `llr.neurons.independence`.
"""
