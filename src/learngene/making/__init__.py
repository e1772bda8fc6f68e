"""How genes and descendants come to be: one life cycle for condensing, pools, searches and fine-tuning."""
