"""Other people's weights, in Hugging Face's format."""
