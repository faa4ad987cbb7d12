"""Names of image files. Light: the command line's help must not load NumPy."""

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
"""What is taken from a folder of images; a file that is named itself may have any suffix."""
