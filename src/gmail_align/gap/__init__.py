"""How far a generated set lies from a real one, measured before anything is trained on it."""
