"""Features of images and texts: the store on disk and the extraction that fills it."""
