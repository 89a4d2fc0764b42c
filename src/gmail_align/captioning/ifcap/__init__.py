"""IFCap: captions from features, retrieved captions and entities."""
