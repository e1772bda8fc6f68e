"""LSAMD's search: one super ancestry net per data set, and the base blocks that most of them use."""
