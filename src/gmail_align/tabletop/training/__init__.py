"""How the shipped models of the tabletop world are trained, from a seed, from scratch."""
