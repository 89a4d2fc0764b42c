"""Results to tables, figures and one HTML page that needs nothing else."""
