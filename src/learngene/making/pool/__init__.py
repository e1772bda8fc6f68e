"""How pools are made: rows distilled (or anchors taken), stitch layers initialised, sampled paths tuned."""
