"""The learngene itself: its tensors, its file, its teacher, and the plan of what to make from it."""
