"""
The spectrum of a trained network
=================================
"""
print(1)
