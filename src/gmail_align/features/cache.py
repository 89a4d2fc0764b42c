"""What is frozen, kept once: decoded pixels and frozen features, shared by every stage.

A cache is a folder. Each artifact in it lies in a folder that is named after its kind and a
fingerprint of what it was made from: images or captions, weights and preprocessing. Two stages that
need the same thing find the same folder, whichever of them comes first, and in which process.

    cache = Cache(work / "cache")
    cache.image_features(images, encoder)                     # decodes and embeds
    cache.image_features(images, other_encoder)               # the same CLIP underneath: reads them
    cache.extract_images(images, encoder, Route.FROZEN, out)  # links the features into ``out``
    align(config, sources, base, out, cache=cache.folder)     # finds pixels and features
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gmail_align.artifacts import MANIFEST, Artifact, fingerprint
from gmail_align.data.images import ImageStore
from gmail_align.encoders.encoder import GmailEncoder
from gmail_align.encoders.preprocess import Preprocess
from gmail_align.encoders.route import Route
from gmail_align.features.decoded_rows import DecodedRows
from gmail_align.features.pixels import Pixels, chosen_ids, prepare_pixels, read_pixels
from gmail_align.features.rows import link
from gmail_align.features.run import (
    StoredDtype,
    begin_images,
    extract_images,
    extract_patches,
    extract_texts,
)
from gmail_align.leases import one_at_a_time
from gmail_align.progress import say


class Cache:
    """A folder of decoded pixels and frozen features.

    Several processes may use one cache at the same time: one of them makes an artifact, the others
    wait and read it. A process that is killed loses at most one batch.

    Where less than half of a store's images are asked for, and the cache does not hold the whole
    store, those images alone are decoded and embedded.
    """

    def __init__(self, folder: Path, limit: int | None = None) -> None:
        """Name the folder; it is created when something is written.

        Args:
            folder: The folder.
            limit: Bytes of decoded pixels of one image store that may be kept; images that take
                more are decoded whenever they are read. None keeps any number.
        """
        self.folder, self.limit = folder, limit

    def made(self, source: Artifact, parts: object, make: Callable[[Path], Artifact]) -> Artifact:
        """Return an artifact that ``make`` makes in a folder of the cache, once.

        Args:
            source: What it is made from.
            parts: Everything else that it depends on, as a JSON value.
            make: Folder -> artifact; it returns at once where the folder is complete.
        """
        folder = self._folder(source, parts)
        if (folder / MANIFEST).exists():
            return make(folder)
        with one_at_a_time(self.folder):
            return make(folder)

    def pixels(
        self, images: Artifact, preprocess: Preprocess, ids: Sequence[str] | None = None
    ) -> Pixels:
        """Return the images decoded, resized and cropped: those of ``ids``, or more.

        Args:
            images: The image store.
            preprocess: Resizing and cropping.
            ids: The images that are needed; all of them when None.

        Raises:
            DataError: an id is not in the store, or cannot be decoded.
        """
        ids = self._chosen(images, ids, ["pixels", preprocess.fingerprint])
        parts = ["pixels", preprocess.fingerprint, ids]
        count = images.counts["images"] if ids is None else len(ids)
        size = 3 * preprocess.size**2 * count
        known = (self._folder(images, parts) / MANIFEST).exists()
        if self.limit is not None and size > self.limit and not known:
            say(f"{count} decoded images take {size / 1e9:.1f} GB: they are decoded when read")
            store = ImageStore(images)
            names = chosen_ids(store, ids)
            return Pixels(names, DecodedRows(store, preprocess, names))
        made = self.made(
            images,
            parts,
            lambda folder: prepare_pixels(images, preprocess, folder, ids=ids),
        )
        return read_pixels(made)

    def image_features(
        self,
        images: Artifact,
        encoder: GmailEncoder,
        ids: Sequence[str] | None = None,
        *,
        patches: bool = False,
        batch_size: int = 64,
    ) -> Artifact:
        """Return frozen features of images, in float32: those of ``ids``, or more.

        Args:
            images: The image store.
            encoder: An encoder on the CLIP whose features are needed, on the device to run on.
            ids: The images that are needed; all of them when None.
            patches: Return means of the images' patch tokens instead.
            batch_size: Images in one forward pass.

        Raises:
            DataError: an id is not in the store, or cannot be decoded.
        """
        what = "patches" if patches else "image"
        parts = [what, encoder.base_fingerprint, encoder.preprocess.fingerprint]
        ids = self._chosen(images, ids, parts)
        known = (self._folder(images, [*parts, ids]) / MANIFEST).exists()
        pixels = None if known else self.pixels(images, encoder.preprocess, ids)

        def make(folder: Path) -> Artifact:
            how: dict[str, Any] = {"ids": ids, "batch_size": batch_size, "pixels": pixels}
            if patches:
                return extract_patches(images, encoder, folder, **how)
            return extract_images(images, encoder, Route.FROZEN, folder, **how)

        return self.made(images, [*parts, ids], make)

    def text_features(
        self, captions: Artifact, encoder: GmailEncoder, *, batch_size: int = 256
    ) -> Artifact:
        """Return frozen features of captions, by caption id.

        Args:
            captions: An artifact of kind ``captions`` or ``pairs``.
            encoder: An encoder on the CLIP whose features are needed, on the device to run on.
            batch_size: Texts in one forward pass.

        Raises:
            DataError: there is no caption, or one id has two texts.
            ModelError: the encoder has no usable tokenizer.
        """

        def make(folder: Path) -> Artifact:
            return extract_texts(
                captions, encoder, folder, route=Route.FROZEN, batch_size=batch_size
            )

        return self.made(captions, ["text", encoder.base_fingerprint], make)

    def extract_images(
        self,
        images: Artifact,
        encoder: GmailEncoder,
        route: Route,
        out: Path,
        *,
        batch_size: int = 64,
        dtype: StoredDtype = "float32",
    ) -> Artifact:
        """Extract features of all images into ``out``: the artifact of ``features.run``'s function.

        Images are decoded once for all routes. Frozen float32 features are linked from the cache,
        or copied where ``out`` lies on another file system.

        Raises:
            DataError: an image cannot be decoded.
            ArtifactError: ``out`` was made from something else.
        """
        if route is not Route.FROZEN or dtype != "float32":
            pixels = self.pixels(images, encoder.preprocess)
            return extract_images(
                images, encoder, route, out, batch_size=batch_size, dtype=dtype, pixels=pixels
            )
        draft = begin_images(images, encoder, route, out, None, dtype)
        if draft.complete is not None:
            return draft.complete
        made = self.image_features(images, encoder, batch_size=batch_size)
        for name in made.manifest["files"]:
            link(made.path(name), draft.path(name))
        return draft.finish(made.counts)

    def _chosen(
        self, images: Artifact, ids: Sequence[str] | None, parts: list[str]
    ) -> Sequence[str] | None:
        """Return None for the whole store where that is there, or where ``ids`` are half of it."""
        if ids is None or 2 * len(ids) >= images.counts["images"]:
            return None
        if (self._folder(images, [*parts, None]) / MANIFEST).exists():
            return None
        return ids

    def _folder(self, source: Artifact, parts: object) -> Path:
        return self.folder / f"{source.kind}-{fingerprint([source.fingerprint, parts])}"
