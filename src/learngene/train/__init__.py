"""One training engine for every method: images, batches, losses, the loop, its state and its log."""
