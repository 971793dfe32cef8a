"""How a user's model is run: on a private copy, in its own precision, after a look at what it does."""
