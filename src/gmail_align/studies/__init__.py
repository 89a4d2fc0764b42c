"""Studies: the tables of the paper as recipes, run with seeds and set beside its numbers."""
