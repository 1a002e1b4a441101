"""The other methods of the literature, one file each, and what they share."""
