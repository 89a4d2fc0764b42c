"""ClipCap: a mapper from image features to a prefix of a language model."""
