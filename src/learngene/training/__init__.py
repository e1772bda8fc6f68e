"""One training engine for every method: the loop, its losses, its state and its log."""
