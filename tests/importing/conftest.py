from worlds.files import coco, make_picture, shared_data

__all__ = ["coco", "make_picture", "shared_data"]
