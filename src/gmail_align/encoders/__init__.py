"""Image and text encoders: CLIP with an adapter for generated images, reached by routes."""
