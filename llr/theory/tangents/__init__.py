"""dim T, the dimension of the tangent space, at given parameters.

``tangent``: `tangent_dimension`, by ``two_layer`` (with ``periodic`` and ``polynomial``), ``convolution`` and
``linear``. ``upper``: dim T as an upper bound of ranks on samples.
"""
