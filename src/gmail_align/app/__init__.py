"""Look at a finished run in a browser: captions, neighbours and routes of an image of one's own."""
