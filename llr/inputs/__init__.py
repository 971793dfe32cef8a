"""What comes in from files: models, weights, samples. Nothing is ever unpickled."""
