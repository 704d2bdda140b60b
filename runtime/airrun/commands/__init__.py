"""Commands of `airrun`, a file each, and what they share."""
