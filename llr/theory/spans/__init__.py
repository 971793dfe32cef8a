"""Functions of networks as polynomials in symbols, and what they span.

``symbols``, ``span``: symbols, combinations and their words. ``formal``, ``formal_span``: tangent spaces of
any depth, from above. ``neurons``: `llr.neurons.independence`.
"""
