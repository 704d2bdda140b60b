"""Steps of a plan on memory and threads."""
