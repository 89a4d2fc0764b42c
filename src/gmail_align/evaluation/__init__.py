"""Named protocols: features or predictions in, a result with intervals out."""
