"""How a user's model is run: on a private copy, in surroundings of its own, and looked at before it is believed."""
