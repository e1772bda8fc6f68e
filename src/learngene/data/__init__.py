"""From image folders to batches: image sets, masks, the visual decathlon, and the views of training."""
