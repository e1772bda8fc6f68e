"""Pictures of what a gene holds: its layers, its pool, its search, its tasks."""
