from worlds.encoders import clip_folder, siglip_folder, world

__all__ = ["clip_folder", "siglip_folder", "world"]
