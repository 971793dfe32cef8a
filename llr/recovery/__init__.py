"""Recovering a target function from few samples: training runs that test the theory's sizes."""
