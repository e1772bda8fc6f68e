"""Models as files of other runtimes, checked there, and how fast they are there."""
