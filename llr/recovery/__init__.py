"""Does training find a function again from samples? Experiments that test the theory."""
