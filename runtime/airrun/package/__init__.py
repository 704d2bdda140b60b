"""Packages: a plan, its weight files and a manifest with digests, in one archive or one folder."""
