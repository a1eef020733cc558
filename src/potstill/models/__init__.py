"""Models: find, read the facts without the weights, load, make a student, save."""
