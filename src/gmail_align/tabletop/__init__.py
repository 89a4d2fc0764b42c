"""The tabletop world: seeded scenes, ray-traced images, true captions and questions, on disk."""
