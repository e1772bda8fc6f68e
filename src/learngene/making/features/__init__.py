"""Condensing from features: teachers without our classes, bridges to them, and how well they are matched."""
