from worlds.encoders import build_clip, clip_folder, siglip_folder, world

__all__ = ["build_clip", "clip_folder", "siglip_folder", "world"]
